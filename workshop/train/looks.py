"""Train the reader of looks on the judge's examples: drawn characters and painted ones, whose looks are known."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..looks import Reader
from .judge import BATCH, SMOOTHING, disturbed, examples
from .loop import Recipe, fit

RECIPE = Recipe(steps=4000, learning_rate=2.0e-3, warmup=100, cooldown=0.6, ema=0.99)


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file."""
    torch.manual_seed(recipe.seed)
    crops, wanted = examples(work, device)
    model = Reader().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(crops), (BATCH,), generator=generator)
        answers, right = model(disturbed(crops[index], generator, device)), wanted[index].to(device)
        errors = [
            cross_entropy(answer.float(), right[:, look], label_smoothing=SMOOTHING)
            for look, answer in enumerate(answers)
        ]
        return torch.stack(errors).mean()

    return {"looks": fit(model, loss, recipe, work / "looks.pt").state_dict()}
