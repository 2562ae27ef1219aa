"""The four promises a model makes to the rest of the library, and the table of those who keep them.

A new one is one file here, one line in the table, one test.
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
    """A name that the table of detectors, segmenters or embedders does not have."""


class Detector(Protocol):
    def __call__(self, image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
        """Find in a float image ``[h, w, 3]`` whatever answers a text query with at least `threshold` (0..1)."""


class Segmenter(Protocol):
    def __call__(self, image: Tensor, xyxy: Tensor) -> Tensor:
        """Masks ``[n, h, w]``, float, 0 or 1, of what stands in the boxes ``[n, 4]`` (pixels) of an ``[h, w, 3]``."""


class Embedder(Protocol):
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Vectors ``[n, d]`` of unit length, on the CPU, of n float images ``[h, w, 3]`` of any sizes."""


class TextScorer(Protocol):
    def __call__(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """Float ``[n, m]`` on the CPU: how well each of n float images ``[h, w, 3]`` shows each of m texts."""


Role = Literal["detector", "segmenter", "embedder", "text scorer"]


@dataclass(frozen=True)
class Eye:
    """One who keeps a promise, and where it is had from."""

    role: Role
    load: str
    """Its module in this room, and the function there that loads it from a path onto a device."""
    weights: str | None = None
    """Its name in `weights.TABLE`; None: it brings or finds its own."""
    folder: str | None = None
    """The folder of ComfyUI's models where it lies, with others of its kind; None: it comes with the package."""


EYES: tuple[tuple[str, Eye], ...] = (
    ("owlv2", Eye("detector", "owlv2.load", "owlv2-base", "owlv2")),
    ("sam-vit-b", Eye("segmenter", "sam.load", "sam-vit-b", "sams")),
    ("sam-vit-l", Eye("segmenter", "sam.load", "sam-vit-l", "sams")),
    ("sam-vit-h", Eye("segmenter", "sam.load", "sam-vit-h", "sams")),
    ("dinov2", Eye("embedder", "dinov2.load", "dinov2-base", "dinov2")),
    ("dreamsim", Eye("embedder", "dreamsim.load", None, "dreamsim")),
    ("clip", Eye("embedder", "clip.load", "clip-vit-large", "clip_vit")),
    ("clip", Eye("text scorer", "clip.load_scorer", "clip-vit-large", "clip_vit")),
    ("image-reward", Eye("text scorer", "image_reward.load", None, "image_reward")),
    (EMBEDDED, Eye("detector", "embedded.load_detector")),
    (EMBEDDED, Eye("segmenter", "embedded.load_segmenter")),
    (EMBEDDED, Eye("embedder", "embedded.load_embedder")),
)
"""All that there are, by name: the command line, the nodes and the benchmark read nothing else. Of each role the first
is the usual one."""


def eyes(role: Role) -> dict[str, Eye]:
    """Return those of a role, by name."""
    return {name: eye for name, eye in EYES if eye.role == role}


def load_detector(name: str, path: Path | None, device: torch.device) -> Detector:
    """Load a detector by its name; without a path its weights are looked for in the default folder."""
    found: Detector = _load("detector", name, path, device)
    return found


def load_segmenter(name: str, path: Path | None, device: torch.device) -> Segmenter:
    """Load a segmenter by its name; with a path, the size of a SAM is read from the file, whatever the name says."""
    found: Segmenter = _load("segmenter", name, path, device)
    return found


def load_embedder(name: str, path: Path | None, device: torch.device) -> Embedder:
    """Load an embedder by its name; without a path its weights are looked for in the default folder."""
    found: Embedder = _load("embedder", name, path, device)
    return found


def load_text_scorer(name: str, path: Path | None, device: torch.device) -> TextScorer:
    """Load a text scorer by its name; without a path its weights are looked for in the default folder."""
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
