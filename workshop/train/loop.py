"""The optimizer loop that trains every part of the family: resumable, averaged, on CPU or CUDA."""

from __future__ import annotations

import logging
import math
import re
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
    """What is needed to repeat the training of a part."""

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
    matrix_rate: float = 0.0
    """Learning rate of the hidden layers' matrices by `Muon`; with 0, AdamW moves them as all else."""
    further: bool = False
    """Start from the family's present weights instead of fresh ones."""


def pace(recipe: Recipe, step: int) -> float:
    """Return the share of the learning rate at a step: warm-up, constant, cosine to zero."""
    start = recipe.steps * (1 - recipe.cooldown)
    fall = 1.0 if step < start else 0.5 + 0.5 * math.cos(math.pi * (step - start) / (recipe.steps - start))
    return min(1.0, (step + 1) / recipe.warmup) * fall


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix whose singular values are all 1: five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x: Tensor = (matrix if wide else matrix.T) / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal steps (Jordan et al., 2024; the step's size after Liu et al., arXiv 2502.16982).

    A small transformer learns in half the steps by it. torch's own computes in bfloat16, whatever the processor.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                ahead = torch.lerp(p.grad, mean, group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(orthogonal(ahead), alpha=group["lr"] * 0.2 * max(p.shape) ** 0.5)


HIDDEN = re.compile(r"\.layer\.|blocks\.\d+\.(?!norm)")
"""Layers that `Muon` moves: those of the blocks of a transformer, without what its noise level modulates."""


def optimizers_of(module: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return AdamW, and Muon for the matrices of the hidden layers when the recipe asks for it."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    hidden = [p for name, p in trained.items() if recipe.matrix_rate and p.ndim == 2 and HIDDEN.search(name)]
    others = [p for p in trained.values() if not any(p is one for one in hidden)]
    kinds: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    ]
    return kinds + ([Muon(hidden, recipe.matrix_rate, recipe.weight_decay)] if hidden else [])


def half_is_fast(device: torch.device) -> bool:
    """Return whether bfloat16 is worth it: a processor without instructions for it is many times slower."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fit(
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    recipe: Recipe,
    state: Path,
    save_every: int = 200,
) -> nn.Module:
    """Train `module` on `loss` and return its averaged copy.

    `loss` gets a generator seeded by the step, so that a stopped run continues with the same batches; its state is in
    the file `state`, which is read when it exists.
    """
    device = next(module.parameters()).device
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizers = optimizers_of(module, recipe)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    average = deepcopy(module).requires_grad_(False)
    first = 0
    if state.is_file():
        saved = torch.load(state, map_location=device, weights_only=True)
        module.load_state_dict(saved["module"])
        average.load_state_dict(saved["average"])
        for optimizer, its in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        first = saved["step"]
    module.train()
    begin, total, count = time.monotonic(), 0.0, 0
    for step in range(first, recipe.steps):
        for optimizer, full in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = full * pace(recipe, step)
        generator = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step)
        with torch.autocast(device.type, torch.bfloat16, enabled=half_is_fast(device)):
            value = loss(generator)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            with torch.autocast(device.type, torch.bfloat16, enabled=half_is_fast(device)):
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
            _keep(state, module, average, optimizers, step + 1)
    return average.eval()


def _keep(
    state: Path, module: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    """Write what a later run goes on from."""
    part = state.with_suffix(".part")
    torch.save(
        {
            "module": module.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
        },
        part,
    )
    part.replace(state)
