"""The numbers of the report that are not plain scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Nested = Mapping[str, "Nested"] | Sequence[float]
"""Values in groups of groups: those of pictures in trainings, in pairs of subjects."""


def interval(values: Sequence[float], level: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Return the bootstrap interval of the mean (percentiles of resampled means); equal values give equal intervals."""
    array = np.asarray(values, dtype=np.float64)
    means = array[np.random.default_rng(0).integers(len(array), size=(draws, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def hierarchical_interval(values: Nested, level: float = 0.95, draws: int = 4000) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of nested values: how sure it is for other pairs, LoRAs and pictures.

    Every draw takes groups with replacement, in each of them its own groups, and in the innermost its values (Davison
    and Hinkley, Bootstrap Methods and their Application, section 3.8). A group counts by the number of its values.
    """
    low, high = np.quantile(hierarchical_means(values, draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def hierarchical_means(values: Nested, draws: int) -> np.ndarray:
    """Return the means of so many draws of `hierarchical_interval`, float64 ``[draws]``."""
    sums, counts = _resampled(values, np.random.default_rng(0), draws)
    means: np.ndarray = sums / counts
    return means


def smallest_seen(values: Mapping[str, Mapping[str, Sequence[float]]]) -> float | None:
    """Return the least true mean that such a comparison calls different from 0 in 80 of 100 cases; None for one group.

    ``values``: differences in trainings, in pairs. The groups of the first level are what was drawn independently: the
    mean's error is that of their means, and a two-sided test at 5 % needs 2.80 errors (1.96 + 0.84, a normal law).
    """
    means = [np.mean([one for own in group.values() for one in own]) for group in values.values()]
    return 2.80 * float(np.std(means, ddof=1)) / len(means) ** 0.5 if len(means) > 1 else None


def _resampled(values: Nested, rng: np.random.Generator, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of the values of each draw, ``[draws]``."""
    if not isinstance(values, Mapping):
        array = np.asarray(values, dtype=np.float64)
        drawn = array[rng.integers(len(array), size=(draws, len(array)))]
        return drawn.sum(axis=1), np.full(draws, float(len(array)))
    groups = list(values.values())
    times = rng.multinomial(len(groups), [1 / len(groups)] * len(groups), size=draws)
    sums, counts = np.zeros(draws), np.zeros(draws)
    for group, taken in zip(groups, times.T, strict=True):
        own_sums, own_counts = _resampled(group, rng, int(taken.sum())) if taken.any() else (sums[:0], sums[:0])
        into = np.repeat(np.arange(draws), taken)  # a group that is drawn twice is resampled twice
        sums += np.bincount(into, own_sums, draws)
        counts += np.bincount(into, own_counts, draws)
    return sums, counts


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return for each value the mean of it and the ``window`` - 1 before it, fewer where fewer are."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means


def smoothed(values: Sequence[float], points: int = 40) -> list[float]:
    """Return the means of at most ``points`` equal stretches: single training losses vary with their timesteps."""
    array = np.asarray(values, dtype=np.float64)
    return [float(part.mean()) for part in np.array_split(array, min(points, len(array)))]
