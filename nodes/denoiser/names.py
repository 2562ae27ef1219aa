"""What a MODEL and its layers are called: its family in kohya's words, its layers as LoRA files name them."""

from __future__ import annotations

from typing import Any

import comfy.supported_models
import comfy.utils
from torch import nn

from ...mudi_core.bases.families import OTHER, Family, usual
from ..convert import BadModel
from .noise import predicts_v
from .patches import name_of

_ORDER = (
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "proj_in", "transformer_blocks", "attn1", "attn2",
    "ff", "to_q", "to_k", "to_v", "to_out", "proj_out",
)  # fmt: skip
"""Parts of diffusers' names of a U-Net's layers in the order of its modules: a LoRA's start is drawn in it."""


_BY_CLASS = {
    "Flux": "flux1",
    "FluxSchnell": "flux1-schnell",
    "Flux2": "flux2",
    "Chroma": "chroma",
    "ZImage": "z_image",
    "Lumina2": "lumina2",
    "QwenImage": "qwen_image",
    "Krea2": "krea2",
    "Anima": "anima",
    "CosmosT2IPredict2": "cosmos_predict2",
    "SD3": "sd3",
    "AuraFlow": "aura_flow",
    "ErnieImage": "ernie",
}
"""Families by ComfyUI's class of the model. All others without a U-Net are trained with the settings of `OTHER`."""


def kohya_family(model: Any) -> str:
    """Return kohya's name for a MODEL's kind, as LoRA files have it: "sdxl_base_v1-0".

    Raise `BadModel` for U-Nets that read more than a noisy picture and a caption.
    """
    kind, unet = model.model.model_config, model.model.model_config.unet_config
    if "model_channels" not in unet or "image_model" in unet:
        return _BY_CLASS.get(name_of(model), OTHER)
    reads_pictures = getattr(kind, "noise_aug_config", None) or unet.get("in_channels", 4) != 4  # unCLIP, inpainting
    if not reads_pictures and "transformer_depth" in unet:
        if isinstance(kind, comfy.supported_models.SDXL) and model.model.adm_channels:
            return "sdxl_base_v1-0"
        if isinstance(kind, comfy.supported_models.SD20):
            return "sd_v2" + ("_v" if predicts_v(model) else "")
        if isinstance(kind, comfy.supported_models.SD15):
            return "sd_v1" + ("_v" if predicts_v(model) else "")
    raise BadModel(
        f"This MODEL ({name_of(model)}) reads more than a noisy picture and a caption, or is a refiner, so it cannot "
        "be trained here. Train on the plain model that it was made from, and use the LoRA on either."
    )


def usual_of(model: Any) -> Family:
    """Return what is usual for a MODEL's kind. Raise `BadModel` as `kohya_family` does."""
    family = kohya_family(model)
    if family == "sdxl_base_v1-0" and predicts_v(model):
        family += "_v"
    return usual(getattr(type(model.model.model_config), "mudi_base", ""), family)


def diffusers_names(model: Any) -> dict[str, str]:
    """Return diffusers' names of a U-Net's layers by ComfyUI's; nothing for other networks."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for theirs, ours in names.items()
        if theirs.endswith(".weight")
    }


def place_in_order(name: str) -> list[tuple[int, str]]:
    """Return what sorts diffusers' names of layers in the order of diffusers' modules."""
    return [
        (int(part), "") if part.isdigit() else (_ORDER.index(part), "") if part in _ORDER else (len(_ORDER), part)
        for part in name.split(".")
    ]


def repeated_parts(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network: the outermost modules in its lists that have parts of their own."""
    found: list[nn.Module] = []

    def walk(place: nn.Module, in_list: bool) -> None:
        for child in place.children():
            if isinstance(child, nn.ModuleList | nn.Sequential | nn.ModuleDict):
                walk(child, in_list or isinstance(child, nn.ModuleList))
            elif not in_list:
                walk(child, False)
            elif any(True for _ in child.children()):
                found.append(child)

    walk(module, False)
    return found


def smaller_parts(part: nn.Module) -> list[nn.Module]:
    """Return the `repeated_parts` of a block where they hold nearly all of its weights, else the block alone."""
    inner = repeated_parts(part)
    return inner if sum(map(_size, inner)) > 0.8 * _size(part) else [part]


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
