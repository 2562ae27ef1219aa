"""The socket types of this pack, and those of ComfyUI that have no class in its API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from comfy_api.latest import io
from torch import Tensor

from ..mudi_core.jobs.generate import GenerateConfig
from ..mudi_core.stage.cutouts import CutOuts
from ..mudi_core.stage.layout_config import LayoutConfig
from ..mudi_core.stage.segmix import compose
from ..mudi_core.types import Layout, Mix, SubjectSet

Subjects = io.Custom("MUDI_SUBJECTS")
"""Carries a `SubjectSet`."""
Dataset = io.Custom("MUDI_DATASET")
"""Carries a `TrainingSet`."""
Settings = io.Custom("MUDI_TRAIN_SETTINGS")
"""Carries a `TrainSettings`."""
PreviewSocket = io.Custom("MUDI_TRAIN_PREVIEW")
"""Carries a `TrainPreview`."""
LayoutSocket = io.Custom("MUDI_LAYOUT")
"""Carries a `PlacedSubjects`."""
LorasSocket = io.Custom("MUDI_LORAS")
"""Carries a tuple of `SubjectLora`."""
ResidualsSocket = io.Custom("MUDI_RESIDUALS")
"""Carries a tuple of the library's `Residual`."""
LAYOUTS = "mudi_layouts"
"""In a LATENT of Init Latent: the `Layout` of each picture of its batch."""
LayersSocket = io.Custom("LAYERS")
"""Core's, in newer ComfyUI: a document of layers with places."""
BoundingBoxes = io.Custom("BOUNDING_BOX")
"""Core's: a list of `BoundingBox` for each image."""


class ChoiceOutput(io.Combo.Output):  # type: ignore[misc]
    """An output for a widget of choices, whose kind is the list of them, as it is for stock samplers in the older API.

    Newer ComfyUI calls such an output COMBO, and refuses the link at a node of the older API.
    """

    @property
    def io_type(self) -> list[str]:
        choices: list[str] = self.options  # the very list, to which other packs may add
        return choices


def boxes_input(tooltip: str, optional: bool = False, name: str = "boxes") -> io.Input:
    """Return an input for boxes. It is a socket even where the frontend has a widget for a single box."""
    return BoundingBoxes.Input(name, optional=optional, tooltip=tooltip, extra_dict={"forceInput": True})


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What Train LoRA learns from, and how its compositions are made."""

    subjects: SubjectSet
    priors: SubjectSet | None = None
    """Pictures of other members of each class."""
    segmix_prob: float = 0.3
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    background_weight: float = 1.0
    captions: str = "auto"
    """A style of `stage.captions.STYLES`, or "auto": what is usual for the kind of model."""
    caption_template: str = ""
    others: SubjectSet | None = None
    """Strangers to compose the subjects with; their tokens mean nothing."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings of Train LoRA that go beyond its own widgets."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig` by name, in place of the node's."""
    gigabytes: int | None = None
    """Of the card that it has to fit into: a preset of `memory.MEMORY`."""
    start: Path | None = None
    """A LoRA to begin with."""
    dco_beta: float = 1000.0
    """Strength of DCO, where that is the loss."""
    diffusers_file: bool = False
    """Write the LoRA for diffusers, too, where that reads only a form of its own."""


@dataclass(frozen=True, eq=False)
class PlacedSubjects:
    """Cut-out subjects and how to place them: canvases are drawn from this."""

    cutouts: CutOuts
    config: GenerateConfig
    """Its size, seed, layout, arrangement, places and poses count, and are those of the Layout node."""
    scene: Tensor | None = None
    """A picture ``[h, w, 3]``, 0..1, of that size, that they are put into."""

    def canvas(self, layout: Layout) -> Mix:
        """Draw a layout, in the scene or on white."""
        return compose(layout, self.cutouts) if self.scene is None else compose(layout, self.cutouts, self.scene)


@dataclass(frozen=True)
class SubjectLora:
    """A LoRA and whom it was taught."""

    path: Path
    subject: str
    """Its token, name or class noun in a layout; empty where the file or the order says it."""
    strength: float
    text_strength: float
    """Of its part for the text encoders."""


@dataclass(frozen=True, eq=False)
class TrainPreview:
    """The pictures that Train LoRA samples on its way, and the models that judge them."""

    layout: PlacedSubjects
    positive: Any
    negative: Any
    """Conditionings, as samplers take them."""
    every: int
    """Training steps between two previews."""
    seeds: tuple[int, ...]
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    detector: str
    embedder: str
    """Choices of `host.eye_choices`."""
    threshold: float
    cut_out: bool


class BoundingBox(TypedDict):
    """A box in pixels of its image; ``x`` and ``y`` are the upper left corner."""

    x: float
    y: float
    width: float
    height: float
    score: float
