"""The numbers of the report that are not plain scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float], level: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Return the bootstrap interval of the mean (percentiles of resampled means); equal values give equal intervals."""
    array = np.asarray(values, dtype=np.float64)
    means = array[np.random.default_rng(0).integers(len(array), size=(draws, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def smoothed(values: Sequence[float], points: int = 40) -> list[float]:
    """Return the means of at most ``points`` equal stretches: single training losses vary with their timesteps."""
    array = np.asarray(values, dtype=np.float64)
    return [float(part.mean()) for part in np.array_split(array, min(points, len(array)))]
