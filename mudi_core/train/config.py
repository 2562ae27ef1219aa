"""The settings of a training: three parts, which users write as one flat list, each setting by its own name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

from ..bases.families import Family
from ..stage.layout_config import LayoutConfig
from .parts import CAME_LATER, BadTrainConfig, Fit, Learning, Samples

PRESETS: dict[str, dict[str, Any]] = {
    "quick look": {"steps": 300, "rank": 8, "learning_rate": 3e-4, "lr_schedule": "cosine", "lr_warmup": 20},
    "standard": {"lr_schedule": "cosine", "lr_warmup": 50},
    "paper": {"dco_beta": 0.0},
    "official code": {"dco_beta": 1000.0},
}
"""Presets for how long and how carefully to learn: settings that replace the usual ones.

"paper" is the paper's loss, the mean squared error, which needs prior images (appendix B); "official code" is the
authors' later replacement, Direct Consistency Optimization, which needs none. Both have the paper's steps and rate.
"""

GOING_ON: dict[str, dict[str, Any]] = {
    "decouple": {"segmix_prob": 1.0, "steps": 250, "kl_weight": 1.0, "dco_beta": 0.0},
    "iterate": {"segmix_prob": 0.0, "steps": 250, "kl_weight": 1.0, "dco_beta": 0.0},
}
"""Presets for a model that knows the subjects already, by a LoRA that stays on it; all else is usual for the model.

"decouple" takes compositions alone, and 200 to 300 steps (paper, 5.4 and C.2); "iterate" takes pictures of all subjects
that the model made itself (paper, 5.5 and C.3, which does not say how many steps: as many as for the other).
"""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one LoRA training. The defaults are those of the official code, for SDXL.

    Raises `BadTrainConfig`, which names the setting, its value and its range.
    """

    samples: Samples = field(default_factory=Samples)
    learning: Learning = field(default_factory=Learning)
    fit: Fit = field(default_factory=Fit)

    def __post_init__(self) -> None:
        if self.samples.samples_per_step % self.fit.batch_size:
            raise BadTrainConfig(
                f"batch_size is {self.fit.batch_size}; it must divide the {self.samples.samples_per_step} samples of a "
                "step."
            )

    @classmethod
    def of(cls, **settings: Any) -> TrainConfig:
        """Return the defaults with ``settings`` in their place: names from `SETTINGS`, of any part."""
        return cls().but(**settings)

    @classmethod
    def usual(cls, family: Family, **settings: Any) -> TrainConfig:
        """Return the usual settings of a kind of base model, with ``settings`` in their place."""
        layout = LayoutConfig(**family.layout)
        return cls.of(**{**family.training, "layout": layout, "captions": family.captions, **settings})

    def but(self, **settings: Any) -> TrainConfig:
        """Return these settings with other ``settings``, names from `SETTINGS`, in their place.

        ``batch_size`` and ``accumulation`` together say how many samples a step has; giving one keeps the other. Raise
        `TypeError` for an unknown name.
        """
        if unknown := sorted(settings.keys() - SETTINGS.keys()):
            raise TypeError(f"There is no setting {', '.join(unknown)}.")
        accumulation = settings.pop("accumulation", self.accumulation)
        if not (type(accumulation) is int and accumulation >= 1):
            raise BadTrainConfig(f"accumulation is {accumulation!r}; it must be 1 or more.")
        fit = replace(self.fit, **_of(Fit, settings))
        per_step = fit.batch_size * accumulation
        samples = replace(self.samples, samples_per_step=per_step, **_of(Samples, settings))
        return TrainConfig(samples, replace(self.learning, **_of(Learning, settings)), fit)

    @property
    def accumulation(self) -> int:
        """Batches per step: their gradients are averaged before the weights change. Several processes share them."""
        return self.samples.samples_per_step // self.fit.batch_size

    def described(self) -> dict[str, str]:
        """Return the settings as metadata of a LoRA file: kohya's ``ss_*`` keys, and all as ``mudi_config``."""
        samples, learning = self.samples, self.learning
        return {
            "ss_network_dim": str(learning.rank),
            "ss_network_alpha": str(learning.lora_alpha),
            "ss_learning_rate": str(learning.learning_rate),
            "ss_unet_lr": str(learning.learning_rate),
            "ss_optimizer": learning.optimizer,
            "ss_lr_scheduler": learning.lr_schedule,
            "ss_lr_warmup_steps": str(learning.lr_warmup),
            "ss_steps": str(samples.steps),
            "ss_max_train_steps": str(samples.steps),
            "ss_total_batch_size": str(samples.samples_per_step),
            "ss_gradient_accumulation_steps": str(self.accumulation),
            "ss_resolution": f"({samples.size[0]}, {samples.size[1]})",
            "ss_min_snr_gamma": str(learning.min_snr_gamma),
            "ss_noise_offset": str(learning.noise_offset),
            "ss_mixed_precision": "bf16" if learning.precision == "bf16" else "no",
            "ss_seed": str(samples.seed),
            "mudi_config": self.to_json(),
        }

    def flat(self) -> dict[str, Any]:
        """Return the value of each of `SETTINGS`."""
        every = {**vars(self.samples), **vars(self.learning), **vars(self.fit), "accumulation": self.accumulation}
        return {name: every[name] for name in SETTINGS}

    def to_json(self) -> str:
        """Return all of `SETTINGS`, sorted by name: for metadata, and to tell two configurations apart.

        Those in `parts.CAME_LATER` are there only when they are other than before.
        """
        return _json(self.flat())

    def run_json(self) -> str:
        """Return only the settings that a resumed run must share with the stopped one."""
        return _json({**vars(self.samples), **vars(self.learning)})


def plan_json(samples: Samples) -> str:
    """Return the settings that decide which samples are drawn, sorted by name."""
    return _json(vars(samples))


def _of(part: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that belong to a part."""
    names = {one.name for one in fields(part)}
    return {name: value for name, value in settings.items() if name in names}


def _flat() -> dict[str, Any]:
    kinds = {name: kind for part in (Samples, Learning, Fit) for name, kind in get_type_hints(part).items()}
    del kinds["samples_per_step"]  # users give this as batch size times accumulation
    return {**kinds, "accumulation": int}


SETTINGS: dict[str, Any] = _flat()
"""Every setting by its name, with the type of its value."""


def _json(values: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return vars(value)
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"{type(value).__name__} has no JSON form")

    different = {name: value for name, value in values.items() if name not in CAME_LATER or value != CAME_LATER[name]}
    return json.dumps(different, default=plain, sort_keys=True)
