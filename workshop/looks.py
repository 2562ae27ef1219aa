"""A second judge of a benchmark, independent of Detect-and-Compare: it reads every look of every figure.

    python -m workshop.looks benchmark-out SPEC

prints for each method how many looks are right, and how many leaked from the other subject.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mudi_core.bases import embedded as family
from mudi_core.benchmark.methods import METHODS
from mudi_core.benchmark.results import Result, Results, write_whole
from mudi_core.benchmark.spec_file import read_spec
from mudi_core.benchmark.table import nested
from mudi_core.report.statistics import hierarchical_interval
from mudi_core.toy.world import Character

from .judge import WEIGHTS, WIDTHS, convolutions, framed
from .train.data import VALUES, looks


class Reader(nn.Module):
    """Logits of every look, ``[b, len(VALUES[look])]`` each, for pictures ``[b, 3, SIDE, SIDE]`` in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = convolutions()
        self.head = nn.Linear(WIDTHS[-1] * 25, sum(map(len, VALUES.values())))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        seen = nn.functional.adaptive_avg_pool2d(self.body(2 * x - 1), 5).flatten(1)
        split: tuple[Tensor, ...] = self.head(seen).split([len(values) for values in VALUES.values()], 1)
        return split


def load() -> Reader:
    """Return the trained reader."""
    reader: Reader = family.load(Reader(), "looks", WEIGHTS)
    return reader


@torch.no_grad()
def read(reader: Reader, image: Tensor, xyxy: Tensor) -> list[list[int]]:
    """Return the index in `VALUES` of each look of the figures in boxes ``[n, 4]`` of an image ``[h, w, 3]``."""
    if not len(xyxy):
        return []
    answers = reader(torch.stack([framed(image, box) for box in xyxy]))
    return torch.stack([answer.argmax(1) for answer in answers], 1).tolist()


@dataclass(frozen=True)
class Seen:
    """What was read from one picture of several characters."""

    right: float
    """Share of all looks of all characters that their figures have; those of a missing figure are not right."""
    leaked: float
    """Share of the looks in which two characters differ that a figure has from another of them."""


def seen(figures: Sequence[Sequence[int]], cast: Sequence[Character]) -> Seen:
    """Give each character the figure that has most of its looks, in the best order of all, and count."""
    wanted = [looks(one) for one in cast]
    spare: list[Sequence[int] | None] = [None] * max(0, len(wanted) - len(figures))
    orders = permutations([*figures, *spare], len(wanted))
    order = max(orders, key=lambda order: sum(_same(one, own) for one, own in zip(order, wanted, strict=True)))
    right = sum(_same(one, own) for one, own in zip(order, wanted, strict=True))
    leaked = differing = 0
    for i, figure in enumerate(order):
        for look, own in enumerate(wanted[i]):
            others = {other[look] for other in wanted} - {own}
            differing += bool(others)
            leaked += figure is not None and figure[look] in others
    return Seen(right / (len(wanted) * len(VALUES)), leaked / max(differing, 1))


def _same(figure: Sequence[int] | None, wanted: Sequence[int]) -> int:
    return 0 if figure is None else sum(a == b for a, b in zip(figure, wanted, strict=True))


def look_at(results: Results, one: Result, reader: Reader) -> Seen:
    """Return what is seen in the picture of a result, and keep it beside the picture."""
    path = results.path(one.cell, ".looks.json")
    if path.is_file():
        return Seen(**json.loads(path.read_text(encoding="utf-8")))
    characters = [subject.character for subject in results.spec.characters(one.cell.combo)]
    figures = read(reader, results.image(one.cell), one.comparison.detections.xyxy)
    found = seen(figures, characters)
    write_whole(path, json.dumps(vars(found)) + "\n")
    return found


def judged(results: Results, done: Sequence[Result], reader: Reader) -> dict[str, object]:
    """Return the means over the pictures of a method, with their intervals over pairs, trainings and pictures."""
    values = {one.cell: look_at(results, one, reader) for one in done}
    about: dict[str, object] = {"pictures": len(done), "as themselves": np.mean([one.success for one in done])}
    for name in ("right", "leaked"):

        def value(one: Result, name: str = name) -> float:
            return float(getattr(values[one.cell], name))

        about[name] = (np.mean([value(one) for one in done]), *hierarchical_interval(nested(done, value)))
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the benchmark's folder")
    parser.add_argument("spec", type=Path, help="its TOML file; all combos are drawn pairs")
    parser.add_argument("--pairs-seed", type=int)
    args = parser.parse_args()
    spec, reader = read_spec(args.spec, args.pairs_seed), load()
    results = Results(args.out, spec)
    table = {}
    for method in spec.methods:
        done = [results.read(cell) for cell in spec.cells() if cell.method == method and results.is_done(cell)]
        if done:
            table[METHODS[method].title] = judged(results, done, reader)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
