"""The optimizer loop that every part of the family is trained by: resumable, averaged, on CPU or CUDA."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a part's training needs to be repeated."""

    steps: int
    learning_rate: float
    warmup: int = 100
    """Steps of linear warm-up."""
    cooldown: float = 0.3
    """Share of the steps, at the end, over which the rate falls to zero. Before them it is constant, so that a run can
    be shortened or prolonged while it is under way by giving another number of steps."""
    weight_decay: float = 0.01
    ema: float = 0.998
    """Decay of the running average of the weights, which is what is kept."""
    seed: int = 0


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step: warm-up, constant, cosine to zero."""
    start = recipe.steps * (1 - recipe.cooldown)
    fall = 1.0 if step < start else 0.5 + 0.5 * math.cos(math.pi * (step - start) / (recipe.steps - start))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * fall


def fit(
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    state: Path,
    save_every: int = 200,
) -> nn.Module:
    """Train `module` on `loss` and return its averaged copy.

    `loss` gets a generator seeded by the step, so that a stopped run goes on with the same batches; its state lies in
    the file `state`, which is read when it is there.
    """
    device = next(module.parameters()).device
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    average = deepcopy(module).requires_grad_(False)
    first = 0
    if state.is_file():
        saved = torch.load(state, map_location=device, weights_only=True)
        module.load_state_dict(saved["module"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    module.train()
    begin, total, count = time.monotonic(), 0.0, 0
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        generator = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step)
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(generator)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), module.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
            for held, now in zip(average.buffers(), module.buffers(), strict=True):
                held.copy_(now)
        total, count = total + value.item(), count + 1
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            seconds = (time.monotonic() - begin) / (step + 1 - first)
            log.info("step %d/%d loss %.4f, %.2f s a step", step + 1, recipe.steps, total / count, seconds)
            total, count = 0.0, 0
            part = state.with_suffix(".part")
            torch.save(
                {
                    "module": module.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                part,
            )
            part.replace(state)
    return average.eval()
