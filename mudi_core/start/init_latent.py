"""The start of a picture: noise whose mean is shifted to a composition of the subjects (paper section 4.2).

``z_T = sqrt(abar_T) * gamma * z0 * m + eps``, with ``z0`` the encoded canvas, ``m`` its mask at the latent's size, and
``abar_T = 1 / (1 + sigma_T^2)`` at the first step's noise level (Algorithm 2). The latent made here is
``gamma * z0 * m`` as the VAE gives it, neither scaled nor noised: ComfyUI's KSampler at denoise 1.0 does the rest,
`shifted_noise` for diffusers.
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
"""Pixels of the canvas in one cell of the latent."""


class BadCanvas(MudiError):
    """A canvas that the VAE cannot encode without changing its size."""


class BadGamma(MudiError):
    """A strength of the start out of its range."""


WEAK = 1 / 40
"""A start whose canvas counts less than this beside the noise does next to nothing (SDXL's: 1 / 15, times gamma)."""


class BadLatent(MudiError):
    """A latent to begin upon that is not of the start's size or channels."""


def default_gamma(n_subjects: int) -> float:
    """The paper's choice of gamma: 1 for one subject, 2 for two or three, 3 for more (above 4 pictures saturate)."""
    return 1.0 if n_subjects < 2 else 2.0 if n_subjects < 4 else 3.0


def init_latent(canvas: Mix, encode: Callable[[Tensor], Tensor], gamma: float, below: Tensor | None = None) -> Tensor:
    """``gamma * z0 * m``, float ``[1, c, h/8, w/8]``: zero outside the subjects, unscaled, without noise.

    ``encode`` takes float images ``[1, h, w, 3]``, 0..1, and gives the VAE's mode ``[1, c, h/8, w/8]``, not multiplied
    by the latent scale. ``below``, a latent of the same shape and scale, takes the place of the zeros. Raises
    `BadCanvas` when the canvas is no multiple of 8 pixels, `BadGamma` below 0, `BadLatent` for another shape.
    """
    height, width = canvas.image.shape[:2]
    if width % MULTIPLE or height % MULTIPLE:
        nearest = "x".join(str(max(round(side / MULTIPLE), 1) * MULTIPLE) for side in (width, height))
        raise BadCanvas(
            f"The canvas is {width}x{height} px; both sides must be a multiple of {MULTIPLE}, for example {nearest}."
        )
    if not 0 <= gamma < float("inf"):
        raise BadGamma(f"gamma must be 0 (plain noise) or more, got {gamma}. Good values are 1 to 4.")
    z0 = encode(canvas.image[None])
    m = resize(canvas.mask, (z0.shape[-1], z0.shape[-2])).to(z0)
    start = gamma * z0 * m
    if below is None:
        return start
    if below.shape != start.shape:
        raise BadLatent(
            f"The latent to begin upon is {_shape(below)}, the layout's start is {_shape(start)}. Use one of the same "
            "model and of the picture's size."
        )
    return start + below.to(z0) * (1 - m)


def canvas_share(sigma: float) -> float:
    """How much the canvas counts beside the noise at a first noise level, before gamma: SDXL's 14.6 gives 0.068.

    0 for models that begin in noise alone (``sigma`` infinite).
    """
    return 1 / math.sqrt(1 + sigma**2)


def weak_start(sigma: float, gamma: float) -> str:
    """A sentence for a start that a model which begins at the noise level ``sigma`` hardly sees, or nothing."""
    share = canvas_share(sigma)
    if gamma == 0 or share >= WEAK:
        return ""
    seen = (
        "nothing"
        if share * gamma < 1e-6
        else f"{share * gamma:.4f} of the noise, SDXL {canvas_share(14.6) * gamma:.3f}"
    )
    return (
        f"This model begins in noise so strong that the start is lost in it (it sees {seen}): the pictures will be as "
        "if there were no start. Zero-terminal-SNR and flow models do so; use an SDXL checkpoint of the usual kind."
    )


def shifted_noise(latent: Tensor, eps: Tensor, sigma: float, latent_scale: float) -> Tensor:
    """The paper's ``z_T``, of the variance that a diffusers pipeline expects of its ``latents`` (1 where nothing is).

    ``latent``: what `init_latent` gives; ``eps``: standard normal ``[b, c, h/8, w/8]``; ``sigma``: the first step's
    noise level (``scheduler.sigmas[0]``; the pipeline multiplies by ``scheduler.init_noise_sigma`` itself);
    ``latent_scale``: the VAE's scaling factor (0.13025 for SDXL).
    """
    return canvas_share(sigma) * latent_scale * latent.to(eps) + eps


def _shape(latent: Tensor) -> str:
    _, channels, *frames, height, width = latent.shape
    of_a_video = f" (a video of {frames[0]} latent frames)" if frames else ""
    return f"{width * MULTIPLE}x{height * MULTIPLE} px in {channels} channels{of_a_video}"
