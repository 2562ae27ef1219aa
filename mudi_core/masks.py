"""Masks: where a subject is, as float tensors ``[h, w]``, 0..1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

SPECK = 0.01
"""Pieces of a mask below this share of its largest piece are no part of a subject: they would enlarge its cut-out."""


def mask_box(mask: Tensor, threshold: float = 0.5) -> tuple[int, int, int, int] | None:
    """Return the smallest box, ``xyxy`` in pixels (x1 and y1 exclusive), around a mask ``[h, w]`` above the threshold.

    None when no value is above it. A low threshold includes a soft edge.
    """
    columns = (mask.amax(dim=0) > threshold).nonzero()
    rows = (mask.amax(dim=1) > threshold).nonzero()
    if len(columns) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def large_pieces(inside: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return which pixels of a mask ``[h, w]`` (0 or not) do not belong to specks, pieces below `SPECK`.

    None when it has no specks. Background pixels and holes are True.
    """
    import cv2

    pieces, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8, copy=False), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    kept = areas >= SPECK * areas.max()
    kept[0] = True  # the background
    return None if pieces <= 2 or kept.all() else _chosen(kept, labels)


def _chosen(kept: NDArray[np.bool_], labels: NDArray[Any]) -> NDArray[np.bool_]:
    found = np.empty(labels.shape, bool)
    for row, line in zip(found, labels, strict=True):  # row by row: numpy makes indices of 8 bytes
        row[:] = kept[line]
    return found


def coverage(mask: Tensor) -> float:
    """Return the share of the picture that a mask ``[h, w]`` covers, 0..1."""
    return float(mask.mean(dtype=torch.float32))


def resize(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks ``[..., h, w]`` to a width and height; each cell is the mean of what it covers (0..1 stays 0..1)."""
    width, height = size
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    return functional.interpolate(flat, size=(height, width), mode="area").reshape(*mask.shape[:-2], height, width)
