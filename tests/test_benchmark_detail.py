"""`benchmarks/detail.py` says when the pass made something worse, or changed what it should not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.detail import BEFORE, PASSES, check


def write(out: Path, method: str, number: int, row: dict[str, Any]) -> None:
    folder = out / "pair-0" / "training-0" / "pictures" / method
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number:03d}.json").write_text(json.dumps(row), encoding="utf-8")


@pytest.mark.parametrize(
    ("second", "same", "words"),
    [
        (0.8, True, []),
        (0.1, True, ["score: 0.500 before, 0.350 after"]),
        (0.8, False, ["detailed, pair-0001: changed outside its mask"]),
    ],
)
def test_a_fallen_mean_and_a_changed_background_are_told(
    tmp_path: Path, second: float, same: bool, words: list[str]
) -> None:
    for number, score in enumerate((0.6, second)):
        write(tmp_path, BEFORE, number, {"score": 0.5, "sound": False})
        for method in PASSES:
            row = {"score": score, "sound": False, "same": same or method != "detailed" or number == 0}
            write(tmp_path, method, number, row)
    write(tmp_path, BEFORE, 2, {"score": 9.0, "sound": True})  # not detailed yet: it counts for nothing
    assert check(tmp_path, {"pair-0": ()}) == words
