"""The results of the demo: everything that its page shows."""

from __future__ import annotations

from dataclasses import dataclass

from ..jobs.generate import Picture
from ..stage.cutouts import CutOuts
from ..toy.world import SubjectSpec
from ..train.parts import Method
from ..types import Comparison, Mix, SubjectSet
from .settings import DemoSettings

Pair = tuple[SubjectSpec, SubjectSpec]


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Everything that the page shows."""

    pair: Pair
    seed: int
    settings: DemoSettings
    subjects: SubjectSet
    cutouts: CutOuts
    sheet: tuple[Mix, ...]
    losses: dict[Method, tuple[float, ...]]
    pictures: dict[str, tuple[Picture, ...]]
    """By method, in the order of the seeds."""
    comparisons: dict[str, tuple[Comparison, ...]]
    prompt: str
    seconds: dict[str, float]

    def scores(self, method: str) -> list[float]:
        """Return the score of each picture of a method."""
        return [comparison.score for comparison in self.comparisons[method]]

    def both_found(self, method: str) -> int:
        """Return the number of pictures in which every subject is there once, as itself."""
        return sum(c.success for c in self.comparisons[method])
