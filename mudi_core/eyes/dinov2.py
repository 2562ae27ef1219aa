"""DINOv2 (Oquab et al., arXiv 2304.07193) says how alike two pictures look, through transformers' own model class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..types import VerdictLimits
from .pixels import IMAGENET, middle, scaled, to_square, unit_vectors
from .pretrained import read_model

if TYPE_CHECKING:
    from transformers import Dinov2Model


class Dinov2Embedder:
    """An `Embedder`: the mean of the last hidden state over all tokens, as in the official Detect-and-Compare."""

    def __init__(
        self,
        model: Dinov2Model,
        device: torch.device,
        side: int = 224,
        framed: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.model = cast(Any, model)  # the library types neither its configs nor its decorated `to` usefully
        self.model.to(device).eval()
        if side % self.model.config.patch_size:
            raise ValueError(f"side {side} is not a multiple of the patch size {self.model.config.patch_size}")
        self.device = device
        self.side = side
        self.framed = framed or to_square
        """Makes of a picture ``[h, w, 3]`` what the model sees, ``[1, 3, side, side]``, 0..1."""
        self.verdict_limits = VerdictLimits()

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        def look(pixels: Tensor) -> Tensor:
            tokens: Tensor = self.model(pixel_values=scaled(pixels, IMAGENET)).last_hidden_state
            return tokens.mean(dim=1)

        def framed(image: Tensor) -> Tensor:
            return self.framed(image.to(self.device), self.side)

        return unit_vectors(images, framed, look, self.model.config.hidden_size)


def load(path: Path, device: torch.device, side: int = 224) -> Dinov2Embedder:
    """Read a DINOv2 from a folder with ``config.json`` and ``model.safetensors``; it sees pictures of ``side`` pixels.

    Raise `BadWeights` when the folder holds something else.
    """
    from transformers import Dinov2Model

    return Dinov2Embedder(read_model(Dinov2Model, path, "a DINOv2"), device, side)


def load_official(path: Path, device: torch.device) -> Dinov2Embedder:
    """Read a DINOv2 as `load` does; it sees the middle of a picture. Raise `BadWeights`."""
    embedder = load(path, device)
    embedder.framed = middle
    return embedder
