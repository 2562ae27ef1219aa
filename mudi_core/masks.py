"""Masks: where a subject is, as float tensors ``[h, w]``, 0..1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def mask_box(mask: Tensor, threshold: float = 0.5) -> tuple[int, int, int, int] | None:
    """Return the smallest box, ``xyxy`` in pixels (x1 and y1 exclusive), around a mask ``[h, w]`` above the threshold.

    None when no value is above it. A low threshold includes a soft edge.
    """
    columns = (mask.amax(dim=0) > threshold).nonzero()
    rows = (mask.amax(dim=1) > threshold).nonzero()
    if len(columns) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def coverage(mask: Tensor) -> float:
    """Return the share of the picture that a mask ``[h, w]`` covers, 0..1."""
    return float(mask.mean(dtype=torch.float32))


def resize(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks ``[..., h, w]`` to a width and height; each cell is the mean of what it covers (0..1 stays 0..1)."""
    width, height = size
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    return functional.interpolate(flat, size=(height, width), mode="area").reshape(*mask.shape[:-2], height, width)
