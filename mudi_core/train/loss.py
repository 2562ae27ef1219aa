"""From a U-Net's prediction to one number: masked mean squared error, min-SNR, priors, DCO."""

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
                "Choose an SDXL checkpoint of one of these kinds."
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


def mean_squared_error(prediction: Tensor, wanted: Tensor, weight: Tensor, priors: int, prior_weight: float) -> Tensor:
    """``L = L_own + prior_weight * L_prior``: each the mean of ``weight * (prediction - wanted)^2`` over its samples.

    The last ``priors`` samples of the batch are the prior images (DreamBooth, equation 2). A weight of 0 adds nothing
    to the mean and still counts in it, so a photo with a small subject does not shout.
    """
    each = (weight * (prediction.float() - wanted.float()).square()).mean(dim=(1, 2, 3))
    own = each[: len(each) - priors].mean()
    return own + prior_weight * each[len(each) - priors :].mean() if priors else own


def training_loss(
    prediction: Tensor,
    wanted: Tensor,
    weight: Tensor,
    *,
    priors: int = 0,
    prior_weight: float = 1.0,
    reference: Tensor | None = None,
    dco_beta: float = 0.0,
) -> Tensor:
    """The loss of a step: `mean_squared_error`, or with a ``reference`` its Direct Consistency Optimization.

    DCO is ``-logsigmoid(-beta (L_theta - L_ref))``: the ``reference`` is the same U-Net's prediction for the same batch
    and noise with the LoRA off. ``L`` includes the priors on both sides. So priors and DCO go together: for a small
    beta this is ``beta / 2`` times the plain loss with priors, and the prior weight means the same in both.

    ``prediction``, ``wanted``, ``reference``: ``[b,c,h,w]``; ``weight`` broadcasts to them.
    """
    loss = mean_squared_error(prediction, wanted, weight, priors, prior_weight)
    if reference is None:
        return loss
    return -logsigmoid(-dco_beta * (loss - mean_squared_error(reference, wanted, weight, priors, prior_weight)))
