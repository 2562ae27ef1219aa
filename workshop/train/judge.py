"""Train the judge of the embedded SDXL's pictures on rendered characters and on painted ones with known looks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from mudi_core.bases import embedded as family
from mudi_core.toy.draw import render

from ..brush import Brush
from ..judge import SIDE, Judge, framed
from .data import crowded, looks, pool
from .loop import Recipe, fit
from .unet import SCENES, encoded, tell

RECIPE = Recipe(steps=5000, learning_rate=2.0e-3, warmup=100, cooldown=0.6, ema=0.99)
BATCH = 64
DRAWN = 4000
"""Scenes as drawn, from the first on."""
PAINTED = 2400
"""Scenes after them, painted over by the U-Net."""
TOGETHER = 24
GUIDANCES = (0.0, 3.0, 8.5)
"""With what guidance a scene is painted over, in turns; 0 is without its caption."""
NOISED = (200, 550)
"""Steps of noise, of 1000, that are laid on a scene before it is painted over: its shapes still show."""
LOOKS = 2
"""Crops of every painted character, each by a box of its own."""
JITTER = 0.1
"""Standard deviation of a box's edges, as a share of its size: detectors cut figures off."""
SHRUNK = 3
"""Boxes are drawn so many times smaller than the picture, which is quick."""
SOFTEST = 24
"""A crop is shrunk, at most to this side, and enlarged again."""
NARROWEST = 64
"""Side of the smallest window of a crop that is looked at."""
ERASED = (10, 30)
"""Sides of squares that are wiped out of every other crop."""
SMOOTHING = 0.05
"""Of the labels: painted characters are not always what they should be."""


def painted(
    numbers: Sequence[int],
    work: Path,
    device: torch.device,
    rng: random.Random,
    noised: tuple[int, int] = NOISED,
) -> list[Tensor]:
    """Pictures ``[SIZE, SIZE, 3]`` of scenes, noised and then denoised, so that the model's hand is in them while the
    looks still are the scene's."""
    brush, latents = Brush(device), encoded(work, device)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    pictures: list[Tensor] = []
    for turn, begin in enumerate(range(0, len(numbers), TOGETHER)):
        scenes = list(numbers[begin : begin + TOGETHER])
        lines = tell([crowded(number) for number in scenes], rng).lines
        noise = rng.uniform(*noised)
        z = brush.over(latents[scenes].float(), lines, GUIDANCES[turn % len(GUIDANCES)], noise, generator)
        pictures += list(brush.decoded(z))
    return pictures


def examples(work: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """Crops, uint8 ``[n, 3, SIDE, SIDE]``, with the indices of their looks in `VALUES` ``[n, 8]``; made once."""
    path = work / "judge-examples-all.pt"
    if not path.is_file():
        rng = random.Random(0)
        drawn = pool(work, SCENES, family.SIZE, crowded)[:DRAWN]
        pictures = [torch.from_numpy(np.array(picture)) / 255 for picture in drawn]
        pictures += painted(range(DRAWN, DRAWN + PAINTED), work, device, rng)
        crops, seen = [], []
        for number, picture in enumerate(pictures):
            shown = crowded(number)
            for actor, box in zip(shown.actors, render(shown, family.SIZE // SHRUNK).boxes, strict=True):
                x0, y0, x1, y1 = (SHRUNK * edge for edge in box)
                for _ in range(1 if number < DRAWN else LOOKS):
                    error = [rng.gauss(0, JITTER) * side for side in (x1 - x0, y1 - y0, x1 - x0, y1 - y0)]
                    crop = framed(picture, torch.tensor([x0, y0, x1, y1]).float() + torch.tensor(error))
                    crops.append((crop * 255).round().to(torch.uint8))
                    seen.append(looks(actor.character))
        torch.save((torch.stack(crops), torch.tensor(seen)), path)
    crops_, looks_ = torch.load(path, weights_only=True)
    return crops_, looks_


def disturbed(crops: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return crops ``[b, 3, SIDE, SIDE]`` in 0..1: mirrored, cut, softened, wiped out in part, brighter or darker."""

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    x = crops.float().to(device) / 255
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored.view(-1, 1, 1, 1).to(device), x.flip(3), x)
    window = whole(NARROWEST, SIDE + 1)
    top, left = whole(0, SIDE - window + 1), whole(0, SIDE - window + 1)
    side = whole(SOFTEST, SIDE + 1)
    x = x[:, :, top : top + window, left : left + window]
    x = interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
    x = interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    for row in range(0, len(x), 2):
        edge = whole(*ERASED)
        top, left = whole(0, SIDE - edge), whole(0, SIDE - edge)
        x[row, :, top : top + edge, left : left + edge] = torch.rand(3, 1, 1, generator=generator).to(device)
    gain = 1 + 0.15 * torch.randn((len(x), 1, 1, 1), generator=generator).to(device)
    return (x - 0.5) * gain + 0.5


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file."""
    torch.manual_seed(recipe.seed)
    crops, seen = examples(work, device)
    model = Judge().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(crops), (BATCH,), generator=generator)
        species, colors = (logits.float() for logits in model(disturbed(crops[index], generator, device)))
        wanted = seen[index].to(device)
        of_color = cross_entropy(colors, wanted[:, 1], label_smoothing=SMOOTHING)
        return cross_entropy(species, wanted[:, 0], label_smoothing=SMOOTHING) + 0.5 * of_color

    average = fit(model, loss, recipe, work / "judge.pt")
    return {"judge": average.state_dict()}
