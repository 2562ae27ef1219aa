"""The LoRA that comes with the embedded model: for the first of `toy.world.PAIRS`, to draw with before a training."""

from __future__ import annotations

from . import WEIGHTS

READY_LORA = WEIGHTS / "lora.safetensors"
"""Made by ``python -m workshop.ready_lora``."""
MADE_FOR = "mudi_made_for"
"""The key in its metadata of the fingerprint of the U-Net that it was trained on."""
