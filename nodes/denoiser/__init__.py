"""ComfyUI's MODEL as a `promise.Denoiser`: a LoRA is trained on the very network that samplers use."""

from __future__ import annotations

from .model import ComfyDenoiser
from .names import kohya_family, usual_of
from .patches import foreign_patches, name_of

__all__ = ["ComfyDenoiser", "foreign_patches", "kohya_family", "name_of", "usual_of"]
