"""The attention blocks of a MODEL, as ComfyUI's patches call them and as a LoRA's keys name them."""

from __future__ import annotations

import re
from typing import Any

from ..convert import BadModel

Key = tuple[str, int, int]
"""Of a block in ComfyUI's patches, such as ("input", 4, 0). The middle is number 0."""
_BLOCK = re.compile(r"(input|middle|output)_blocks?(?:\.(\d+))?\.\d+\.transformer_blocks\.(\d+)\.attn2")


def blocks_of(model: Any) -> dict[Key, str]:
    """Return the names of a U-Net's blocks with cross-attention, each with a dot at its end.

    SDXL has 70, SD 1.5 and 2 have 16. Raise `BadModel` for a MODEL without, such as FLUX.
    """
    found: dict[Key, str] = {}
    for name, _ in model.model.diffusion_model.named_modules():
        if match := _BLOCK.fullmatch(name):
            place, number, index = match.groups()
            found[place, int(number or 0) if place != "middle" else 0, int(index)] = name.removesuffix("attn2")
    if not found:
        raise BadModel(
            f"This MODEL ({type(model.model.model_config).__name__}) has no cross-attention as SD and SDXL have, and "
            "regions act there. Use an SDXL or SD model; Init Latent works with every model."
        )
    return found
