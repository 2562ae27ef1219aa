"""Four promises that a model makes to the rest of the library, and the table of the models that keep them.

A new model is one file here, one line in the table and one test.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..bases.families import EMBEDDED
from ..types import MudiError
from .weights import locate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..types import Detections


class UnknownBackend(MudiError):
    """A name that is not in the table of detectors, segmenters, embedders and text scorers."""


class Detector(Protocol):
    """Finds what a text names in a picture."""

    def __call__(self, image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
        """Find what matches the text queries in a float image ``[h, w, 3]``, with at least `threshold` (0..1)."""


class Segmenter(Protocol):
    """Cuts out what stands in a box."""

    def __call__(self, image: Tensor, xyxy: Tensor) -> Tensor:
        """Return masks ``[n, h, w]``, float, 0 or 1, of what stands in boxes ``[n, 4]`` (pixels) of an image.

        ``image``: float ``[h, w, 3]``, 0..1.
        """


class Embedder(Protocol):
    """Turns pictures into vectors that say how alike they look.

    One whose verdicts were validated has an attribute `verdict_limits` (`VerdictLimits`).
    """

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Return unit vectors ``[n, d]`` on the CPU for n float images ``[h, w, 3]`` of any sizes.

        One that compares faces returns zeros for an image without a face: it is like nothing.
        """


class TextScorer(Protocol):
    """Says how well a picture shows a text."""

    def __call__(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """Return float ``[n, m]`` on the CPU: how well each of n float images ``[h, w, 3]`` shows each of m texts."""


Role = Literal["detector", "segmenter", "embedder", "text scorer"]


@dataclass(frozen=True)
class Eye:
    """A model that keeps one of the promises, and where to get it."""

    role: Role
    load: str
    """Its module in this folder, and the function there that loads it from a path to a device."""
    weights: str | None = None
    """Its name in `pins.TABLE`; None: it has or finds its own weights."""
    folder: str | None = None
    """Its folder below ComfyUI's models folder; None: it comes with the package."""
    official: bool = False
    """It sees pictures as the official code of a paper shows them to it, for figures to compare with published ones."""


EYES: tuple[tuple[str, Eye], ...] = (
    ("owlv2", Eye("detector", "owlv2.load", "owlv2-base", "owlv2")),
    ("sam-vit-b", Eye("segmenter", "sam.load", "sam-vit-b", "sams")),
    ("sam-vit-l", Eye("segmenter", "sam.load", "sam-vit-l", "sams")),
    ("sam-vit-h", Eye("segmenter", "sam.load", "sam-vit-h", "sams")),
    ("dinov2", Eye("embedder", "dinov2.load", "dinov2-base", "dinov2")),
    ("dreamsim", Eye("embedder", "dreamsim.load", None, "dreamsim")),
    ("clip", Eye("embedder", "clip.load", "clip-vit-large", "clip_vit")),
    ("sface", Eye("embedder", "sface.load", "sface", "faces")),
    ("clip", Eye("text scorer", "clip.load_scorer", "clip-vit-large", "clip_vit")),
    ("image-reward", Eye("text scorer", "image_reward.load", None, "image_reward")),
    ("owlv2-official", Eye("detector", "owlv2.load_official", "owlv2-base", "owlv2", official=True)),
    ("dinov2-official", Eye("embedder", "dinov2.load_official", "dinov2-base", "dinov2", official=True)),
    ("dreamsim-official", Eye("embedder", "dreamsim.load_official", None, "dreamsim", official=True)),
    ("clip-b32", Eye("embedder", "clip.load_base", official=True)),
    ("clip-b32", Eye("text scorer", "clip.load_base_scorer", official=True)),
    ("clip-b32-2.5", Eye("text scorer", "clip.load_base_scaled", official=True)),
    ("dino-s16", Eye("embedder", "dino.load", official=True)),
    (EMBEDDED, Eye("detector", "embedded.load_detector")),
    (EMBEDDED, Eye("segmenter", "embedded.load_segmenter")),
    (EMBEDDED, Eye("embedder", "embedded.load_embedder")),
)
"""All models by name; the command line, the nodes and the benchmark read only this table. The first of each role is the
usual one."""


def eyes(role: Role) -> dict[str, Eye]:
    """Return the models of a role, by name; the first is the usual one."""
    return {name: eye for name, eye in EYES if eye.role == role}


def load_detector(name: str, path: Path | None, device: torch.device) -> Detector:
    """Load a detector by its name in `EYES`; without a path, look for its weights in the default folder.

    Raise `UnknownBackend`, `MissingWeights` or `BadWeights`.
    """
    found: Detector = _load("detector", name, path, device)
    return found


def load_segmenter(name: str, path: Path | None, device: torch.device) -> Segmenter:
    """Load a segmenter by its name in `EYES`; without a path, look for its weights in the default folder.

    With a path, the file itself says which size of SAM it is, whatever the name. Raise `UnknownBackend`,
    `MissingWeights` or `BadWeights`.
    """
    found: Segmenter = _load("segmenter", name, path, device)
    return found


def load_embedder(name: str, path: Path | None, device: torch.device) -> Embedder:
    """Load an embedder by its name in `EYES`; without a path, look for its weights in the default folder.

    Raise `UnknownBackend`, `MissingWeights` or `BadWeights`.
    """
    found: Embedder = _load("embedder", name, path, device)
    return found


def load_text_scorer(name: str, path: Path | None, device: torch.device) -> TextScorer:
    """Load a text scorer by its name in `EYES`; without a path, look for its weights in the default folder.

    Raise `UnknownBackend`, `MissingWeights` or `BadWeights`.
    """
    found: TextScorer = _load("text scorer", name, path, device)
    return found


def _load(role: Role, name: str, path: Path | None, device: torch.device) -> Any:
    known = eyes(role)
    if name not in known:
        raise UnknownBackend(f"No {role} is called '{name}'; there are: {', '.join(known)}.")
    module, _, function = known[name].load.partition(".")
    if path is None and (wanted := known[name].weights) is not None:
        path = locate(wanted)
    return getattr(importlib.import_module(f".{module}", __package__), function)(path, device)
