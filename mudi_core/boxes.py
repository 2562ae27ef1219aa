"""Boxes: pure geometry on ``xyxy``, as tensors of many boxes or as a tuple of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


def area(xyxy: Tensor) -> Tensor:
    """Return the area ``[n]`` of boxes ``[n, 4]``; a box whose corners are swapped has area 0."""
    sides = (xyxy[..., 2:] - xyxy[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def middles(xyxy: Tensor) -> Tensor:
    """Return the middle ``[n, 2]``, x and y, of boxes ``[n, 4]``."""
    return (xyxy[..., :2] + xyxy[..., 2:]) / 2


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union ``[n, m]``, 0..1, of boxes ``[n, 4]`` and ``[m, 4]``; 0 if both are empty."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = area(torch.cat([top_left, bottom_right], dim=-1))
    union = area(a)[:, None] + area(b)[None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=1e-12), torch.zeros_like(union))


def clip(xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes ``[n, 4]`` in pixels at the borders of a picture of this width and height."""
    width, height = size
    return torch.stack(
        [
            xyxy[..., 0].clamp(0, width),
            xyxy[..., 1].clamp(0, height),
            xyxy[..., 2].clamp(0, width),
            xyxy[..., 3].clamp(0, height),
        ],
        dim=-1,
    )


def to_pixels(xyxy: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Turn a box in fractions of a canvas into whole pixels of a canvas of this width and height.

    The result lies inside the canvas and is at least one pixel wide and high.
    """
    width, height = size
    x0 = min(round(xyxy[0] * width), width - 1)
    y0 = min(round(xyxy[1] * height), height - 1)
    return x0, y0, max(round(xyxy[2] * width), x0 + 1), max(round(xyxy[3] * height), y0 + 1)


def overlap(a: Box, b: Box) -> float:
    """Return which share of the smaller box lies inside the other box, 0..1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def visible_fraction(box: Box, above: Sequence[Box]) -> float:
    """Return which share of a box the boxes above it leave uncovered, 0..1, exactly."""
    x0, y0, x1, y1 = box
    # The edges of all boxes cut this box into cells. Each cell is covered either wholly or not at all.
    xs = sorted({x0, x1, *(x for other in above for x in (other[0], other[2]) if x0 < x < x1)})
    ys = sorted({y0, y1, *(y for other in above for y in (other[1], other[3]) if y0 < y < y1)})
    free = 0.0
    for left, right in zip(xs, xs[1:], strict=False):
        for top, bottom in zip(ys, ys[1:], strict=False):
            covered = any(o[0] <= left and right <= o[2] and o[1] <= top and bottom <= o[3] for o in above)
            free += 0.0 if covered else (right - left) * (bottom - top)
    return free / ((x1 - x0) * (y1 - y0))
