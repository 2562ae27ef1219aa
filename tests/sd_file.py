"""SD 1.x and 2.x on disk, random weights in a few channels: a diffusers folder, and the single file of its authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sdxl_file import PARTS, random_values
from torch import Tensor

from mudi_core.bases import sd
from mudi_core.bases.embedded import scheduler
from mudi_core.vocabulary import tokenizer

PREFIXES = {"v1": "cond_stage_model.", "v2": "cond_stage_model.model."}


def tiny_sd(folder: Path, version: str) -> None:
    """SD's blocks (4 levels, attention in 3 of them, one text encoder) in a few channels."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = sd.CONFIGS / version
    text = CLIPTextConfig.from_pretrained(configs / "text_encoder")
    text.hidden_size = text.projection_dim = 32
    text.intermediate_size, text.num_hidden_layers, text.num_attention_heads = 64, 2, 2
    torch.manual_seed(0)
    unet = {
        **UNet2DConditionModel.load_config(configs / "unet"),
        "block_out_channels": (32, 32, 64, 64),
        "attention_head_dim": 2 if version == "v1" else (2, 2, 4, 4),
        "cross_attention_dim": 32,
    }
    vae = {**AutoencoderKL.load_config(configs / "vae"), "block_out_channels": (32, 32, 32, 32)}
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(vae),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer() if version == "v1" else tokenizer("!"),
        unet=UNet2DConditionModel.from_config(unet),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def write_single_sd(folder: Path, path: Path, version: str, changed: dict[str, Tensor] | None = None) -> None:
    """A diffusers folder's weights under the names of the first single files; ``changed`` replaces some of them."""
    state: dict[str, Tensor] = {}
    for name in ("unet", "vae", "text_encoder"):
        part = load_file(next((folder / name).glob("*.safetensors")))
        for key, value in part.items():
            for new, tensor in _rename(name, version, key, value, part):
                state[new] = tensor.contiguous()
    save_file({**state, **(changed or {})}, path)


def full_size_sd15(path: Path) -> None:
    """A file of SD 1.5's true size, in bfloat16."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = sd.CONFIGS / "v1"
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs / "unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(configs / "vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(configs / "text_encoder")),
        }
    state: dict[str, Tensor] = {}
    for name, model in models.items():
        values = random_values(model)
        for key, value in values.items():
            for new, tensor in _rename(name, "v1", key, value, values):
                state[new] = tensor.contiguous()
    save_file(state, path)


def _rename(name: str, version: str, key: str, value: Tensor, part: dict[str, Tensor]) -> list[tuple[str, Any]]:
    if name == "text_encoder":
        number, name = (0, name) if version == "v1" else (1, "text_encoder_2")
        theirs = "conditioner.embedders.0." if number == 0 else "conditioner.embedders.1.model."
        return [(new.replace(theirs, PREFIXES[version]), tensor) for new, tensor in PARTS[name](key, value, part)]
    if key.startswith("up_blocks.") and ".upsamplers." in key:
        level = int(key.split(".")[1])  # unlike SDXL's, the lowest level has no attention
        return [
            (
                f"model.diffusion_model.output_blocks.{3 * level + 2}.{min(level, 1) + 1}.conv.{key.split('.')[-1]}",
                value,
            )
        ]
    return PARTS[name](key, value, part)
