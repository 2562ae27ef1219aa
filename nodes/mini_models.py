"""The embedded family as ComfyUI's MODEL, CLIP and VAE."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import comfy.latent_formats
import comfy.ldm.flux.model
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy import sdxl_clip

from ..mudi_core.bases import embedded as family
from ..mudi_core.bases.families import EMBEDDED, EMBEDDED_FLUX
from . import host

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MiniSDXL(comfy.supported_models.SDXL):  # type: ignore[misc]
    """The embedded U-Net as ComfyUI describes SDXL's."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    mudi_base = EMBEDDED
    """What is usual for it stands in the table of families under this name."""


class MiniFlux(comfy.supported_models.Flux):  # type: ignore[misc]
    """The embedded transformer as ComfyUI describes FLUX, but on latents of SDXL's kind and with fixed shift."""

    unet_config = {"image_model": "flux"}
    sampling_settings = {"multiplier": 1.0, "shift": family.FLOW_SHIFT}
    latent_format = comfy.latent_formats.SDXL
    mudi_base = EMBEDDED_FLUX

    def get_model(self, state_dict: dict[str, torch.Tensor], prefix: str = "", device: Any = None) -> Any:
        return comfy.model_base.Flux(self, model_type=comfy.model_base.ModelType.FLOW, device=device)


def load_sdxl() -> Any:
    """Return the embedded U-Net as a MODEL."""
    unet = family.load_unet()
    config = MiniSDXL(unet_config(unet.config))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    _set_groups(model.diffusion_model, unet.config["norm_num_groups"])
    state = unet.state_dict()
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    model.load_model_weights({names[name]: value for name, value in state.items()}, "")
    return _patcher(model)


def load_flux() -> Any:
    """Return the embedded FLUX transformer as a MODEL."""
    flux = family.load_flux()
    config = MiniFlux(flux_config(flux.config))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    names = comfy.utils.flux_to_diffusers(config.unet_config, output_prefix="")
    state = model.diffusion_model.state_dict()
    for theirs, value in flux.state_dict().items():
        ours = names[theirs]
        name, part, turn = ((ours, None, None) if isinstance(ours, str) else (*ours, None, None))[:3]
        place = state[name] if part is None else state[name].narrow(*part)
        place.copy_(value if turn is None else turn(value))
    model.load_model_weights(state, "")
    return _patcher(model)


def _patcher(model: Any) -> Any:
    return comfy.model_patcher.ModelPatcher(model, host.device(), comfy.model_management.unet_offload_device())


def flux_config(config: Any) -> dict[str, Any]:
    """Return ComfyUI's configuration of a diffusers FLUX transformer."""
    values = {
        "in_channels": config["in_channels"] // 4,
        "out_channels": (config.get("out_channels") or config["in_channels"]) // 4,
        "vec_in_dim": config["pooled_projection_dim"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "mlp_ratio": 4.0,
        "num_heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": list(config["axes_dims_rope"]),
        "theta": 10_000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": config["guidance_embeds"],
        "txt_ids_dims": [],
    }
    known = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
    return {"image_model": "flux", **{name: value for name, value in values.items() if name in known}}


def unet_config(config: Any) -> dict[str, Any]:
    """Return ComfyUI's configuration of a diffusers U-Net. Each of its levels has attention everywhere or nowhere."""
    layers = config["layers_per_block"]
    depths = [
        depth if "CrossAttn" in block else 0
        for depth, block in zip(config["transformer_layers_per_block"], config["down_block_types"], strict=True)
    ]
    widths = config["block_out_channels"]
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth for depth in depths for _ in range(layers)],
        "transformer_depth_output": [depth for depth in depths for _ in range(layers + 1)],
        "transformer_depth_middle": depths[-1],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config["use_linear_projection"],
        "use_temporal_attention": False,
        "context_dim": config["cross_attention_dim"],
        "num_classes": "sequential",
        "adm_in_channels": config["projection_class_embeddings_input_dim"],
        "legacy": False,
        "use_checkpoint": False,
    }


def load_clip() -> Any:
    """Return the embedded text encoders as a CLIP."""
    encoders = dict(zip(("clip_l", "clip_g"), family.load_text_encoders(), strict=True))
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    options: dict[str, Any] = {
        f"{name}_model_config": {key: getattr(encoder.config, key) for key in kept}
        for name, encoder in encoders.items()
    }
    target = comfy.supported_models_base.ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={**options, "dtype": torch.float32},
    )
    for name, encoder in encoders.items():
        getattr(clip.cond_stage_model, name).load_sd(_text_state(encoder))
    return clip


def _text_state(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the encoder's weights by their names in the original files, in every release of transformers."""
    state = encoder.state_dict()
    return {name if name.startswith("text_") else f"text_model.{name}": value for name, value in state.items()}


def load_vae() -> Any:
    """Return the embedded autoencoder as a VAE."""
    autoencoder = family.load_vae()
    config = autoencoder.config
    widths = config["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    vae = comfy.sd.VAE(
        sd=autoencoder.state_dict(),
        config={"params": {"ddconfig": ddconfig, "embed_dim": config["latent_channels"]}},
        dtype=torch.float32,
    )
    _set_groups(vae.first_stage_model, config["norm_num_groups"])
    return vae


def _set_groups(model: torch.nn.Module, groups: int) -> None:
    """Set the number of groups: ComfyUI builds every group normalization with 32, whatever the weights."""
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = groups
