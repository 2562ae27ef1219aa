"""What is usual for each kind of base model, so that nobody has to set it by hand.

A new family is one entry here, beside the module that reads its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EMBEDDED = "mini"
"""The base model that comes with the package, by the name that a user types."""
BUILT_IN = (EMBEDDED,)
"""All such; any other base model is a file or a folder."""


@dataclass(frozen=True)
class Family:
    """A kind of base model."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a training, where they are not `TrainConfig`'s own."""
    pictures: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 1})
    """Settings of pictures, where they are not `GenerateConfig`'s own."""
    max_overlap: float | None = None
    """Of figures in compositions and starts, where it is not `LayoutConfig`'s own."""
    eye: str | None = None
    """The detector, segmenter and embedder that know its pictures; None: the first of each in the table of eyes."""
    threshold: float = 0.25
    """Least confidence of the detector in pictures that it has made, 0..1."""
    photo_threshold: float = 0.25
    """The same in photos, which show one subject each."""
    cut_out: bool = False
    """Compare with the subjects cut out, as the figures in its pictures are."""
    prior_prompt: str | None = None
    """What pictures of other members of a class are asked for with, "a photo of {}"; None: the official code's."""
    bf16: bool = True
    """Whether it computes in bfloat16 where the card can."""


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
            "dco_beta": 0.0,  # so small a model needs no holding back
        },
        pictures={"steps": 20, "guidance": 5.0, "gamma": 2.0, "batch_size": 8},
        max_overlap=0.2,
        eye=EMBEDDED,
        threshold=0.05,  # low, since the detector doubts what a small model draws
        photo_threshold=0.03,
        cut_out=True,
        prior_prompt="a photo of {}",
        bf16=False,
    ),
}
"""By kohya's name of an architecture, or by the name of a base model of ours. The embedded one's were chosen on
development pairs alone (`toy.world.DEV_PAIRS`)."""


def usual(base: str | Path, kohya: str = "sdxl_base_v1-0") -> Family:
    """Return what is usual for a base model: by its own name if it has an entry, else by kohya's for its architecture.

    SD 1.x that predicts v is as SD 1.x; kinds without an entry are as SDXL.
    """
    return FAMILIES.get(str(base)) or FAMILIES.get(kohya) or FAMILIES.get(kohya.removesuffix("_v"), Family())
