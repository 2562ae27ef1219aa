"""Tune text encoders on photos of one subject, and keep what that changes at its class word (Cones 2, section 3.2).

The prompt of every step is the class word alone. Beside the usual error of the prediction two norms hold the rest of
the text where it was: of the change at the beginning of the text, and of the change behind the word. What is kept is
the mean change of the word in many sentences; the tuned weights are thrown away. The numbers are the authors'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..bases.promise import Conditions, Denoiser, TextEncoders
from ..bases.residual import Residual, own_rows
from ..bases.text import rows_of, tuned
from ..types import MudiError
from .config import TrainConfig
from .loss import mask_weight, squared_errors
from .optimizer import make_optimizer, set_learning_rate
from .plan import Plan
from .step import batch_of, draw_noise, places_of

TEMPLATES = (
    "a {}", "the {}", "my {}", "one {}", "a photo of a {}", "a photo of the {}", "a photo of my {}",
    "a picture of a {}", "an image of a {}", "a drawing of a {}", "a portrait of a {}", "a close-up of a {}",
    "a good photo of a {}", "a bright photo of a {}", "a dark photo of a {}", "a small {}", "a large {}", "a nice {}",
    "this is a {}",
    "a photo of a {} in the snow", "a photo of a {} on the beach", "a photo of a {} in a room",
    "a photo of a {} in the meadow", "a photo of a {} at night", "a {} and a friend", "a {} outside",
    "a photo of a {}, simple background",
)  # fmt: skip
"""Sentences over which the change is averaged: 27, as in the paper, which does not print its own."""


class BadTuning(MudiError):
    """A tuning of text encoders that went wrong."""


@dataclass(frozen=True)
class Preservation:
    """How strongly the text around the class word is held where it was."""

    begin: float = 1e-2
    """Weight of the change at the text's beginning."""
    behind: float = 1e-3
    """Weight of the change of all tokens behind the word."""


AS_PUBLISHED = Preservation()


@dataclass(frozen=True, eq=False)
class Tuned:
    """A residual, and how its training went."""

    residual: Residual
    losses: tuple[float, ...]
    """The error of the prediction in each step, without what holds the text."""


def tune(
    denoiser: Denoiser,
    text: TextEncoders,
    plan: Plan,
    config: TrainConfig,
    word: str,
    preservation: Preservation = AS_PUBLISHED,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Tuned:
    """Return the residual of the subject of a plan at its class word. Nothing of the base model is changed.

    ``on_step`` gets the steps done, those in all and the loss; an exception from it ends the run. Raise `BadTuning`.
    """
    rows, steps = rows_of(text, word, word), config.samples.steps
    with torch.inference_mode(False), torch.no_grad():
        (alone,) = _copied(text.encode([word]))
        before = _at_word(text, word)
    losses: list[float] = []
    with denoiser.ready(config.learning.precision == "bf16"), tuned(text.modules()) as weights:
        optimizer = make_optimizer(config.learning, weights)
        for step in range(steps):
            set_learning_rate(optimizer, config.learning, step, steps)
            now = text.encode([word])[0][text.context]
            error = _error(denoiser, plan, config, step, {**alone, text.context: now})
            _apply(optimizer, weights, config, error + _held(now, alone[text.context], rows, preservation))
            losses.append(float(error.detach()))
            if losses[-1] != losses[-1]:
                raise BadTuning(f"The loss became NaN at step {step + 1}. Lower the learning rate.")
            if on_step is not None:
                on_step(step + 1, steps, losses[-1])
        with torch.no_grad():
            shift = _at_word(text, word) - before
    if not shift.isfinite().all():
        raise BadTuning("The text encoders became NaN. Lower the learning rate.")
    return Tuned(Residual(word, shift, own_rows(text, word), text.widths), tuple(losses))


def _at_word(text: TextEncoders, word: str) -> Tensor:
    """Return the mean of the context at a word's tokens over all `TEMPLATES`: float ``[t, d]`` on the CPU."""
    captions = [template.format(word) for template in TEMPLATES]
    found = [
        said[text.context].detach()[rows_of(text, caption, word)].cpu().float()
        for caption, said in zip(captions, text.encode(captions), strict=True)
    ]
    return torch.stack(found).mean(dim=0)


def _error(denoiser: Denoiser, plan: Plan, config: TrainConfig, step: int, said: Conditions) -> Tensor:
    """Return the mean squared error of a step's samples, all of one size, with these conditions."""
    samples = batch_of(plan, config, step)
    latents = [plan.latents[i] for i in samples]
    noise, drawn = draw_noise(config, denoiser, [one.shape for one in latents], places_of(plan, config, step))
    level = denoiser.level(drawn)
    z0 = denoiser.latents(torch.stack(latents).to(denoiser.device))
    eps = torch.stack(noise).to(denoiser.device)
    prediction = denoiser.predict(level.noisy(z0, eps), level, [said] * len(samples), plan.time_ids[samples])
    mask = torch.stack([plan.masks[i] for i in samples]).to(denoiser.device)
    mask = mask.reshape(len(mask), *[1] * (z0.ndim - 3), *mask.shape[-2:])
    weight = mask_weight(mask, config.learning.background_weight)
    errors = squared_errors(prediction, level.wanted(z0, eps), weight)
    return errors.mean()


def _held(now: Tensor, before: Tensor, rows: list[int], preservation: Preservation) -> Tensor:
    """Return what the change of the text around the word adds to the loss."""
    change = now - before.to(now)
    begin, behind = (torch.linalg.vector_norm(part) for part in (change[0], change[rows[-1] + 1 :]))
    held: Tensor = preservation.begin * begin + preservation.behind * behind
    return held


def _apply(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], config: TrainConfig, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.learning.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(weights, config.learning.max_grad_norm)
    optimizer.step()


def _copied(said: list[Conditions]) -> list[Conditions]:
    return [{name: value.detach().clone() for name, value in one.items()} for one in said]
