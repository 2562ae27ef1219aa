"""A random U-Net of SDXL's architecture, small enough for a unit test, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CONTEXT, POOLED = 32, 16


def tiny_unet(seed: int = 0) -> Any:
    """Two levels, 4 transformers of one block each, 1.0M parameters; the same seed gives the same weights."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=1,
            attention_head_dim=(2, 4),
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
