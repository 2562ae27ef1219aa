"""A custom node for tests: a ControlNet of random weights for the embedded U-Net, and of its size."""

from __future__ import annotations

from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import torch

_CONFIG = {
    "image_size": 32, "in_channels": 4, "model_channels": 64, "channel_mult": [1, 2, 3], "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1], "transformer_depth_middle": 1, "use_spatial_transformer": True,
    "use_linear_in_transformer": True, "context_dim": 256, "num_classes": "sequential", "adm_in_channels": 1696,
    "legacy": False, "use_checkpoint": False, "num_heads": -1, "num_head_channels": 32, "hint_channels": 3,
}  # fmt: skip


class TinyControl:
    """Gives a CONTROL_NET, always the same."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Any]:
        network = comfy.cldm.cldm.ControlNet(**_CONFIG, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        for name, weight in network.named_parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.data = torch.randn(weight.shape, generator=generator) * scale + ("norm" in name)
        device = comfy.model_management.get_torch_device()
        return (comfy.controlnet.ControlNet(network.eval(), load_device=device),)


NODE_CLASS_MAPPINGS = {"TinyControl": TinyControl}
