"""DINO (Caron et al., arXiv 2104.14294), ViT-S/16: the "DINO" in tables of personalized pictures since DreamBooth's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .pixels import IMAGENET, middle, scaled, unit_vectors
from .pretrained import by_hand, read_model

if TYPE_CHECKING:
    from transformers import ViTModel

SIDE = 224


class DinoEmbedder:
    """An `Embedder`: the class token after the last layer, of the middle of a picture."""

    def __init__(self, model: ViTModel, device: torch.device) -> None:
        self.model = cast(Any, model)  # the library types neither its configs nor its decorated `to` usefully
        self.model.to(device).eval()
        self.device = device

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        def look(pixels: Tensor) -> Tensor:
            tokens: Tensor = self.model(pixel_values=scaled(pixels, IMAGENET)).last_hidden_state
            return tokens[:, 0]

        return unit_vectors(
            images, lambda image: middle(image.to(self.device), SIDE), look, self.model.config.hidden_size
        )


def load(path: Path | None, device: torch.device) -> DinoEmbedder:
    """Read DINO ViT-S/16 from a folder with ``config.json`` and ``model.safetensors``.

    Without a path it is looked for in the default folder. Raise `MissingWeights` or `BadWeights`.
    """
    from transformers import ViTModel

    path = path or by_hand("dino-vits16", "https://huggingface.co/facebook/dino-vits16")
    return DinoEmbedder(read_model(ViTModel, path, "a DINO", add_pooling_layer=False), device)
