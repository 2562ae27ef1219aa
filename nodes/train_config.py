"""What Train LoRA's widgets, its Train Settings and the card come to: the settings of one training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..mudi_core.train.config import GOING_ON, TrainConfig
from ..mudi_core.train.memory import memory_settings
from ..mudi_core.train.parts import PRODIGY_RATE
from .base import computes_in_bf16
from .sockets import TrainingSet, TrainSettings

if TYPE_CHECKING:
    from ..mudi_core.bases.families import Family
    from ..mudi_core.stage.layout_config import LayoutConfig


PRESETS: dict[str, dict[str, Any]] = {
    "auto": {},
    "SDXL, 1024 px": {"resolution": 1024},
    "SDXL, 1024 px, less memory": {"resolution": 1024, "gradient_checkpointing": "full"},
    "SDXL, 768 px, less memory": {"resolution": 768, "gradient_checkpointing": "full"},
    "mini, 192 px": {"resolution": 192, "dco_beta": 0.0},
    "SD 1.5 and 2, 512 px": {"resolution": 512},
    "SD 2, 768 px": {"resolution": 768},
    **GOING_ON,
}
"""The choices of ``preset`` and their settings; "auto" has none of its own and takes what is usual for the model, and
those that go on from a LoRA take it for all else."""
LOSSES = ("as the preset", "paper", "DCO")

_USUAL_AT_0 = ("steps", "rank", "learning_rate", "batch_size")
"""Widgets whose 0 leaves the setting to what is usual for the kind of model."""


def config_of(
    family: Family, chosen: Mapping[str, Any], dataset: TrainingSet, settings: TrainSettings, preview_every: int
) -> TrainConfig:
    """Return the settings that follow from the widgets, the dataset, Train Settings and the card.

    A widget at 0 leaves its setting to what is usual for the kind of model. A card too small for a batch takes its
    images one by one, and the steps stay as they are.
    """
    usual, preset = TrainConfig.usual(family), PRESETS[chosen["preset"]]
    start = TrainConfig() if preset and chosen["preset"] not in GOING_ON else usual
    at_0 = {name: preset.get(name, usual.flat()[name]) for name in _USUAL_AT_0}
    if settings.values.get("optimizer") == "prodigy":
        at_0["learning_rate"] = PRODIGY_RATE
    values = {
        "method": chosen["method"],
        "seed": chosen["seed"],
        "segmix_prob": dataset.segmix_prob,
        "layout": layout_for(family, dataset.layout),
        "background_weight": dataset.background_weight,
        "captions": family.captions if dataset.captions == "auto" else dataset.captions,
        "caption_template": dataset.caption_template,
        "compose_with_others": dataset.others is not None,
        "black_canvas": usual.samples.black_canvas,
        "precision": "bf16" if computes_in_bf16(family) else "fp32",
        "preview_every": preview_every,
        **{name: chosen[name] or value for name, value in at_0.items()},
        "target_modules": usual.learning.target_modules,
        **{name: value for name, value in preset.items() if name not in _USUAL_AT_0},
        **settings.values,
    }
    if chosen["loss"] == "paper":
        values["dco_beta"] = 0.0
    elif chosen["loss"] == "DCO" or values.get("dco_beta", start.learning.dco_beta) > 0:
        values["dco_beta"] = settings.dco_beta
    if settings.gigabytes is not None:
        values |= _fitting(settings.gigabytes, values)
    return start.but(**values)


def layout_for(family: Family, layout: LayoutConfig) -> LayoutConfig:
    """Return the layout of compositions for a kind of model: the dataset decides only overlap and relative sizes."""
    return replace(layout, **{name: value for name, value in family.layout.items() if name != "max_overlap"})


def _fitting(gigabytes: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a card of so many gigabytes needs, to replace those in ``values``."""
    needed = memory_settings(gigabytes)
    if values.get("optimizer", "adamw") != "adamw":
        needed.pop("optimizer", None)
    if needed.get("batch_size") == 1:
        needed["accumulation"] = values["batch_size"] * values.get("accumulation", 1)
    return needed
