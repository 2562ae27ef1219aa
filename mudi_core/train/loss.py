"""From a U-Net's prediction to one number: masked mean squared error, min-SNR, priors, DCO, KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..types import MudiError


class BadSchedule(MudiError):
    """A noise schedule that the training cannot follow."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """How a model was taught to see noise."""

    alphas_cumprod: Tensor
    """Float ``[T]``: abar_t, the share of signal in a noisy latent's variance; falls from nearly 1 to nearly 0."""
    prediction_type: str
    """"epsilon" or "v_prediction": what the U-Net answers with."""
    latent_scale: float
    """The VAE's latents times this are what the U-Net sees (0.13025 for SDXL)."""

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise BadSchedule(
                f"The model predicts '{self.prediction_type}'; training knows 'epsilon' and 'v_prediction'. "
                "Choose a checkpoint of one of these kinds."
            )

    @classmethod
    def of(cls, scheduler: Any, latent_scale: float) -> NoiseSchedule:
        """From any diffusers scheduler of discrete timesteps."""
        return cls(scheduler.alphas_cumprod.float(), scheduler.config.prediction_type, latent_scale)

    @property
    def timesteps(self) -> int:
        return self.alphas_cumprod.shape[0]


def noisy(z0: Tensor, eps: Tensor, abar: Tensor) -> Tensor:
    """``z_t = sqrt(abar) z0 + sqrt(1 - abar) eps`` (DDPM, equation 4), with ``abar [b,1,1,1]``."""
    return abar.sqrt() * z0 + (1 - abar).sqrt() * eps


def target(z0: Tensor, eps: Tensor, abar: Tensor, prediction_type: str) -> Tensor:
    """What the U-Net should answer: ``eps``, or ``v = sqrt(abar) eps - sqrt(1 - abar) z0``."""
    if prediction_type == "epsilon":
        return eps
    return abar.sqrt() * eps - (1 - abar).sqrt() * z0


def mask_weight(mask: Tensor, background_weight: float) -> Tensor:
    """1 inside the subjects, ``background_weight`` outside, in between where the mask is: ``[b,1,h,w]``."""
    return background_weight + (1 - background_weight) * mask


def min_snr_weight(abar: Tensor, gamma: float | None, prediction_type: str) -> Tensor:
    """``min(snr, gamma) / snr`` for epsilon, ``/ (snr + 1)`` for v (Hang et al. 2023); 1 without a gamma."""
    if gamma is None:
        return torch.ones_like(abar)
    # A schedule may end in pure noise (abar 0) or begin without any (abar 1).
    snr = (abar / (1 - abar).clamp(min=1e-8)).clamp(min=1e-8)
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)


def squared_errors(prediction: Tensor, wanted: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Of each sample the mean of ``weight * (prediction - wanted)^2``: ``[b]``, float32.

    ``prediction``, ``wanted``: ``[b,c,h,w]``; ``weight`` broadcasts to them. A weight of 0 adds nothing to the mean and
    still counts in it, so a photo with a small subject does not shout.
    """
    return (weight * (prediction.float() - wanted.float()).square()).mean(dim=(1, 2, 3))


def training_loss(
    errors: Tensor,
    *,
    priors: int = 0,
    prior_weight: float = 1.0,
    reference: Tensor | None = None,
    dco_beta: float = 0.0,
    drift: Tensor | None = None,
    kl_weight: float = 0.0,
) -> Tensor:
    """Return the loss of a batch, one number, from the `squared_errors` ``[b]`` of its samples.

    ``L = L_own + prior_weight * L_prior``, each a mean; the last ``priors`` samples are the prior images (DreamBooth,
    equation 2; the paper's own loss, appendix B). Two regularizers look at what the same U-Net predicts for the same
    samples and noise with the LoRA off:

    - Direct Consistency Optimization (Lee et al. 2024; the official code's loss), with its errors as ``reference``
      ``[b]``: the mean over own samples of ``-logsigmoid(-beta (e_i - r_i))`` takes the place of ``L_own``. Each sample
      has a gate of its own, so two samples in one batch teach what they teach in two batches. Prior images are not
      gated: how much worse they became, ``beta / 2 * (L_prior - R_prior)``, is added. ``beta / 2`` is what the gate
      multiplies an own sample's gradient by where the LoRA does nothing yet, so a prior weight means the same with DCO
      and without.
    - KL regularization, with the squared distance of both predictions as ``drift`` ``[b]``: ``kl_weight * L(drift)`` is
      added. The KL divergence of two denoising steps of one variance is that distance, times a factor of the timestep
      (DDPM, equation 8) which is left out here as it is in the training loss.
    """
    own = len(errors) - priors

    def mean(each: Tensor) -> Tensor:
        return each[:own].mean() + (prior_weight * each[own:].mean() if priors else 0.0)

    if reference is None:
        loss = mean(errors)
    else:
        loss = -logsigmoid(-dco_beta * (errors[:own] - reference[:own])).mean()
        if priors:
            loss = loss + dco_beta / 2 * prior_weight * (errors[own:] - reference[own:]).mean()
    return loss if drift is None else loss + kl_weight * mean(drift)
