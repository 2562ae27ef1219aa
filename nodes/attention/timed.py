"""When a part is on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

P = TypeVar("P")


@dataclass(frozen=True, eq=False)
class Timed(Generic[P]):
    """A part, and from which to which share of the sampling it is on."""

    part: P
    start: float
    end: float

    def is_on(self, sampling: Any, sigma: float) -> bool:
        """Return whether it is on at a noise level, by the MODEL's ``model_sampling``. From 0 to 0 is never."""
        return self.start < self.end and bool(
            sampling.percent_to_sigma(self.end) <= sigma <= sampling.percent_to_sigma(self.start)
        )
