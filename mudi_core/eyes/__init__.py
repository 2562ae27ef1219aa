"""The four promises a model makes to the rest of the library, and the table of those who keep them.

A new backend is one file here, one line in a table, one test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

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


T = TypeVar("T")
Loader = Callable[["Path | None", "torch.device"], T]


def _owlv2(path: Path | None, device: torch.device) -> Detector:
    from .owlv2 import load

    return load(path or locate("owlv2-base"), device)


def _mini_detector(path: Path | None, device: torch.device) -> Detector:
    from .embedded import mini_detector

    return mini_detector()


def _sam(size: str) -> Loader[Segmenter]:
    def load_sam(path: Path | None, device: torch.device) -> Segmenter:
        from .sam import load

        return load(path or locate(f"sam-vit-{size}"), device)

    return load_sam


def _mini_segmenter(path: Path | None, device: torch.device) -> Segmenter:
    from .embedded import mini_segmenter

    return mini_segmenter()


def _dinov2(path: Path | None, device: torch.device) -> Embedder:
    from .dinov2 import load

    return load(path or locate("dinov2-base"), device)


def _dreamsim(path: Path | None, device: torch.device) -> Embedder:
    from .dreamsim import load

    return load(path, device)


def _clip(path: Path | None, device: torch.device) -> Embedder:
    from .clip import load

    return load(path or locate("clip-vit-large"), device)


def _clip_scorer(path: Path | None, device: torch.device) -> TextScorer:
    from .clip import ClipScorer, load

    return ClipScorer(load(path or locate("clip-vit-large"), device))


def _image_reward(path: Path | None, device: torch.device) -> TextScorer:
    from .image_reward import load

    return load(path, device)


def _mini_embedder(path: Path | None, device: torch.device) -> Embedder:
    from .embedded import mini_embedder

    return mini_embedder()


DETECTORS: Mapping[str, Loader[Detector]] = {"mini": _mini_detector, "owlv2": _owlv2}
SEGMENTERS: Mapping[str, Loader[Segmenter]] = {
    "mini": _mini_segmenter,
    "sam-vit-b": _sam("b"),
    "sam-vit-l": _sam("l"),
    "sam-vit-h": _sam("h"),
}
EMBEDDERS: Mapping[str, Loader[Embedder]] = {
    "mini": _mini_embedder,
    "dinov2": _dinov2,
    "dreamsim": _dreamsim,
    "clip": _clip,
}
TEXT_SCORERS: Mapping[str, Loader[TextScorer]] = {"clip": _clip_scorer, "image-reward": _image_reward}


def load_detector(name: str, path: Path | None, device: torch.device) -> Detector:
    """Load a detector by its name; without a path its weights are looked for in the default folder."""
    return _loader(DETECTORS, name, "detector")(path, device)


def load_segmenter(name: str, path: Path | None, device: torch.device) -> Segmenter:
    """Load a segmenter by its name; with a path, the size of a SAM is read from the file, whatever the name says."""
    return _loader(SEGMENTERS, name, "segmenter")(path, device)


def load_embedder(name: str, path: Path | None, device: torch.device) -> Embedder:
    """Load an embedder by its name; without a path its weights are looked for in the default folder."""
    return _loader(EMBEDDERS, name, "embedder")(path, device)


def load_text_scorer(name: str, path: Path | None, device: torch.device) -> TextScorer:
    """Load a text scorer by its name; without a path its weights are looked for in the default folder."""
    return _loader(TEXT_SCORERS, name, "text scorer")(path, device)


def _loader(table: Mapping[str, Loader[T]], name: str, kind: str) -> Loader[T]:
    if name not in table:
        raise UnknownBackend(f"No {kind} is called '{name}'; there are: {', '.join(table)}.")
    return table[name]
