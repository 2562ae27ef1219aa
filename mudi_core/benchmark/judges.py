"""Which models score the pictures of a benchmark, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..eyes import eyes
from ..score.matching import Matching
from ..types import MudiError


class BadSpec(MudiError):
    """A spec that cannot be read, or that names something unknown."""


@dataclass(frozen=True)
class Judges:
    """Which models score the pictures (names in the table of eyes), and how."""

    detector: str = "owlv2"
    embedder: str = "dinov2"
    threshold: float = 0.25
    cut_out: bool = False
    text_scorer: str = ""
    """Empty: no text fidelity."""
    matching: Matching = "in order"
    whole: tuple[str, ...] = ()
    """Further embedders that compare whole pictures with whole photos: CLIP-I, DINO and M-DINO."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise BadSpec(f"[judges] threshold is {self.threshold}; it must be 0..1.")
        tables = {
            "detector": list(eyes("detector")),
            "embedder": list(eyes("embedder")),
            "text_scorer": ["", *eyes("text scorer")],
        }
        for role, table in tables.items():
            if (name := getattr(self, role)) not in table:
                raise BadSpec(f"[judges] {role}: there is no {name!r}; there are: {', '.join(filter(None, table))}.")
        for name in self.whole:
            if name not in tables["embedder"]:
                raise BadSpec(f"[judges] whole: there is no {name!r}; there are: {', '.join(tables['embedder'])}.")

    def as_json(self) -> dict[str, Any]:
        """Return what a score depends on; folders of before do not name all of it."""
        later = {"matching": "in order", "whole": ()}
        return {name: value for name, value in vars(self).items() if name not in later or value != later[name]}
