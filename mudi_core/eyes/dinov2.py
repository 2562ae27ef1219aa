"""DINOv2 (Oquab et al., arXiv 2304.07193) says how alike two pictures look, through transformers' own model class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..types import VerdictLimits
from .pretrained import read_model

if TYPE_CHECKING:
    from transformers import Dinov2Model

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCH = 16


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

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        vectors = []
        for start in range(0, len(images), BATCH):
            batch = torch.cat(
                [self.framed(image.to(self.device), self.side) for image in images[start : start + BATCH]]
            )
            mean, std = (batch.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            tokens = self.model(pixel_values=(batch - mean) / std).last_hidden_state
            vectors.append(functional.normalize(tokens.mean(dim=1).float(), dim=1).cpu())
        return torch.cat(vectors) if vectors else torch.empty(0, self.model.config.hidden_size)


def to_square(image: Tensor, side: int) -> Tensor:
    """Put a picture ``[h, w, 3]`` in the middle of a white square and resize it to ``[1, 3, side, side]``, 0..1."""
    height, width = image.shape[:2]
    longest = max(height, width)
    left, top = (longest - width) // 2, (longest - height) // 2
    pixels = image.permute(2, 0, 1)[None].float()
    pixels = functional.pad(pixels, (left, longest - width - left, top, longest - height - top), value=1.0)
    if longest == side:
        return pixels
    return functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def middle(image: Tensor, side: int, within: float = 8 / 7) -> Tensor:
    """Return the middle of a picture ``[h, w, 3]``, ``[1, 3, side, side]``; its shorter side became `within` of it.

    So transformers' processor of DINOv2 does (256 pixels, of which it cuts 224), and with it the official code.
    """
    height, width = image.shape[:2]
    scale = side * within / min(height, width)
    size = (max(side, int(height * scale)), max(side, int(width * scale)))
    pixels = functional.interpolate(
        image.permute(2, 0, 1)[None].float(), size, mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return pixels[:, :, top : top + side, left : left + side]


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
