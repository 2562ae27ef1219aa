"""The image encoder of a CLIP, as reference adapters read it: a vector of each picture, or all that it sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .pixels import CLIP, scaled, to_square
from .pretrained import read_model

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection


class Vision:
    """The encoder; a picture is padded to a white square."""

    def __init__(self, model: CLIPVisionModelWithProjection, device: torch.device) -> None:
        self.model = cast(Any, model)  # the library types neither its configs nor its decorated `to` usefully
        self.model.to(device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Tensor], patches: bool) -> Tensor:
        """Return what it sees of pictures ``[h, w, 3]``, on the CPU: vectors ``[n, c]``, or with `patches` the states
        before its last layer, ``[n, tokens, c]``."""
        side = self.model.config.image_size
        pixels = torch.cat([to_square(one, side) for one in pictures]).to(self.device)
        seen = self.model(pixel_values=scaled(pixels, CLIP), output_hidden_states=patches)
        found: Tensor = seen.hidden_states[-2] if patches else seen.image_embeds
        return found.float().cpu()


@lru_cache(maxsize=1)
def load(path: Path, device: torch.device) -> Vision:
    """Read an encoder from a folder with ``config.json`` and ``model.safetensors``, once. Raise `BadWeights`."""
    from transformers import CLIPVisionModelWithProjection

    return Vision(read_model(CLIPVisionModelWithProjection, path, "an image encoder of CLIP"), device)
