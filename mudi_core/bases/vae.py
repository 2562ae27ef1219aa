"""What goes through a VAE: as much at once as fits, in tiles where it does not, and nothing that is no number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..types import MudiError

log = logging.getLogger(__name__)

PIXELS_AT_ONCE = 1024 * 1024
"""How much the VAE encodes or decodes at a time."""


class NoNumbers(MudiError):
    """A VAE or a sampler that gave NaN or infinity."""


_OVERFLOWS = (
    "SDXL's own VAE does so in float16: use the one that is mended for it (sdxl-vae-fp16-fix), or start ComfyUI with "
    "--fp32-vae."
)


def check_encoded(latents: Tensor) -> Tensor:
    """What a VAE made of images, as it is. Raises `NoNumbers`."""
    if not latents.isfinite().all():
        raise NoNumbers(f"The VAE made values that are no numbers (NaN) of a picture. {_OVERFLOWS}")
    return latents


def check_decoded(images: Tensor, latents: Tensor) -> Tensor:
    """What a VAE made of a sampler's latents, as it is. Raises `NoNumbers`, which says whose fault it is."""
    if not latents.isfinite().all():
        raise NoNumbers(
            "The sampler ended in values that are no numbers (NaN): the model overflowed. Load it in a higher "
            "precision, lower cfg, or take the LoRA off to see whether it is the cause."
        )
    if not images.isfinite().all():
        raise NoNumbers(f"The VAE made a picture of values that are no numbers (NaN). {_OVERFLOWS}")
    return images


def in_parts(vae: Any, through: Callable[[Tensor], Tensor], batch: Tensor, at_once: int) -> Tensor:
    """A batch ``through`` a VAE, so many pictures at once; where memory is too short for that, in tiles of each."""
    with torch.no_grad():
        try:
            return torch.cat([through(part) for part in torch.split(batch, at_once)])
        except torch.cuda.OutOfMemoryError:
            log.warning("The VAE takes pictures in tiles: there is too little memory for whole ones.")
        # Only here is let go what the first try had made.
        with _tiled(vae):
            return torch.cat([through(part) for part in torch.split(batch, 1)])


@contextmanager
def _tiled(vae: Any) -> Iterator[None]:
    """Within the block a diffusers VAE works on overlapping tiles of half the model's side, and blends their seams."""
    sides = vae.tile_sample_min_size, vae.tile_latent_min_size
    vae.tile_sample_min_size, vae.tile_latent_min_size = (side // 2 for side in sides)
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = sides


def at_once_of(count: int, pixels: int) -> int:
    return max(1, min(count, PIXELS_AT_ONCE // pixels))
