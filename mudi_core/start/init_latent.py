"""The start of a picture: noise whose mean is shifted towards a composition of the subjects (paper section 4.2).

``z_T = sqrt(abar_T) * gamma * z0 * m + eps``, where ``z0`` is the encoded canvas, ``m`` its mask at the latent's size,
and ``abar_T = 1 / (1 + sigma_T^2)`` belongs to the noise level of the first step (Algorithm 2). The latent made here is
``gamma * z0 * m`` as the VAE gives it, neither scaled nor with noise: ComfyUI's KSampler at denoise 1.0 does the rest,
for diffusers `shifted_noise` does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..masks import resize
from ..types import MudiError

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Mix

MULTIPLE = 8
"""Pixels of the canvas per cell of SDXL's latent, along a side."""
SHARE = 1 / math.sqrt(1 + 14.6146**2)
"""How much the canvas counts beside the noise where SDXL begins, before gamma: 0.068. Models that begin in more noise,
such as flows, see the same if it is added to their noise."""


class BadCanvas(MudiError):
    """A canvas that the VAE cannot encode without changing its size."""


class BadGamma(MudiError):
    """A strength of the start that is out of range."""


class BadLatent(MudiError):
    """A latent for the background with another size or other channels than the start."""


def default_gamma(n_subjects: int) -> float:
    """Return the paper's gamma: 1 for one subject, 2 for two or three, 3 for more (above 4 pictures saturate)."""
    return 1.0 if n_subjects < 2 else 2.0 if n_subjects < 4 else 3.0


def init_latent(canvas: Mix, encode: Callable[[Tensor], Tensor], gamma: float, below: Tensor | None = None) -> Tensor:
    """Return ``gamma * z0 * m``, float ``[1, c, h/8, w/8]``, unscaled and without noise (paper section 4.2).

    It is 0 outside the subjects. ``encode`` takes float images ``[1, h, w, 3]``, 0..1, and returns the VAE's mode ``[1,
    c, h/8, w/8]``, not multiplied by the latent scale. ``below``, a latent of the same shape and scale, replaces the
    zeros. Raise `BadCanvas` when a side of the canvas is not a multiple of 8 pixels, `BadGamma` below 0, `BadLatent`
    for another shape.
    """
    height, width = canvas.image.shape[:2]
    if width % MULTIPLE or height % MULTIPLE:
        raise _bad_canvas((width, height), MULTIPLE)
    if not 0 <= gamma < float("inf"):
        raise BadGamma(f"gamma must be 0 (plain noise) or more, got {gamma}. Good values are 1 to 4.")
    z0 = encode(canvas.image[None])
    shrinks = 2 ** round(math.log2(width / z0.shape[-1]))
    if (z0.shape[-1] * shrinks, z0.shape[-2] * shrinks) != (width, height):
        raise _bad_canvas((width, height), shrinks)
    m = resize(canvas.mask, (z0.shape[-1], z0.shape[-2])).to(z0)
    start = gamma * z0 * m
    if below is None:
        return start
    if below.shape != start.shape:
        raise BadLatent(
            f"The latent to start from is {_shape(below)}, the layout's start is {_shape(start)}. Use a latent of the "
            "same model and of the picture's size."
        )
    return start + below.to(z0) * (1 - m)


def canvas_share(sigma: float) -> float:
    """Return how much the canvas counts beside the noise at the first noise level, before gamma.

    It is 0.068 for SDXL's 14.6, and 0 for models that begin in pure noise (``sigma`` infinite).
    """
    return 1 / math.sqrt(1 + sigma**2)


def missing_share(share: float) -> float:
    """Return what is to be added to noise where the canvas counts only ``share`` beside it, before gamma.

    With it the canvas counts as for SDXL: all of these models follow one equation in ``z / signal`` and ``noise /
    signal``, and sampling that begins above SDXL's first noise level is to pass through the same values there.
    """
    missing = SHARE - share
    return missing if missing > 1e-4 else 0.0


def shifted_noise(latent: Tensor, eps: Tensor, sigma: float, latent_scale: float) -> Tensor:
    """Return the paper's ``z_T`` (section 4.2) with the variance that a diffusers pipeline expects of its ``latents``.

    ``latent``: from `init_latent`; ``eps``: standard normal ``[b, c, h/8, w/8]``; ``sigma``: the noise level of the
    first step (``scheduler.sigmas[0]``; the pipeline itself multiplies by ``scheduler.init_noise_sigma``);
    ``latent_scale``: the VAE's scaling factor (0.13025 for SDXL). The variance is 1 where the canvas is empty.
    """
    share = canvas_share(sigma)
    return (share + missing_share(share)) * latent_scale * latent.to(eps) + eps


def _bad_canvas(size: tuple[int, int], multiple: int) -> BadCanvas:
    nearest = "x".join(str(max(round(side / multiple), 1) * multiple) for side in size)
    return BadCanvas(
        f"The canvas is {size[0]}x{size[1]} px; both sides must be a multiple of {multiple}, for example {nearest}."
    )


def _shape(latent: Tensor) -> str:
    _, channels, *frames, height, width = latent.shape
    of_a_video = f" (a video of {frames[0]} latent frames)" if frames else ""
    return f"{width * MULTIPLE}x{height * MULTIPLE} px in {channels} channels{of_a_video}"
