"""A blind look: the sheets name no method, every picture has a number, and the agreement is counted right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mudi_core.benchmark.results import Result, Results
from mudi_core.benchmark.spec import Spec
from mudi_core.toy.world import PAIRS
from mudi_core.types import Comparison, Detections, Verdict
from workshop import blind


def key_of(*rows: tuple[str, bool]) -> dict[str, dict[str, object]]:
    return {str(i): {"method": method, "verdict": verdict} for i, (method, verdict) in enumerate(rows, 1)}


def test_agreement_is_counted_against_chance() -> None:
    key = key_of(("mudi", True), ("mudi", True), ("cutmix", False), ("cutmix", True))
    found = blind.agreement(key, {"1": True, "2": True, "3": False, "4": False})
    assert (found["yes by both"], found["yes by the verdict alone"], found["no by both"]) == (2, 1, 1)
    assert found["kappa"] == 0.5, "3 of 4 agree, 2 of 4 by chance"
    assert found["methods"] == {
        "cutmix": {"pictures": 2, "eye": 0.0, "verdict": 0.5},
        "mudi": {"pictures": 2, "eye": 1.0, "verdict": 1.0},
    }
    with pytest.raises(ValueError, match=r"No answer for 2, 4\."):
        blind.agreement(key, {"1": True, "3": False})


@pytest.mark.parametrize("line", ["3", "3 perhaps", "three yes", "1 no"])
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.txt"
    path.write_text(f"1 yes\n\n2 no\n{line}\n")
    with pytest.raises(ValueError, match="is not a number"):
        blind.read_answers(path)
    path.write_text("1 yes\n2 no\n")
    assert blind.read_answers(path) == {"1": True, "2": False}


def test_sheets_show_each_chosen_picture_once_and_no_method(tmp_path: Path) -> None:
    spec = Spec("blind", "mini", {"cats": 0, "bears": 1}, ("mudi", "cutmix"), ("a photo of {subjects}",), 3)
    results = Results(tmp_path / "out", spec)
    one = Verdict("a", "found", 1.0, "")
    found = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), ("cat",))
    for i, cell in enumerate(spec.cells()):
        image = torch.full((40, 40, 3), i / 12)
        compared = Comparison(("a",), 1.0, 1.0, torch.eye(1), torch.eye(1), found, (one,))
        results.add(Result(cell, compared, None), image)
    assert blind.sheets(list(blind.of_benchmark(results)), 200, 0, tmp_path / "all") == 12
    key = json.loads((tmp_path / "all" / "key.json").read_text())
    assert {(k["combo"], k["method"], k["seed"]) for k in key.values()} == {
        (cell.combo, cell.method, cell.seed) for cell in spec.cells()
    }
    pages = sorted((tmp_path / "all").glob("*.png"))
    assert [page.name for page in pages] == ["sheet 001 to 006.png", "sheet 007 to 012.png"]
    shown = [key[str(number)] for number in range(1, 7)]
    with Image.open(pages[0]) as page:
        gray = [page.getpixel((x * blind.TILE + 99, blind.TILE + 2 * blind.HEAD + 99)) for x in range(blind.COLUMNS)]
    cells = list(spec.cells())
    for value, about in zip(gray, shown, strict=False):
        number = next(i for i, cell in enumerate(cells) if cell == (*list(about.values())[:5],))
        assert value == (round(number / 12 * 255),) * 3
    assert blind.sheets(list(blind.of_benchmark(results)), 5, 0, tmp_path / "some") == 5
    assert [k["method"] for k in key.values()] != sorted(k["method"] for k in key.values())


def test_sheets_of_single_loras_are_drawn_too(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "pair-1" / "training-0" / "pictures" / "fused"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 40), "red").save(folder / "007.png")
    (folder / "007.json").write_text(json.dumps({"score": 0.5, "sound": True, "boxes": []}))
    (one,) = blind.of_loras(tmp_path / "out")
    assert one.characters == PAIRS[1] and one.about["method"] == "fused" and one.about["verdict"]
    assert blind.sheets([one], 200, 0, tmp_path / "to") == 1
