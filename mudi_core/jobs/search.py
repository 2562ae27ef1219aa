"""Many starts, and the best of them: a picture of each seed, compared with the subjects and ranked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..score.compare import best_first
from ..types import Comparison

Paint = Callable[[int], Tensor]
"""A seed -> its picture ``[h, w, 3]``, 0..1."""
Judge = Callable[[Sequence[Tensor]], Sequence[Comparison]]
"""Detect-and-Compare of each picture."""


@dataclass(frozen=True, eq=False)
class Found:
    """A seed and its result."""

    seed: int
    number: int
    """Its place among the seeds that were tried, from 0."""
    picture: Tensor
    comparison: Comparison


def search(seeds: Sequence[int], paint: Paint, judge: Judge) -> list[Found]:
    """Paint a picture of each seed and return all, best first, as `score.compare.best_first` ranks them."""
    pictures = [paint(seed) for seed in seeds]
    comparisons = judge(pictures)
    return [Found(seeds[i], i, pictures[i], comparisons[i]) for i in best_first(comparisons)]
