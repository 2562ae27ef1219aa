"""Which figure of a picture is given to which subject, when there are as many of the one as of the other."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

Matching = Literal["in order", "optimal"]
"""Each subject in turn takes what is left and most similar to it (the official code); or the order that scores highest,
so that it does not matter who is named first."""
MOST_ORDERED = 7
"""Subjects of which all orders are tried: 5,040. Of more, each in turn takes its best."""


def matched(s_gt: Tensor, s_dc: Tensor, matching: Matching) -> list[int]:
    """Return the rows of ``s_dc`` ``[n, n]`` in the order of the subjects of ``s_gt`` ``[n, n]``."""
    if matching == "in order" or len(s_dc) > MOST_ORDERED:
        return _in_order(s_dc)
    costs = torch.cdist(s_gt.double(), s_dc.double()).square().tolist()
    orders = permutations(range(len(s_dc)))
    return list(min(orders, key=lambda order: sum(costs[k][row] for k, row in enumerate(order))))


def _in_order(s_dc: Tensor) -> list[int]:
    free = list(range(len(s_dc)))
    order = []
    for column in range(len(s_dc)):
        best = max(free, key=lambda row: float(s_dc[row, column]))
        free.remove(best)
        order.append(best)
    return order
