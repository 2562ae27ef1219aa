"""MODEL, CLIP and VAE as one base model that the library trains a LoRA on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch

from . import convert, host
from .denoiser import ComfyDenoiser, foreign_patches, kohya_family, usual_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.bases.families import Family
    from ..mudi_core.bases.promise import Conditions
    from ..mudi_core.bases.quantize import BaseWeights


def computes_in_bf16(family: Family) -> bool:
    """Return whether a training of this kind of model computes in bfloat16 on this machine."""
    device = host.device()
    return family.bf16 and device.type == "cuda" and bool(comfy.model_management.should_use_bf16(device))


class ComfyBase:
    """A `promise.Base`. Nothing of MODEL, CLIP and VAE is changed."""

    def __init__(self, model: Any, clip: Any, vae: Any, base_weights: BaseWeights = "full") -> None:
        """``base_weights``: how the network is kept while it is trained. Raise `BadModel`."""
        self.model, self.vae = model, vae
        self.family = kohya_family(model)
        self.name = type(model.model.model_config).__name__
        self._denoiser = ComfyDenoiser(model, base_weights)
        self._encode_image, self._condition = convert.encode_image(vae, model), convert.encode_text(clip)

    @property
    def usual(self) -> Family:
        return usual_of(self.model)

    @property
    def remark(self) -> str:
        """What the user should know of how the MODEL is kept in memory, in a sentence; or ""."""
        return self._denoiser.remark()

    def encode_image(self, images: Tensor) -> Tensor:
        return self._encode_image(images)

    def condition(self, captions: list[str]) -> list[Conditions]:
        return self._condition(captions)

    def denoiser(self) -> ComfyDenoiser:
        return self._denoiser

    def check(self, bf16: bool) -> None:
        """Raise `BadModel` where MODEL, CLIP and VAE do not fit; warn of patches that training does not see."""
        self._denoiser.check(self.encode_image(torch.zeros(1, 64, 64, 3))[0], self.condition(["a photo"])[0], bf16)
        if patches := foreign_patches(self.model):
            host.log.warning("Other nodes' patches on the MODEL are not trained with: %s.", ", ".join(patches))


def make_room() -> None:
    """Take all models off the card: a training needs all of its memory."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
