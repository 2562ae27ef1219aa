"""Residual token embeddings of subjects: photos become what is added to the text at their class words (Cones 2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..bases.families import Family
from ..bases.promise import Base, TextEncoders
from ..lora.metadata import plain_base
from ..progress import Progress, silent
from ..train.config import TrainConfig
from ..train.plan import make_plan
from ..train.residual import AS_PUBLISHED, Preservation, Tuned, tune
from ..types import Subject, SubjectSet

USUAL: dict[str, Any] = {"steps": 4000, "learning_rate": 5e-6, "batch_size": 1, "weight_decay": 1e-2}
"""The authors' settings, for SD 2.1: AdamW on every weight of the text encoder."""


def residual_config(family: Family, **settings: Any) -> TrainConfig:
    """Return the usual settings for a kind of base model, with ``settings`` in their place: names of `TrainConfig`."""
    only = {"method": "dreambooth", "dco_beta": 0.0, "accumulation": 1, "segmix_prob": 0.0}
    return TrainConfig.usual(family, **{**only, **USUAL, **family.residual, **settings})


def train_residual(
    base: Base,
    text: TextEncoders,
    subject: Subject,
    config: TrainConfig,
    preservation: Preservation = AS_PUBLISHED,
    progress: Progress = silent,
) -> Tuned:
    """Tune the text encoders of a base model on a subject's photos; return its residual, which knows how it was made.

    The base model stays as it is. Raise as `train.plan.make_plan` and `train.residual.tune` do.
    """
    plan_of = SubjectSet((subject,))
    with progress("encoding") as update:
        plan = make_plan(
            plan_of,
            config.samples,
            base.encode_image,
            base.condition,
            on_step=lambda stage, done, total: update(done, total, stage),
        )
    with progress("tuning the text encoders") as update:
        found = tune(
            base.denoiser(),
            text,
            plan,
            config,
            subject.class_noun,
            preservation,
            lambda done, total, loss: update(done, total, f"loss {loss:.3f}"),
        )
    about = {
        "mudi_base": plain_base(base.name),
        "ss_base_model_version": base.family,
        "mudi_subject": subject.name,
        "mudi_config": config.to_json(),
        "mudi_plan": plan.plan_hash,
    }
    return replace(found, residual=replace(found.residual, about=about))
