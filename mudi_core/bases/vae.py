"""Images and latents through a VAE: as many at once as fit, in tiles when memory is short, and never with NaN."""

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
"""Pixels that the VAE encodes or decodes at a time."""


class NoNumbers(MudiError):
    """A VAE or a sampler that returned NaN or infinity."""


_OVERFLOWS = (
    "SDXL's own VAE overflows in float16: use the repaired one (sdxl-vae-fp16-fix), or start ComfyUI with --fp32-vae."
)


def check_encoded(latents: Tensor) -> Tensor:
    """Return the latents of a VAE unchanged. Raise `NoNumbers` when they have NaN or infinity."""
    if not latents.isfinite().all():
        raise NoNumbers(f"The VAE encoded a picture to values that are not numbers (NaN). {_OVERFLOWS}")
    return latents


def check_decoded(images: Tensor, latents: Tensor) -> Tensor:
    """Return the images that a VAE decoded from a sampler's latents, unchanged.

    Raise `NoNumbers`, which says whether the sampler or the VAE is the cause, when they have NaN or infinity.
    """
    if not latents.isfinite().all():
        raise NoNumbers(
            "The sampler returned values that are not numbers (NaN): the model overflowed. Load it in a higher "
            "precision, lower cfg, or take the LoRA off to see whether it is the cause."
        )
    if not images.isfinite().all():
        raise NoNumbers(f"The VAE decoded a picture to values that are not numbers (NaN). {_OVERFLOWS}")
    return images


def in_parts(vae: Any, through: Callable[[Tensor], Tensor], batch: Tensor, at_once: int) -> Tensor:
    """Send a batch ``through`` a VAE, ``at_once`` pictures at a time, and return all results as one batch.

    When the memory is too short for whole pictures, work in tiles of each picture.
    """
    with torch.no_grad():
        try:
            return torch.cat([through(part) for part in torch.split(batch, at_once)])
        except torch.cuda.OutOfMemoryError:
            log.warning("The VAE works in tiles: there is too little memory for whole pictures.")
        # Free the memory of the first attempt before retrying in tiles.
        with _tiled(vae):
            return torch.cat([through(part) for part in torch.split(batch, 1)])


@contextmanager
def _tiled(vae: Any) -> Iterator[None]:
    """Inside the block a diffusers VAE works on overlapping tiles of half the model's side and blends their seams."""
    sides = vae.tile_sample_min_size, vae.tile_latent_min_size
    vae.tile_sample_min_size, vae.tile_latent_min_size = (side // 2 for side in sides)
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = sides


def at_once_of(count: int, pixels: int) -> int:
    """Return how many of ``count`` pictures of this many pixels go through the VAE at a time, at least 1."""
    return max(1, min(count, PIXELS_AT_ONCE // pixels))
