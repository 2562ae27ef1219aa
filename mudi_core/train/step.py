"""One batch of a plan: noise on it, the U-Net's prediction, its loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..bases.tokens import TokenVectors
from ..lora.adapter import Adapter
from .config import TrainConfig
from .loss import NoiseSchedule, mask_weight, min_snr_weight, noisy, squared_errors, target, training_loss
from .plan import Plan


def batch_of(plan: Plan, config: TrainConfig, number: int) -> list[int]:
    """The samples of batch ``number``, counted over the whole run: its own ones, then as many priors if there are."""
    step, part = divmod(number, config.accumulation)
    own = slice(part * config.batch_size, (part + 1) * config.batch_size)
    return [*plan.steps[step, own].tolist(), *plan.priors[step, own].tolist()]


def places_of(plan: Plan, config: TrainConfig, number: int) -> list[str]:
    """What the noise of each of these samples hangs on: its place among the step's samples, whatever the batches."""
    step, part = divmod(number, config.accumulation)
    places = range(part * config.batch_size, (part + 1) * config.batch_size)
    kinds = ("own", "prior") if plan.priors.shape[1] else ("own",)
    return [f"{step}/{kind}/{place}" for kind in kinds for place in places]


def batch_loss(
    unet: Any, adapter: Adapter, plan: Plan, config: TrainConfig, schedule: NoiseSchedule, number: int
) -> tuple[Tensor, Tensor]:
    """The loss of batch ``number`` with its gradient, and the squared error ``[b]`` of each of its samples."""
    samples = batch_of(plan, config, number)
    device = device_of(unet)
    shapes = [plan.latents[i].shape for i in samples]
    noise, timesteps = draw_noise(config, shapes, schedule.timesteps, places_of(plan, config, number))
    errors, references, drifts = (torch.empty(len(samples), device=device) for _ in range(3))
    compares = config.dco_beta > 0 or config.kl_weight > 0
    for places in _of_one_size([plan.latents[i] for i in samples]):
        chosen = [samples[place] for place in places]
        t = timesteps[places]
        eps = torch.stack([noise[place] for place in places]).to(device)
        z0 = (torch.stack([plan.latents[i] for i in chosen]) * schedule.latent_scale).to(device)
        abar = schedule.alphas_cumprod[t].to(device, z0.dtype).reshape(-1, 1, 1, 1)
        mask = torch.stack([plan.masks[i] for i in chosen]).to(device)
        by_time = min_snr_weight(abar, config.min_snr_gamma, schedule.prediction_type)
        inputs = {"sample": noisy(z0, eps, abar), "timestep": t.to(device)}
        told = _told(plan, chosen, device)
        wanted = target(z0, eps, abar, schedule.prediction_type)
        weight = mask_weight(mask, config.background_weight) * by_time
        if compares:
            with torch.no_grad(), adapter.off():
                without_lora = _predict(unet, config, inputs | told)
            references[places] = squared_errors(without_lora, wanted, weight)
        if adapter.vectors is not None:
            told = _told(plan, chosen, device, adapter.vectors)
        prediction = _predict(unet, config, inputs | told)
        errors[places] = squared_errors(prediction, wanted, weight)
        if config.kl_weight > 0:
            drifts[places] = squared_errors(prediction, without_lora)
    loss = training_loss(
        errors,
        priors=len(samples) - config.batch_size,
        prior_weight=config.prior_loss_weight,
        reference=references if config.dco_beta > 0 else None,
        dco_beta=config.dco_beta,
        drift=drifts if config.kl_weight > 0 else None,
        kl_weight=config.kl_weight,
    )
    return loss, errors.detach()


def draw_noise(
    config: TrainConfig, shapes: Sequence[torch.Size], timesteps: int, places: Sequence[str]
) -> tuple[list[Tensor], Tensor]:
    """Return noise of each sample's shape ``[c,h,w]`` and timesteps ``[b]``, from the seed and the places alone.

    ``places``: of `places_of`. A step of two batches of one then sees what a step of one batch of two sees.
    """
    noise, times = [], []
    for shape, place in zip(shapes, places, strict=True):
        digest = hashlib.sha256(f"{config.seed}/noise/{place}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        eps = torch.randn(shape, generator=generator)
        times.append(torch.randint(0, timesteps, (1,), generator=generator))
        if config.noise_offset > 0:
            eps = eps + config.noise_offset * torch.randn(shape[0], 1, 1, generator=generator)
        noise.append(eps)
    return noise, torch.cat(times)


def device_of(unet: Any) -> torch.device:
    device: torch.device = next(unet.parameters()).device
    return device


def _of_one_size(latents: Sequence[Tensor]) -> list[list[int]]:
    """The places of a batch, in groups that the U-Net can see at once."""
    groups: dict[torch.Size, list[int]] = {}
    for place, latent in enumerate(latents):
        groups.setdefault(latent.shape, []).append(place)
    return list(groups.values())


def _told(
    plan: Plan, samples: Sequence[int], device: torch.device, vectors: TokenVectors | None = None
) -> dict[str, Any]:
    """What the U-Net reads beside the noise; with ``vectors`` the captions as they are understood now."""
    texts = plan.caption_of[samples]
    if vectors is None:
        context, pooled = plan.contexts[texts], plan.pooled[texts]
    else:
        different = list(dict.fromkeys(texts.tolist()))
        answers = vectors.encode([plan.captions[i] for i in different])
        context, pooled = (answer[[different.index(i) for i in texts.tolist()]].float() for answer in answers)
    time_ids = plan.time_ids[samples].to(device)
    return {
        "encoder_hidden_states": context.to(device),
        "added_cond_kwargs": {"text_embeds": pooled.to(device), "time_ids": time_ids},
    }


def _predict(unet: Any, config: TrainConfig, inputs: dict[str, Any]) -> Tensor:
    with torch.autocast(device_of(unet).type, torch.bfloat16, enabled=config.precision == "bf16"):
        prediction: Tensor = unet(**inputs).sample
    return prediction
