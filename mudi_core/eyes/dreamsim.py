"""DreamSim (Fu et al., arXiv 2306.09344): an ensemble trained on judgements by people; an optional package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..types import MudiError
from .pixels import stretched, to_square, unit_vectors
from .weights import MissingWeights, default_folder

SIDE = 224
WIDTH = 1792
ARCHIVE = (
    "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/dreamsim_ensemble_checkpoint.zip"
)
CONTENT = (
    "dino_vitb16_pretrain.pth",
    "clip_vitb16_pretrain.pth.tar",
    "open_clip_vitb16_pretrain.pth.tar",
    "ensemble_lora",
)


class MissingPackage(MudiError):
    """The optional package dreamsim is not installed, or cannot be imported."""


class DreamsimEmbedder:
    """An `Embedder` with `WIDTH` numbers per picture; DreamSim's distance is 1 - the cosine of two of them."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.framed: Callable[[Tensor, int], Tensor] = to_square
        """Makes of a picture ``[h, w, 3]`` what the model sees, ``[1, 3, side, side]``, 0..1."""

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        return unit_vectors(images, lambda image: self.framed(image.to(self.device), SIDE), self.model.embed, WIDTH)


def load(path: Path | None, device: torch.device) -> DreamsimEmbedder:
    """Load the DreamSim ensemble from a folder that holds the unpacked archive of its weights.

    Raise `MissingPackage`, or `MissingWeights` when the folder (default: `default_folder()` / "dreamsim") is
    incomplete: otherwise the package would start a download.
    """
    folder = path or default_folder() / "dreamsim"
    missing = [name for name in CONTENT if not (folder / name).exists()]
    if missing:
        raise MissingWeights(
            f"DreamSim's weights are not in {folder} ({missing[0]} is missing). Unpack {ARCHIVE} there."
        )
    try:
        from dreamsim import dreamsim
    except ImportError as error:
        raise MissingPackage(
            f"DreamSim is an optional package that is not installed here ({error}). Install it with "
            "'pip install dreamsim', or choose the embedder 'dinov2'."
        ) from error
    model, _ = dreamsim(pretrained=True, device=str(device), cache_dir=str(folder), dreamsim_type="ensemble")
    return DreamsimEmbedder(model, device)


def load_official(path: Path | None, device: torch.device) -> DreamsimEmbedder:
    """Load DreamSim as `load` does; it sees stretched pictures. Raise `MissingPackage` or `MissingWeights`."""
    embedder = load(path, device)
    embedder.framed = stretched
    return embedder
