"""The loss against straightforward references, written from the formulas sample by sample."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mudi_core.train.loss import mask_weight, squared_errors, training_loss

SHAPE = (4, 3, 5, 6)


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prediction, target, reference and mask."""
    generator = torch.Generator().manual_seed(seed)
    prediction, wanted, reference = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    return prediction, wanted, reference, torch.rand(4, 1, 5, 6, generator=generator)


def loss_of(
    prediction: Tensor, wanted: Tensor, weight: Tensor, reference: Tensor | None = None, kl: float = 0.0, **more: Any
) -> Tensor:
    """The loss of a batch from the two predictions."""
    if reference is not None and "dco_beta" in more:
        more["reference"] = squared_errors(reference, wanted, weight)
    if reference is not None and kl:
        more |= {"drift": squared_errors(prediction, reference), "kl_weight": kl}
    return training_loss(squared_errors(prediction, wanted, weight), **more)


def squares(prediction: Tensor, wanted: Tensor, weight: Tensor, samples: range) -> float:
    """The mean over samples, channels and pixels of weight * (prediction - wanted)^2, one number at a time."""
    total = 0.0
    for b in samples:
        for c in range(SHAPE[1]):
            for y in range(SHAPE[2]):
                for x in range(SHAPE[3]):
                    error = float(prediction[b, c, y, x]) - float(wanted[b, c, y, x])
                    total += float(weight[b, 0, y, x]) * error**2
    return total / (len(samples) * math.prod(SHAPE[1:]))


def dco(loss: float, reference: float, beta: float) -> float:
    return -math.log(1 / (1 + math.exp(beta * (loss - reference))))


@pytest.mark.parametrize("background_weight", [0.0, 0.25, 1.0])
def test_masked_mean_squared_error(background_weight: float) -> None:
    prediction, wanted, _, mask = batch()
    weight = mask_weight(mask, background_weight)
    expected = squares(prediction, wanted, mask * (1 - background_weight) + background_weight, range(4))
    assert loss_of(prediction, wanted, weight).item() == pytest.approx(expected, rel=1e-5)


def test_background_weight_1_is_the_plain_mean_squared_error() -> None:
    prediction, wanted, _, mask = batch()
    loss = loss_of(prediction, wanted, mask_weight(mask, 1.0))
    assert loss.item() == pytest.approx(torch.nn.functional.mse_loss(prediction, wanted).item(), rel=1e-6)


def test_background_weight_0_ignores_what_happens_outside_the_mask() -> None:
    prediction, wanted, _, mask = batch()
    mask = mask.round()
    weight = mask_weight(mask, 0.0)
    elsewhere = prediction + 100 * (1 - mask)
    assert torch.equal(loss_of(prediction, wanted, weight), loss_of(elsewhere, wanted, weight))


@pytest.mark.parametrize("priors, prior_weight", [(1, 1.0), (2, 0.5), (2, 0.0)])
def test_priors_add_their_own_mean(priors: int, prior_weight: float) -> None:
    prediction, wanted, _, mask = batch()
    loss = loss_of(prediction, wanted, mask, priors=priors, prior_weight=prior_weight)
    own = squares(prediction, wanted, mask, range(4 - priors))
    expected = own + prior_weight * squares(prediction, wanted, mask, range(4 - priors, 4))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.5, 3.0])
@pytest.mark.parametrize("priors", [0, 2])
def test_dco_is_the_logistic_loss_of_each_samples_improvement(beta: float, priors: int) -> None:
    """As the official code has it, whose batch is one image. Priors stand outside of the gate."""
    prediction, wanted, reference, mask = batch()
    weights = {"priors": priors, "prior_weight": 0.7}
    loss = loss_of(prediction, wanted, mask, reference=reference, dco_beta=beta, **weights)
    own = range(4 - priors)
    gated = [
        dco(squares(prediction, wanted, mask, range(b, b + 1)), squares(reference, wanted, mask, range(b, b + 1)), beta)
        for b in own
    ]
    expected = sum(gated) / len(gated)
    if priors:
        worse = squares(prediction, wanted, mask, range(2, 4)) - squares(reference, wanted, mask, range(2, 4))
        expected += 0.7 * beta / 2 * worse
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_sample_that_is_learned_does_not_shut_the_gate_for_another() -> None:
    _, wanted, reference, mask = batch()
    prediction = reference.clone()
    prediction[0] = wanted[0]  # far better than its reference
    prediction.requires_grad_()
    loss = loss_of(prediction, wanted, mask, reference=reference, dco_beta=1000.0)
    pulled = torch.autograd.grad(loss, prediction)[0].flatten(1).norm(dim=1)
    assert pulled[0] < 1e-6 and (pulled[1:] > 1).all()


def test_priors_pull_whatever_the_gate() -> None:
    _, wanted, reference, mask = batch()
    prediction = wanted.clone()
    prediction[2:] = reference[2:]
    prediction.requires_grad_()
    more: dict[str, Any] = {"priors": 2, "reference": reference, "dco_beta": 1000.0}
    pulled = torch.autograd.grad(loss_of(prediction, wanted, mask, **more), prediction)[0].flatten(1).norm(dim=1)
    assert (pulled[:2] < 1e-6).all() and (pulled[2:] > 1).all()


def test_dco_starts_at_log_2_where_the_lora_does_nothing() -> None:
    prediction, wanted, _, mask = batch()
    loss = loss_of(prediction, wanted, mask, reference=prediction.clone(), dco_beta=1000.0)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("priors, prior_weight", [(0, 1.0), (2, 0.5)])
@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_kl_adds_the_squared_distance_of_both_predictions(priors: int, prior_weight: float, beta: float) -> None:
    prediction, wanted, reference, mask = batch()
    weights = {"priors": priors, "prior_weight": prior_weight}
    dco_too: dict[str, Any] = {"dco_beta": beta} if beta else {}
    without = loss_of(prediction, wanted, mask, reference, **weights, **dco_too)
    loss = loss_of(prediction, wanted, mask, reference, kl=0.7, **weights, **dco_too)
    # The mask has no say in it: KL holds the background too.
    everywhere = torch.ones_like(mask)
    distance = squares(prediction, reference, everywhere, range(4 - priors))
    if priors:
        distance += prior_weight * squares(prediction, reference, everywhere, range(4 - priors, 4))
    assert loss.item() == pytest.approx(without.item() + 0.7 * distance, rel=1e-5)


def test_kl_is_proportional_to_the_divergence_of_two_gaussians_of_one_variance() -> None:
    prediction, wanted, reference, mask = batch()
    std = 0.3
    ours, theirs = (torch.distributions.Normal(mean, std) for mean in (prediction, reference))
    divergence = torch.distributions.kl_divergence(theirs, ours).mean()
    added = loss_of(prediction, wanted, mask, reference, kl=1.0) - loss_of(prediction, wanted, mask)
    assert added.item() == pytest.approx(2 * std**2 * divergence.item(), rel=1e-5)


@pytest.mark.parametrize("priors", [0, 1, 2])
def test_for_a_small_beta_dco_pulls_like_the_plain_loss_with_priors(priors: int) -> None:
    prediction, wanted, reference, mask = batch()
    beta = 1e-3
    prediction.requires_grad_()
    weighted: dict[str, Any] = {"priors": priors, "prior_weight": 0.7}
    plain = torch.autograd.grad(loss_of(prediction, wanted, mask, **weighted), prediction)[0]
    loss = loss_of(prediction, wanted, mask, reference=reference, dco_beta=beta, **weighted)
    pulled = torch.autograd.grad(loss, prediction)[0]
    torch.testing.assert_close(pulled, beta / 2 * plain, rtol=2e-3, atol=0)


def test_a_run_far_better_than_its_reference_is_left_alone() -> None:
    _, wanted, reference, mask = batch()
    prediction = wanted.clone().requires_grad_()
    loss = loss_of(prediction + 0.01, wanted, mask, reference=reference, dco_beta=1000.0)
    assert torch.autograd.grad(loss, prediction)[0].abs().max() < 1e-6
