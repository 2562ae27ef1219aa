"""MODELs for tests: of other families, taught noise otherwise, with a LoRA on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfyui import Comfy

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.residual import Residual, own_rows, save_residual
from mudi_core.bases.text import CheckpointText
from mudi_core.lora.adapter import Adapter
from mudi_core.lora.file import save_lora

FLUX = {
    "guidance_embed": True, "in_channels": 16, "out_channels": 16, "vec_in_dim": 8,
    "context_in_dim": 8, "hidden_size": 32, "mlp_ratio": 4.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6], "theta": 10_000, "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [],
}  # fmt: skip
"""As ComfyUI detects Flux from a file, and much smaller; some versions know fewer of these."""


def weights(*models: Any) -> list[torch.Tensor]:
    """Of a MODEL, a CLIP or a VAE, as bytes: no file fills all of SDXL's first text encoder, and NaN equals nothing."""
    parts = ("model", "cond_stage_model", "first_stage_model")
    networks = [getattr(one, part) for one in models for part in parts if hasattr(one, part)]
    assert len(networks) == len(models)
    every = [value for network in networks for value in network.state_dict().values()]
    return [value.contiguous().reshape(-1).view(torch.uint8).clone() for value in every]


def taught(comfy: Comfy, model: Any, kind: str) -> Any:
    """The MODEL as if it had been taught noise in another way."""
    base = comfy.core("comfy.model_base")
    changed = model.clone()
    sampling = base.model_sampling(model.model.model_config, getattr(base.ModelType, kind))
    changed.add_object_patch("model_sampling", sampling)
    return changed


def advanced(comfy: Comfy, node: str, model: Any, **settings: Any) -> Any:
    """The MODEL after one of ComfyUI's own nodes that change how it is sampled."""
    return getattr(comfy.core("comfy_extras.nodes_model_advanced"), node)().patch(model, **settings)[0]


def other_model(comfy: Comfy, kind: str, unet_config: dict[str, Any]) -> Any:
    """A MODEL of another kind, as small as the mini model."""
    cpu = torch.device("cpu")
    config = getattr(comfy.core("comfy.supported_models"), kind)(unet_config)
    if "num_head_channels" in config.unet_config:
        config.unet_config["num_head_channels"] = 32
    config.set_inference_dtype(torch.float32, None)
    return comfy.core("comfy.model_patcher").ModelPatcher(config.get_model({}, "", device=cpu), cpu, cpu)


def random_lora(path: Path, seed: int = 1) -> Path:
    adapter = Adapter.new(open_checkpoint("mini").denoiser(), 2, 2.0, ("to_q", "to_out.0"))
    adapter.start(seed)
    state = {key: torch.full_like(value, 0.05) if "lora_up" in key else value for key, value in adapter.state().items()}
    save_lora(path, state, {})
    return path


def random_residual(path: Path, word: str, seed: int = 1) -> Path:
    """Write a residual token of noise for the embedded model's text encoders."""
    text = CheckpointText(open_checkpoint("mini"))
    own = own_rows(text, word)
    shift = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed))
    save_residual(path, Residual(word, shift, own, text.widths))
    return path


def in_fewer_bits(comfy: Comfy, model: Any, dtype: torch.dtype) -> Any:
    """The MODEL as ComfyUI loads it where it keeps weights in ``dtype`` and computes in float32."""
    cpu, own = torch.device("cpu"), model.model.model_config
    config = type(own)(dict(own.unet_config))  # newer ComfyUI's cannot be copied
    with torch.inference_mode():
        config.set_inference_dtype(dtype, torch.float32)
        few = config.get_model({}, "", device=cpu)
        few.diffusion_model.load_state_dict(model.model.diffusion_model.state_dict())
        for module, same in zip(few.modules(), model.model.modules(), strict=True):
            if isinstance(same, torch.nn.GroupNorm):
                module.num_groups = same.num_groups  # the mini model's own, which no setting tells
    return comfy.core("comfy.model_patcher").ModelPatcher(few.eval(), cpu, cpu)


def with_layers(model: Any, kind: Callable[[Any], torch.nn.Module], *parts: str) -> Any:
    """The same MODEL with other linear layers in some places: ``kind`` of those that are there."""
    network = model.model.diffusion_model
    with torch.inference_mode():
        for name, layer in list(network.named_modules()):
            if name.endswith(parts or ".attn1.to_q"):
                place, _, leaf = name.rpartition(".")
                setattr(network.get_submodule(place), leaf, kind(layer))
    return model


def host_quantized(comfy: Comfy, layer: Any, kind: str, smoothed: bool = False) -> Any:
    """A linear layer as newer ComfyUI quantizes it: "float8_e4m3fn", "int8_tensorwise", "nvfp4".

    ``smoothed``: with the scale of the input that checkpoints quantized by AWQ bring.
    """
    quant, ops = comfy.core("comfy.quant_ops"), comfy.core("comfy.ops").mixed_precision_ops(compute_dtype=torch.float32)
    layout = quant.QUANT_ALGOS[kind]["comfy_tensor_layout"]
    made = ops.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    weight = quant.QuantizedTensor.from_float(layer.weight.detach(), layout)
    made.weight, made.bias = torch.nn.Parameter(weight, requires_grad=False), layer.bias
    made.layout_type, made.quant_format = layout, kind
    if smoothed:
        scale = torch.linspace(0.25, 4, layer.in_features)
        made.register_parameter("pre_quant_scale", torch.nn.Parameter(scale, requires_grad=False))
    return made


def scaled_fp8(comfy: Comfy, layer: Any) -> Any:
    """A linear layer as older ComfyUI loads it from a checkpoint in scaled fp8."""
    ops = comfy.core("comfy.ops").scaled_fp8_ops(override_dtype=torch.float8_e4m3fn)
    made = ops.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    scale = layer.weight.detach().abs().max() / 448
    made.weight = torch.nn.Parameter((layer.weight / scale).to(torch.float8_e4m3fn), requires_grad=False)
    made.scale_weight = torch.nn.Parameter(scale.float(), requires_grad=False)
    made.bias = layer.bias
    return made
