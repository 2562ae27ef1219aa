"""MODELs of many families: ComfyUI's own classes with random weights, each a few hundred kilobytes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from comfyui import Comfy
from models import other_model

_FLUX = {
    "image_model": "flux", "guidance_embed": True, "in_channels": 16, "out_channels": 16, "vec_in_dim": 16,
    "context_in_dim": 24, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12], "theta": 10_000, "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [],
}  # fmt: skip
_LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "n_layers": 2, "n_refiner_layers": 1,
    "n_heads": 4, "n_kv_heads": 2, "qk_norm": True, "cap_feat_dim": 24, "axes_dims": [8, 8, 8],
    "axes_lens": [300, 512, 512],
}  # fmt: skip
_COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 64, "concat_padding_mask": True,
    "crossattn_emb_channels": 24, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "num_blocks": 2, "num_heads": 2,
    "use_adaln_lora": True, "adaln_lora_dim": 16, "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0, "extra_per_block_abs_pos_emb": False,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A family's ComfyUI class and the sizes of a small member."""

    kind: str
    """The class in comfy.supported_models."""
    config: dict[str, Any]
    """Its ``unet_config``."""
    latent: tuple[int, ...] = (16, 16, 16)
    """Shape of an encoded picture, ``[c, ...]``."""
    tokens: tuple[int, int] = (12, 24)
    """Shape of a caption's ``cross_attn``."""
    more: dict[str, torch.Tensor] = field(default_factory=dict)
    """What else `convert.encode_text` makes of a caption."""


_MASK = {"attention_mask": torch.ones(12, dtype=torch.long)}
_POOLED = {"pooled_output": torch.linspace(-1, 1, 16)}
TINY = {
    "flux1": Tiny("Flux", _FLUX, more=_POOLED),
    "flux1-schnell": Tiny("FluxSchnell", _FLUX | {"guidance_embed": False}, more=_POOLED),
    "chroma": Tiny(
        "Chroma",
        _FLUX | {
            "image_model": "chroma", "in_channels": 64, "out_channels": 64, "guidance_embed": False, "vec_in_dim": None,
            "in_dim": 64, "out_dim": 64, "hidden_dim": 48, "n_layers": 2,
        },
    ),
    "sd3": Tiny(
        "SD3",
        {
            "in_channels": 16, "patch_size": 2, "depth": 2, "adm_in_channels": 16, "pos_embed_max_size": 32,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}
            },
            "num_patches": 1024, "qk_norm": "rms", "x_block_self_attn_layers": [0], "context_size": 24,
        },
        more=_POOLED,
    ),
    "aura_flow": Tiny(
        "AuraFlow",
        {
            "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 64, "n_layers": 3, "n_double_layers": 1,
            "n_heads": 2, "global_conddim": 64, "cond_seq_dim": 24, "max_seq": 256,
        },
        latent=(4, 16, 16),
    ),
    "lumina2": Tiny("Lumina2", _LUMINA | {"multiple_of": 32}, more=_MASK),
    "z_image": Tiny(
        "ZImage",
        _LUMINA | {
            "dim": 256, "n_heads": 8, "n_kv_heads": 8, "axes_dims": [8, 12, 12], "rope_theta": 256.0,
            "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
        },
        more=_MASK,
    ),
    "qwen_image": Tiny(
        "QwenImage",
        {
            "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2,
            "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 24,
            "axes_dims_rope": (8, 12, 12),
        },
        latent=(16, 1, 16, 16),
    ),
    "cosmos_predict2": Tiny("CosmosT2IPredict2", _COSMOS, latent=(16, 1, 16, 16)),
    "anima": Tiny(
        "Anima",
        _COSMOS | {"image_model": "anima", "crossattn_emb_channels": 1024},
        latent=(16, 1, 16, 16),
        tokens=(12, 1024),
        more={"t5xxl_ids (whole)": torch.arange(1, 13), "t5xxl_weights (whole)": torch.ones(12)},
    ),
    "hidream": Tiny(
        "HiDream",
        {
            "image_model": "hidream", "attention_head_dim": 32, "axes_dims_rope": [16, 8, 8],
            "caption_channels": [24, 24], "in_channels": 16, "llama_layers": [0, 1, 2], "max_resolution": [32, 32],
            "num_activated_experts": 2, "num_attention_heads": 2, "num_layers": 1, "num_routed_experts": 2,
            "num_single_layers": 1, "out_channels": 16, "patch_size": 2, "text_emb_dim": 16,
        },
        more=_POOLED | {"conditioning_llama3": torch.linspace(-1, 1, 3 * 12 * 24).reshape(3, 12, 24)},
    ),
    "pixart_sigma": Tiny(
        "PixArtSigma",
        {
            "image_model": "pixart_sigma", "input_size": None, "patch_size": 2, "in_channels": 4, "hidden_size": 64,
            "depth": 2, "num_heads": 2, "caption_channels": 24, "pe_interpolation": None, "micro_condition": False,
            "model_max_length": 12,
        },
        latent=(4, 64, 64),
    ),
    "flux2": Tiny(
        "Flux2",
        _FLUX | {
            "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1,
            "axes_dim": [8, 8, 8, 8], "theta": 2000, "mlp_ratio": 3.0, "global_modulation": True,
            "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "default_ref_method": "index",
            "ref_index_scale": 10.0, "txt_ids_dims": [3], "vec_in_dim": None,
        },
        latent=(128, 8, 8),
    ),
    "krea2": Tiny(
        "Krea2",
        {
            "image_model": "krea2", "features": 128, "tdim": 64, "txtdim": 24, "heads": 2, "kvheads": 1,
            "multiplier": 2, "layers": 2, "patch": 2, "channels": 16, "txtlayers": 3, "txtheads": 2, "txtkvheads": 2,
        },
        latent=(16, 1, 16, 16),
        tokens=(12, 72),
    ),
    "ernie": Tiny(
        "ErnieImage",
        {
            "image_model": "ernie", "hidden_size": 64, "num_attention_heads": 2, "num_layers": 2,
            "ffn_hidden_size": 96, "text_in_dim": 24, "rope_axes_dim": (8, 12, 12),
        },
        latent=(128, 8, 8),
        more=_MASK,
    ),
}  # fmt: skip
"""By the name of the family in `bases.families`."""


def known(comfy: Comfy, family: str) -> bool:
    """Whether this ComfyUI has the family."""
    return hasattr(comfy.core("comfy.supported_models"), TINY[family].kind)


def tiny(comfy: Comfy, family: str) -> Any:
    """A MODEL of the family with random weights, made in inference mode as a loader makes it."""
    one = TINY[family]
    config = dict(one.config)
    if one.kind in ("Flux", "FluxSchnell", "Flux2"):
        names = {entry.name for entry in dataclasses.fields(comfy.core("comfy.ldm.flux.model").FluxParams)}
        config = {name: value for name, value in config.items() if name in {*names, "image_model"}}
    if one.kind == "Chroma":
        names = {entry.name for entry in dataclasses.fields(comfy.core("comfy.ldm.chroma.model").ChromaParams)}
        config = {name: value for name, value in config.items() if name in {*names, "image_model"}}
    with torch.inference_mode():
        model = other_model(comfy, one.kind, config)
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.model.diffusion_model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(values * scale + (weight.ndim < 2 and name.endswith(("scale", "weight"))))
        for name, buffer in model.model.diffusion_model.named_buffers():
            if name == "pos_embed":  # of SD 3, which a file fills
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    model.model.eval()
    return model


def conditions(family: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """What the family's text encoders give for a caption, without a batch dimension."""
    generator = torch.Generator().manual_seed(seed)
    one = TINY[family]
    return {"cross_attn": torch.randn(one.tokens, generator=generator), **one.more}


def encoded(family: str, count: int, seed: int = 2) -> torch.Tensor:
    """What the family's VAE gives for pictures, ``[count, c, ...]``."""
    return torch.randn(count, *TINY[family].latent, generator=torch.Generator().manual_seed(seed))


class Vae:
    """One that averages over cells, of any number of channels and any factor."""

    def __init__(self, channels: int, shrinks: int, frames: bool = False) -> None:
        self.latent_channels, self.shrinks, self.frames = channels, shrinks, frames

    def spacial_compression_encode(self) -> int:
        return self.shrinks

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(images.movedim(3, 1), self.shrinks)
        latent = small.repeat(1, self.latent_channels, 1, 1)[:, : self.latent_channels]
        return latent[:, :, None] if self.frames else latent
