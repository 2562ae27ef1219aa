"""One batch of a plan: add noise, predict, compute the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bases.promise import Conditions, Denoiser, NoiseLevel
from ..bases.tokens import TokenVectors
from ..lora.adapter import Adapter
from ..types import MudiError
from .config import TrainConfig
from .loss import mask_weight, squared_errors, training_loss
from .plan import Plan

_NAMED = 3
"""Most layers without a gradient to name."""


class NoGradient(MudiError):
    """A training that could change nothing: no layer of the LoRA has a gradient."""

    def __init__(self) -> None:
        super().__init__(
            "No layer of the LoRA has a gradient on this model, so training cannot change anything. Use another "
            "checkpoint of this model, or connect it without nodes that change its layers."
        )


@dataclass(frozen=True, eq=False)
class Trainee:
    """What is trained, on which samples and how: everything that a batch needs except its number."""

    denoiser: Denoiser
    adapter: Adapter
    """The LoRA on the denoiser's network."""
    plan: Plan
    config: TrainConfig


def batch_of(plan: Plan, config: TrainConfig, number: int) -> list[int]:
    """Return the samples of batch ``number``, counted over the whole run: its own, then as many priors if any."""
    step, part = divmod(number, config.accumulation)
    own = slice(part * config.fit.batch_size, (part + 1) * config.fit.batch_size)
    return [*plan.steps[step, own].tolist(), *plan.priors[step, own].tolist()]


def places_of(plan: Plan, config: TrainConfig, number: int) -> list[str]:
    """Return what the noise of each of these samples depends on: its place in its step, whatever the batches."""
    step, part = divmod(number, config.accumulation)
    places = range(part * config.fit.batch_size, (part + 1) * config.fit.batch_size)
    kinds = ("own", "prior") if plan.priors.shape[1] else ("own",)
    return [f"{step}/{kind}/{place}" for kind in kinds for place in places]


def batch_loss(trainee: Trainee, number: int) -> tuple[Tensor, Tensor]:
    """Return the loss of batch ``number`` with its gradient, and the squared error ``[b]`` of each of its samples.

    Raise `NoGradient` when the loss does not depend on the LoRA.
    """
    denoiser, plan, config = trainee.denoiser, trainee.plan, trainee.config
    samples = batch_of(plan, config, number)
    noise, drawn = draw_noise(
        config, denoiser, [plan.latents[i].shape for i in samples], places_of(plan, config, number)
    )
    errors, references, drifts, as_noise = (torch.empty(len(samples), device=denoiser.device) for _ in range(4))
    for places in _of_one_size([plan.latents[i] for i in samples]):
        chosen = [samples[place] for place in places]
        eps = torch.stack([noise[place] for place in places])
        level = denoiser.level(drawn[places])
        errors[places], reference, drift = _of_group(trainee, chosen, eps, level)
        as_noise[places] = level.as_noise()
        if reference is not None:
            references[places] = reference
        if drift is not None:
            drifts[places] = drift
    learning = config.learning
    loss = training_loss(
        errors,
        priors=len(samples) - config.fit.batch_size,
        prior_weight=config.samples.prior_loss_weight,
        reference=references if learning.dco_beta > 0 else None,
        dco_beta=learning.dco_beta * as_noise,
        drift=drifts if learning.kl_weight > 0 else None,
        kl_weight=learning.kl_weight,
    )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise NoGradient
    return loss, errors.detach()


def layers_left_out(adapter: Adapter) -> str:
    """Return a sentence about the layers without a gradient in the first step; "" when all have one.

    Raise `NoGradient` when none has one.
    """
    left_out, all_layers = adapter.without_gradient(), adapter.matrices()[::2]
    if not left_out:
        return ""
    if len(left_out) == len(all_layers):
        raise NoGradient
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    return (
        f"{len(left_out)} of the LoRA's {len(all_layers)} layers had no gradient in the first step, so training leaves "
        f"them as they are: {', '.join(left_out[:_NAMED])}{more}."
    )


def _of_group(
    trainee: Trainee, samples: Sequence[int], eps: Tensor, level: NoiseLevel
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return squared errors ``[b]`` of samples of one size, those without the LoRA, and the distance of both."""
    denoiser, adapter, plan, learning = trainee.denoiser, trainee.adapter, trainee.plan, trainee.config.learning
    device = denoiser.device
    z0 = denoiser.latents(torch.stack([plan.latents[i] for i in samples]).to(device))
    eps = eps.to(device)
    x, wanted = level.noisy(z0, eps), level.wanted(z0, eps)
    mask = torch.stack([plan.masks[i] for i in samples]).to(device)
    weight = mask_weight(mask.reshape(len(mask), *[1] * (z0.ndim - 3), *mask.shape[-2:]), learning.background_weight)
    if learning.min_snr_gamma is not None:
        weight = weight * level.min_snr(learning.min_snr_gamma).reshape(-1, *[1] * (z0.ndim - 1))
    texts, sizes = [plan.caption_of[i] for i in samples], plan.time_ids[samples]
    conditions = [plan.conditions[i] for i in texts]
    reference = drift = None
    if learning.dco_beta > 0 or learning.kl_weight > 0:
        with torch.no_grad(), adapter.off():
            without_lora = denoiser.predict(x, level, conditions, sizes)
        reference = squared_errors(without_lora, wanted, weight)
    if adapter.vectors is not None:
        conditions = _understood_now(plan, texts, adapter.vectors)
    prediction = denoiser.predict(x, level, conditions, sizes)
    if learning.kl_weight > 0:
        drift = squared_errors(prediction, without_lora)
    return squared_errors(prediction, wanted, weight), reference, drift


def draw_noise(
    config: TrainConfig, denoiser: Denoiser, shapes: Sequence[torch.Size], places: Sequence[str]
) -> tuple[list[Tensor], Tensor]:
    """Draw noise in each sample's shape ``[c, ...]`` and noise levels ``[b]``, only from the seed and the places.

    ``places``: from `places_of`. So a step of two batches of one sees the same as a step of one batch of two.
    """
    noise, levels = [], []
    for shape, place in zip(shapes, places, strict=True):
        digest = hashlib.sha256(f"{config.samples.seed}/noise/{place}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        eps = torch.randn(shape, generator=generator)
        levels.append(denoiser.draw_level(generator))
        if config.learning.noise_offset > 0:
            offset = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
            eps = eps + config.learning.noise_offset * offset
        noise.append(eps)
    return noise, torch.cat(levels)


def _of_one_size(latents: Sequence[Tensor]) -> list[list[int]]:
    """Return the places of a batch, in groups that the network can see at once."""
    groups: dict[torch.Size, list[int]] = {}
    for place, latent in enumerate(latents):
        groups.setdefault(latent.shape, []).append(place)
    return list(groups.values())


def _understood_now(plan: Plan, texts: Sequence[int], vectors: TokenVectors) -> list[Conditions]:
    """Return the conditions of captions with the current vectors of the tokens, with gradients."""
    different = list(dict.fromkeys(texts))
    answers = vectors.encode([plan.captions[i] for i in different])
    return [{name: value.float() for name, value in answers[different.index(i)].items()} for i in texts]
