"""A custom node of the tests' server: a FLUX of a few hundred kilobytes, for the embedded CLIP and VAE."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

_CONFIG = {
    "image_model": "flux", "guidance_embed": True, "in_channels": 4, "out_channels": 4, "vec_in_dim": 160,
    "context_in_dim": 256, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12], "theta": 10_000, "patch_size": 2, "qkv_bias": True,
}  # fmt: skip


class Flux(comfy.supported_models.Flux):  # type: ignore[misc]
    """ComfyUI's FLUX, with the latents of SDXL."""

    latent_format = comfy.latent_formats.SDXL


class TinyFlux:
    """Gives a MODEL with random weights, always the same."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Any]:
        config = Flux(dict(_CONFIG))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.diffusion_model.named_parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + name.endswith("scale"))
        devices = comfy.model_management.get_torch_device(), torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(model.eval(), *devices),)


NODE_CLASS_MAPPINGS = {"TinyFlux": TinyFlux}
