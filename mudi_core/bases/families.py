"""The usual settings for each kind of base model, so that nobody has to set them by hand.

A new family is one entry here, plus the module that reads its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EMBEDDED = "mini"
"""The name that a user types for the base model that comes with the package."""
BUILT_IN = (EMBEDDED,)
"""The names of all base models in the package; every other base model is a file or a folder."""


@dataclass(frozen=True)
class Family:
    """A kind of base model."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a training that differ from the defaults of `TrainConfig`."""
    pictures: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 1})
    """Settings of pictures that differ from the defaults of `GenerateConfig`."""
    max_overlap: float | None = None
    """Largest overlap of figures in compositions and starts; None: the default of `LayoutConfig`."""
    eye: str | None = None
    """The detector, segmenter and embedder for its pictures; None: the first of each role in the table of eyes."""
    threshold: float = 0.25
    """Least confidence of the detector in pictures of this model, 0..1."""
    photo_threshold: float = 0.25
    """The same in photos, which show one subject each."""
    cut_out: bool = False
    """Compare pictures with the cut-out subjects instead of the whole photos."""
    prior_prompt: str | None = None
    """The prompt for pictures of other members of a class, such as "a photo of {}"; None: the official code's."""
    bf16: bool = True
    """Whether it computes in bfloat16 on cards that can."""
    captions: str = "sentence"
    """How its texts are usually written: a style of Seg-Mix's captions."""


FAMILIES: dict[str, Family] = {
    "sdxl_base_v1-0": Family({"resolution": 1024}),
    "sd_v1": Family({"resolution": 512}),
    "sd_v2": Family({"resolution": 512}),
    "sd_v2_v": Family({"resolution": 768}),
    EMBEDDED: Family(
        training={
            "resolution": 192,
            "steps": 300,
            "batch_size": 8,
            "rank": 16,
            "learning_rate": 1e-3,
            "token_learning_rate": 2e-2,  # the best of 1e-3, 5e-3, 2e-2 and 5e-2
            "dco_beta": 0.0,  # a model this small needs no regularization
        },
        pictures={"steps": 20, "guidance": 5.0, "gamma": 2.0, "batch_size": 8},
        max_overlap=0.2,
        eye=EMBEDDED,
        threshold=0.05,  # low, because the detector is unsure about the pictures of a small model
        photo_threshold=0.03,
        cut_out=True,
        prior_prompt="a photo of {}",
        bf16=False,
    ),
}
"""Families by kohya's name of the architecture, or by the name of a base model in the package. The settings of the
embedded model were chosen only on development pairs (`toy.world.DEV_PAIRS`)."""


def usual(base: str | Path, kohya: str = "sdxl_base_v1-0") -> Family:
    """Return the usual settings for a base model.

    A base model with an entry of its own has that entry, any other the entry of its architecture, by kohya's name. SD
    1.x that predicts v has the settings of SD 1.x; kinds without an entry have those of SDXL.
    """
    return FAMILIES.get(str(base)) or FAMILIES.get(kohya) or FAMILIES.get(kohya.removesuffix("_v"), Family())
