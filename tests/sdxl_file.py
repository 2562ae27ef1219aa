"""SDXL with random weights: tiny as a diffusers folder, and any size as the single file that model sites offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mudi_core.bases import sdxl
from mudi_core.bases.embedded import scheduler
from mudi_core.vocabulary import tokenizer


def tiny_sdxl(folder: Path) -> None:
    """SDXL's blocks (3 levels, 1/2/10 transformer layers, two text encoders, 4-level VAE) in a few channels."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text_config(width: int, name: str) -> Any:
        config = CLIPTextConfig.from_pretrained(sdxl.CONFIGS / name)
        config.hidden_size = config.projection_dim = width
        config.intermediate_size, config.num_hidden_layers, config.num_attention_heads = 2 * width, 2, 2
        return config

    torch.manual_seed(0)
    unet = {
        **UNet2DConditionModel.load_config(sdxl.CONFIGS / "unet"),
        "sample_size": 8,
        "block_out_channels": (32, 32, 64),
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": 48,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    }
    vae = {**AutoencoderKL.load_config(sdxl.CONFIGS / "vae"), "block_out_channels": (32, 32, 32, 32)}
    StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_config(vae),
        text_encoder=CLIPTextModel(text_config(16, "text_encoder")),
        text_encoder_2=CLIPTextModelWithProjection(text_config(32, "text_encoder_2")),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer("!"),
        unet=UNet2DConditionModel.from_config(unet),
        scheduler=scheduler(),
    ).save_pretrained(folder)


def write_single_file(folder: Path, path: Path) -> None:
    """A diffusers folder's weights under the names of Stability's own single file."""
    state: dict[str, Tensor] = {}
    parts = {name: load_file(next((folder / name).glob("*.safetensors"))) for name in PARTS}
    for name, rename in PARTS.items():
        for key, value in parts[name].items():
            for new, tensor in rename(key, value, parts[name]):
                state[new] = tensor.contiguous()
    save_file(state, path)


def full_size_sdxl(path: Path) -> None:
    """A file of the true size, in bfloat16."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(sdxl.CONFIGS / "unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(sdxl.CONFIGS / "vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(sdxl.CONFIGS / "text_encoder")),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig.from_pretrained(sdxl.CONFIGS / "text_encoder_2")
            ),
        }
    state: dict[str, Tensor] = {}
    for name, model in models.items():
        values = random_values(model)
        for key, value in values.items():
            for new, tensor in PARTS[name](key, value, values):
                state[new] = tensor.contiguous()
    save_file(state, path)


def random_values(model: torch.nn.Module) -> dict[str, Tensor]:
    """What a model on "meta" might hold, in bfloat16; from one small pool, so that billions are there in a minute."""
    pool = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    values = {}
    for key, like in model.state_dict().items():
        if like.ndim < 2:
            values[key] = torch.full(like.shape, float(key.endswith("weight")), dtype=torch.bfloat16)
        else:
            flat = pool.repeat(-(-like.numel() // pool.numel()))[: like.numel()]
            values[key] = (flat / (like.numel() / like.shape[0]) ** 0.5).reshape(like.shape)
    return values


def _unet(key: str, value: Tensor, part: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    outer = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    module, _, kind = key.rpartition(".")
    if module in outer:
        return [(f"model.diffusion_model.{outer[module]}.{kind}", value)]
    place, rest = _unet_block(module.split("."))
    for theirs, ours in (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ):
        if rest == theirs:
            rest = ours
    return [(f"model.diffusion_model.{place}{'.' + rest if rest else ''}.{kind}", value)]


def _unet_block(path: list[str]) -> tuple[str, str]:
    """Where a diffusers block stands in the original's flat lists, and what is left of its path."""
    if path[0] == "mid_block":
        index = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[f"{path[1]}.{path[2]}"]
        return f"middle_block.{index}", ".".join(path[3:])
    level, kind, number = int(path[1]), path[2], path[3]
    if path[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{3 * (level + 1)}.0.op", ""
        return f"input_blocks.{1 + 3 * level + int(number)}.{int(kind == 'attentions')}", ".".join(path[4:])
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{2 if level < 2 else 1}.conv", ""
    return f"output_blocks.{3 * level + int(number)}.{int(kind == 'attentions')}", ".".join(path[4:])


def _vae(key: str, value: Tensor, part: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    for half in ("encoder", "decoder"):
        key = key.replace(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1")
        key = key.replace(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2")
        key = key.replace(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1")
        key = key.replace("conv_norm_out", "norm_out")
    for level in range(4):
        key = key.replace(f"encoder.down_blocks.{level}.resnets", f"encoder.down.{level}.block")
        key = key.replace(f"encoder.down_blocks.{level}.downsamplers.0", f"encoder.down.{level}.downsample")
        key = key.replace(f"decoder.up_blocks.{level}.resnets", f"decoder.up.{3 - level}.block")
        key = key.replace(f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.up.{3 - level}.upsample")
    key = key.replace("conv_shortcut", "nin_shortcut")
    for theirs, ours in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        key = key.replace(f"attn_1.{theirs}.", f"attn_1.{ours}.")
    if "attn_1" in key and value.ndim == 2:
        value = value[..., None, None]  # the original's attention is made of 1x1 convolutions
    return [(f"first_stage_model.{key}", value)]


def _text(key: str, value: Tensor, part: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"conditioner.embedders.0.transformer.text_model.{key.removeprefix('text_model.')}", value)]


def _text_2(key: str, value: Tensor, part: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    prefix, key = "conditioner.embedders.1.model.", key.removeprefix("text_model.")
    outer = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    if key in outer:
        return [(prefix + outer[key], value)]
    if key == "text_projection.weight":
        return [(prefix + "text_projection", value.T)]
    if ".k_proj." in key or ".v_proj." in key:
        return []  # they stand in one matrix with q
    if ".q_proj." in key:
        name = next(name for name in part if name.removeprefix("text_model.") == key)
        together = torch.cat([part[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        key, value = key.replace("q_proj.", "in_proj_"), together
    for theirs, ours in (
        ("encoder.layers", "transformer.resblocks"),
        ("self_attn", "attn"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ):
        key = key.replace(theirs, ours)
    return [(prefix + key, value)]


PARTS = {"unet": _unet, "vae": _vae, "text_encoder": _text, "text_encoder_2": _text_2}
