"""A random U-Net of SDXL's architecture, small enough for a unit test, inputs for it, and its training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mudi_core.bases.unet import UNetDenoiser
from mudi_core.lora.start_from import StartLora
from mudi_core.train import loop
from mudi_core.train.config import TrainConfig
from mudi_core.train.plan import Plan

CONTEXT, POOLED = 32, 16
ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
"""SDXL's own noise schedule."""
SCALE = 0.13025


SMALL = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "transformer_layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 4),
}  # fmt: skip
TRUE = {
    "block_out_channels": (16, 32, 32), "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (2, 2, 4),
}  # fmt: skip
"""The blocks of SDXL itself, all of them, in few channels."""


def tiny_unet(seed: int = 0, blocks: dict[str, Any] = SMALL) -> Any:
    """Two levels, 4 transformers of one block each, 1.0M parameters; the same seed gives the same weights."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            **blocks,
            sample_size=8,
            norm_num_groups=8,
            cross_attention_dim=CONTEXT,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=POOLED + 6 * 8,
        )
    return unet.eval()


def predict(unet: Any, seed: int = 0, batch: int = 2) -> Tensor:
    """The U-Net's answer to random inputs, without gradients."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        answer: Tensor = unet(
            torch.randn(batch, 4, 8, 8, generator=generator),
            torch.tensor([100, 600][:batch]),
            encoder_hidden_states=torch.randn(batch, 77, CONTEXT, generator=generator),
            added_cond_kwargs={
                "text_embeds": torch.randn(batch, POOLED, generator=generator),
                "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]] * batch, dtype=torch.float32),
            },
        ).sample
    return answer


def denoiser(unet: Any, prediction_type: str = "epsilon") -> UNetDenoiser:
    """Return the U-Net as the network that a LoRA is trained on."""
    return UNetDenoiser(unet, ABAR, prediction_type, SCALE)


def train(
    unet: Any,
    plan: Plan,
    config: TrainConfig,
    on_step: loop.OnStep | None = None,
    *,
    prediction_type: str = "epsilon",
    resume: Any = None,
    start: Any = None,
    on_save: loop.OnSave | None = None,
    on_preview: loop.OnPreview | None = None,
    **more: Any,
) -> loop.TrainResult:
    """`loop.train` of a U-Net; ``more``: checkpoint, team."""
    start = StartLora(start) if isinstance(start, dict) else start
    events, begin = loop.Events(on_step, on_save, on_preview), loop.Beginning(start, stopped=resume)
    return loop.train(denoiser(unet, prediction_type), plan, config, events, begin=begin, **more)
