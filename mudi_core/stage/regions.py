"""The regions of a layout: where each subject will roughly stand, with soft edges.

A picture that starts from a layout follows its silhouettes only roughly, so the regions are somewhat larger.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..boxes import to_pixels
from ..masks import resize
from ..types import Layout, MudiError
from .cutouts import CutOuts
from .segmix import compose

FIGURES, BOXES = SHAPES = ("figures", "boxes")
CELL = 8
"""Pixels of a picture that are one cell of its regions: those of a latent."""
AROUND = 0.2
"""How much of a picture changes around a figure that is put into it, as a share of its size."""


class BadShape(MudiError):
    """A shape of regions that there is not."""


def regions(layout: Layout, cutouts: CutOuts, shape: str = FIGURES, grow: float = 0.1) -> Tensor:
    """Return the region of each subject of the set, float ``[n, height / 8, width / 8]``, 0..1, in the set's order.

    ``shape``: "figures", the silhouettes, or "boxes"; ``grow``: by this share of a figure's size they are larger, with
    an edge as soft. They sum to at most 1: a silhouette belongs to its subject, and what else overlaps to all alike.
    A subject that the layout does not place has an empty region. Raise `BadShape`.
    """
    if shape not in SHAPES:
        raise BadShape(f"There is no shape {shape!r} of regions; there are: {', '.join(SHAPES)}.")
    cells = max(round(layout.size[0] / CELL), 1), max(round(layout.size[1] / CELL), 1)
    seen = resize(compose(layout, cutouts).masks, cells) if shape == FIGURES else _boxes(layout, cells)
    found = torch.zeros(len(cutouts.subjects), cells[1], cells[0])
    cores = torch.zeros_like(found)
    for placement, mask in zip(layout.placements, seen, strict=True):
        index = cutouts.subjects.tokens.index(placement.token)
        x0, y0, x1, y1 = to_pixels(placement.xyxy, cells)
        reach = grow * math.sqrt(max(x1 - x0, 1) * max(y1 - y0, 1))
        found[index] = torch.maximum(found[index], _grown(mask, reach))
        cores[index] = torch.maximum(cores[index], mask)
    if shape == FIGURES:
        found *= (1 - (cores.sum(0) - cores)).clamp(0, 1)
    return found / found.sum(0).clamp(min=1)


def drawn_anew(layout: Layout, cutouts: CutOuts, around: float = AROUND) -> Tensor:
    """Return what changes of a picture that the figures are put into: float ``[height / 8, width / 8]``, 0 or 1.

    ``around``: how far beyond a figure, as a share of its size, so that it finds room, and shadows and edges fit.
    """
    near = regions(layout, cutouts, FIGURES, around).sum(0) >= 0.5
    return (near | (resize(compose(layout, cutouts).mask, (near.shape[1], near.shape[0])) > 0)).float()


def _boxes(layout: Layout, cells: tuple[int, int]) -> Tensor:
    found = torch.zeros(len(layout.placements), cells[1], cells[0])
    for mask, placement in zip(found, layout.placements, strict=True):
        x0, y0, x1, y1 = to_pixels(placement.xyxy, cells)
        mask[y0:y1, x0:x1] = 1
    return found


def _grown(mask: Tensor, reach: float) -> Tensor:
    """Return a mask that reaches further by this many cells, the last half of them as a soft edge."""
    import cv2

    if reach < 0.5:
        return mask
    side = 2 * round(reach) + 1
    wide = cv2.dilate(mask.numpy(), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    soft = cv2.GaussianBlur(wide, (0, 0), max(reach / 2, 0.3), borderType=cv2.BORDER_REPLICATE)
    return torch.from_numpy(np.maximum(soft, mask.numpy()).clip(0, 1))
