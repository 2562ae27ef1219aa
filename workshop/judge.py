"""The judge of the embedded SDXL's pictures: a small network that names the species and the body colour in a crop.

It is independent of what it judges: neither Detect-and-Compare nor any training of the U-Net uses it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from mudi_core.bases import embedded as family
from mudi_core.toy import world

SIDE = 80
"""Side of the square that a crop is put on, in pixels."""
MARGIN = 0.18
"""Share of a box's larger side that is seen around it: detectors cut off ears."""
WIDTHS = (32, 64, 128, 192)


def convolutions() -> nn.Sequential:
    """Two convolutions for each of `WIDTHS`, the first of which halves the side."""
    layers: list[nn.Module] = []
    before = 3
    for width in WIDTHS:
        for stride, channels in ((2, before), (1, width)):
            layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.GroupNorm(8, width), nn.SiLU()]
        before = width
    return nn.Sequential(*layers)


class Judge(nn.Module):
    """Logits of the species ``[b, 8]`` and of the body colours for pictures ``[b, 3, SIDE, SIDE]`` in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = convolutions()
        self.head = nn.Linear(WIDTHS[-1] * 9, len(world.SPECIES) + len(world.COLORS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = nn.functional.adaptive_avg_pool2d(self.body(2 * x - 1), 3).flatten(1)
        species, colors = self.head(seen).split([len(world.SPECIES), len(world.COLORS)], 1)
        return species, colors


WEIGHTS = Path(__file__).parent / "weights"


def load() -> Judge:
    """Return the trained judge."""
    judge: Judge = family.load(Judge(), "judge", WEIGHTS)
    return judge


def framed(image: Tensor, box: Tensor) -> Tensor:
    """What the judge looks at, ``[3, SIDE, SIDE]``: a square around a box xyxy, in pixels of an image ``[h, w, 3]``,
    with the picture's edge continued where it reaches over it."""
    x0, y0, x1, y1 = box.tolist()
    half = max(x1 - x0, y1 - y0, 2) * (0.5 + MARGIN)
    left, top, side = round((x0 + x1) / 2 - half), round((y0 + y1) / 2 - half), max(2, round(2 * half))
    h, w = image.shape[:2]
    around = (max(0, -left), max(0, left + side - w), max(0, -top), max(0, top + side - h))
    x = pad(image.permute(2, 0, 1)[None].float(), around, mode="replicate")
    x = x[..., top + around[2] : top + around[2] + side, left + around[0] : left + around[0] + side]
    return interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0]


@torch.no_grad()
def named(judge: Judge, crops: list[Tensor]) -> list[tuple[str, str]]:
    """Return species and colour of every crop from `framed`."""
    if not crops:
        return []
    species, colors = judge(torch.stack(crops))
    return [
        (world.SPECIES[s], world.COLORS[c])
        for s, c in zip(species.argmax(1).tolist(), colors.argmax(1).tolist(), strict=True)
    ]
