"""DINO (Caron et al., arXiv 2104.14294), ViT-S/16: the "DINO" in tables of personalized pictures since DreamBooth's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from .dinov2 import BATCH, IMAGENET_MEAN, IMAGENET_STD, middle
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

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        vectors = [torch.empty(0, self.model.config.hidden_size)]
        for start in range(0, len(images), BATCH):
            batch = torch.cat([middle(image.to(self.device), SIDE) for image in images[start : start + BATCH]])
            mean, std = (batch.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            tokens = self.model(pixel_values=(batch - mean) / std).last_hidden_state
            vectors.append(functional.normalize(tokens[:, 0].float(), dim=1).cpu())
        return torch.cat(vectors)


def load(path: Path | None, device: torch.device) -> DinoEmbedder:
    """Read DINO ViT-S/16 from a folder with ``config.json`` and ``model.safetensors``.

    Without a path it is looked for in the default folder. Raise `MissingWeights` or `BadWeights`.
    """
    from transformers import ViTModel

    path = path or by_hand("dino-vits16", "https://huggingface.co/facebook/dino-vits16")
    return DinoEmbedder(read_model(ViTModel, path, "a DINO", add_pooling_layer=False), device)
