"""From predictions to one number: masked mean squared error, priors, DCO, KL."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def mask_weight(mask: Tensor, background_weight: float) -> Tensor:
    """Return weights in the shape of the mask: 1 inside the subjects, ``background_weight`` outside.

    Where the mask is between 0 and 1, so is the weight between the two.
    """
    return background_weight + (1 - background_weight) * mask


def squared_errors(prediction: Tensor, wanted: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Return the mean of ``weight * (prediction - wanted)^2`` for each sample: ``[b]``, float32.

    ``prediction``, ``wanted``: ``[b, c, ..., h, w]``; ``weight`` broadcasts to them. Pixels of weight 0 add nothing but
    still count in the mean, so a photo with a small subject does not weigh more.
    """
    return (weight * (prediction.float() - wanted.float()).square()).flatten(1).mean(dim=1)


def training_loss(
    errors: Tensor,
    *,
    priors: int = 0,
    prior_weight: float = 1.0,
    reference: Tensor | None = None,
    dco_beta: float | Tensor = 0.0,
    drift: Tensor | None = None,
    kl_weight: float = 0.0,
) -> Tensor:
    """Return the loss of a batch, one number, from the `squared_errors` ``[b]`` of its samples.

    ``L = L_own + prior_weight * L_prior``, each a mean; the last ``priors`` samples are the prior images (DreamBooth,
    equation 2; the paper's own loss, appendix B). Two regularizers use what the same network predicts for the same
    samples and noise with the LoRA off:

    - Direct Consistency Optimization (Lee et al. 2024; the official code's loss), with its errors as ``reference``
      ``[b]``: the mean over own samples of ``-logsigmoid(-beta (e_i - r_i))`` takes the place of ``L_own``. Each sample
      has a gate of its own, so two samples in one batch teach what they teach in two batches. Prior images are not
      gated: how much worse they became, ``beta / 2 * (L_prior - R_prior)``, is added. ``beta / 2`` is what the gate
      multiplies an own sample's gradient by where the LoRA does nothing yet, so a prior weight means the same with DCO
      and without. ``dco_beta`` may be ``[b]``, by how much the errors of each sample count as errors of its noise
      (`NoiseLevel.as_noise`), for which the official beta was chosen.
    - KL regularization, with the squared distance of both predictions as ``drift`` ``[b]``: ``kl_weight * L(drift)`` is
      added. The KL divergence of two denoising steps of one variance is that distance, times a factor of the timestep
      (DDPM, equation 8) which is left out here as it is in the training loss.
    """
    own, beta = len(errors) - priors, torch.as_tensor(dco_beta, device=errors.device).expand(len(errors))

    def mean(each: Tensor) -> Tensor:
        return each[:own].mean() + (prior_weight * each[own:].mean() if priors else 0.0)

    if reference is None:
        loss = mean(errors)
    else:
        loss = -logsigmoid(-beta[:own] * (errors[:own] - reference[:own])).mean()
        if priors:
            loss = loss + prior_weight * (beta[own:] / 2 * (errors[own:] - reference[own:])).mean()
    return loss if drift is None else loss + kl_weight * mean(drift)
