"""`benchmarks/iterate.py`: its table has the fresh pictures of before and after, and leaves out no training."""

from __future__ import annotations

import json
from pathlib import Path

from comfyui_server import ROOT
from PIL import Image

from benchmarks.iterate import KEPT, METHODS, fresh, is_painted
from benchmarks.loras import Looks, keep, table
from mudi_core.jobs.picture_shelf import LIST
from mudi_core.toy.world import PAIRS


def check(folder: Path, *scores: float) -> None:
    """A folder of fresh pictures with these scores, the first of them sound."""
    folder.mkdir(parents=True)
    rows = []
    for number, score in enumerate(scores):
        Image.new("RGB", (64, 64), (40 * number, 99, 200)).save(folder / f"{number:04d}.png")
        boxes = [[0, 0, 30, 40], [30, 0, 60, 40]]
        rows.append(
            {"number": number, "score": score, "themselves": 2 - number, "boxes": boxes, "file": f"{number:04d}.png"}
        )
    (folder / LIST).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_training_without_a_round_counts_as_it_was_before(tmp_path: Path) -> None:
    one, none = (tmp_path / "pair-0" / f"training-{seed}" for seed in range(2))
    check(one / "iterate-1" / "check-0", 0.2, 0.4)
    check(one / "iterate-1" / "check-1", 0.6, 0.8)
    check(one / "iterate-0" / "check-1", 0.4, 0.4)
    check(none / "iterate-1" / "check-0", 0.0, 0.2)
    for place in (one, none):
        keep(fresh(place, PAIRS[0], Looks()), place / KEPT)
    rows = [json.loads(line) for line in (none / KEPT).read_text().splitlines()]
    assert [(row["method"], row["score"], row["round"], row["sound"]) for row in rows[:4]] == [
        ("before", 0.0, True, True),
        ("before", 0.2, True, False),
        ("KL 1", 0.0, False, True),
        ("KL 1", 0.2, False, False),
    ]
    shown = table(tmp_path, {"pair-0": PAIRS[0]}, 2, METHODS, KEPT)
    assert [
        f"| {name} | 4 | {mean} (" in shown for name, mean in (("before", "0.20"), ("KL 1", "0.40"), ("KL 0", "0.25"))
    ] == [True] * 3


def test_the_docs_have_the_table_of_the_results_that_ship() -> None:
    results, page = ROOT / "benchmarks" / "results" / "loras", (ROOT / "docs" / "measurements.md").read_text()
    rows = table(results, {f"pair-{i}": PAIRS[i] for i in range(4)}, 2, METHODS, KEPT).splitlines()
    assert len(rows) == 2 + len(METHODS) and "\n".join(rows) in page


def test_only_a_round_whose_pictures_are_all_there_may_have_none_sound(tmp_path: Path) -> None:
    assert not is_painted(tmp_path, quick=True)
    check(tmp_path / "round-1" / "pictures", 0.1)
    assert not is_painted(tmp_path, quick=True), "stopped in the middle"
    with (tmp_path / "round-1" / "pictures" / LIST).open("a") as lines:
        lines.write("{}\n")
    assert is_painted(tmp_path, quick=True) and not is_painted(tmp_path, quick=False)
    (tmp_path / "round-1" / "lora.safetensors").touch()
    assert not is_painted(tmp_path, quick=True), "a training failed"
