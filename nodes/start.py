"""The start for a MODEL of any noise law: as LATENT, and as a MODEL whose sampling puts it into the noise.

Where a model begins in noise alone, as flows and zero-terminal-SNR models do, a LATENT counts nothing at the first
step. There the start goes into the noise itself, as strong as it is for SDXL.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import comfy.patcher_extension
import torch

from . import convert

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import Mix

_KEY = "mudi_start"
"""Of the wrapper, among those of a MODEL."""
_PLACE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


def start(canvas: Mix, vae: Any, gamma: float, model: Any = None, below: Tensor | None = None) -> Tensor:
    """Return the start as a LATENT's samples ``[1, c, ..., h/f, w/f]``: ``gamma * z0 * m`` in the MODEL's latent space.

    Without a MODEL it is that of SD's and SDXL's VAE, whose zero is the model's own. ``below``: as in
    `start.init_latent.init_latent`, which this raises the errors of.
    """
    from ..mudi_core.start.init_latent import init_latent

    encode = convert.encode_image(vae, model)
    if model is None or not _moves_zero(model):
        return init_latent(canvas, encode, gamma, below)
    into, out = model.model.process_latent_in, model.model.process_latent_out
    ground = None if below is None else into(below)
    samples: Tensor = out(init_latent(canvas, lambda images: into(encode(images)), gamma, ground))
    return samples


def with_start(model: Any, starts: Tensor) -> Any:
    """Return a clone of the MODEL that sees the ``starts`` ``[n, c, ...]`` wherever its sampling begins.

    A sampler must get them as its latent: to a latent that is none of them nothing is done.
    """
    changed = model.clone()
    changed.remove_wrappers_with_key(_PLACE, _KEY)
    changed.add_wrapper_with_key(_PLACE, _KEY, _Start(starts))
    return changed


def sees_latents(model: Any) -> bool:
    """Return whether a MODEL that samples from its last noise level sees a start that is in its LATENT alone."""
    sampling = model.get_model_object("model_sampling")
    return _missing(sampling, torch.tensor([float(sampling.sigma_max), 0.0])) == 0


class _Start:
    """What is called in place of CFGGuider's ``outer_sample``, which it calls in turn."""

    def __init__(self, starts: Tensor) -> None:
        self.starts = starts

    def __call__(self, executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *more: Any,
                 **named: Any) -> Any:  # fmt: skip
        model = executor.class_obj.model_patcher
        missing = _missing(model.get_model_object("model_sampling"), sigmas)
        if missing and latent_image.shape[1:] == self.starts.shape[1:]:
            ours = [row for row, one in enumerate(latent_image) if any(torch.equal(one.cpu(), s) for s in self.starts)]
            if ours:
                noise, mask = noise.clone(), more[0] if more else None
                added = missing * model.model.process_latent_in(latent_image[ours]).to(noise)
                noise[ours] += added if mask is None else added * mask.to(noise).expand_as(noise)[ours]
        return executor(noise, latent_image, sampler, sigmas, *more, **named)


def _missing(sampling: Any, sigmas: Tensor) -> float:
    """Return what a latent lacks at the first of ``sigmas``, as a share of the noise, to count as much as for SDXL."""
    from ..mudi_core.start.init_latent import missing_share

    if not len(sigmas):
        return 0.0
    first, last = float(sigmas[0]), float(sampling.sigma_max)
    at_the_last = first > last or math.isclose(first, last, rel_tol=1e-5)
    at = torch.tensor([first], dtype=torch.float64)
    one, none = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    noise = float(sampling.noise_scaling(at, one.clone(), none.clone(), at_the_last))
    signal = float(sampling.noise_scaling(at, none.clone(), one.clone(), at_the_last))
    return missing_share(signal / noise) if noise else 0.0


def _moves_zero(model: Any) -> bool:
    """Whether a latent of zeros from the VAE is another one to the network, as for FLUX."""
    form = model.get_model_object("latent_format")
    nothing = torch.zeros(1, form.latent_channels, *[1] * form.latent_dimensions)
    return bool(torch.count_nonzero(model.model.process_latent_in(nothing)))
