"""A blind look: the sheets name no method, every picture has a number, and the agreement is counted right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_server import ROOT
from PIL import Image

from mudi_core.benchmark.results import Result, Results
from mudi_core.benchmark.spec import Spec
from mudi_core.subjects.storage import write_subjects
from mudi_core.toy.world import PAIRS
from mudi_core.types import Comparison, Detections, SubjectSet, Verdict
from workshop import blind


def key_of(*rows: tuple[str, bool]) -> dict[str, dict[str, object]]:
    judged = {"own": 0.7, "alike": 0.8, "right": 0.9, "leaked": 0.1}
    return {
        str(i): {"method": method, "verdict": verdict, "score": i / 10, **judged}
        for i, (method, verdict) in enumerate(rows, 1)
    }


def test_agreement_is_counted_against_chance() -> None:
    key = key_of(("mudi", True), ("mudi", True), ("cutmix", False), ("cutmix", True))
    found = blind.agreement(key, {"1": True, "2": True, "3": False, "4": False})
    assert (found["yes by both"], found["yes by the verdict alone"], found["no by both"]) == (2, 1, 1)
    assert found["kappa"] == 0.5, "3 of 4 agree, 2 of 4 by chance"
    assert found["methods"] == {
        "cutmix": {"pictures": 2, "eye": 0.0, "verdict": 0.5},
        "mudi": {"pictures": 2, "eye": 1.0, "verdict": 1.0},
    }
    assert found["AUROC"] == {"score": 0.0, "right": 0.5, "leaked": 0.5}, "the eye's yes has the lowest scores"
    with pytest.raises(ValueError, match=r"No answer for 2, 4\."):
        blind.agreement(key, {"1": True, "3": False})


def test_other_limits_are_tried_on_the_same_answers() -> None:
    key, answers = key_of(("mudi", True), ("cutmix", False)), {"1": True, "2": False}
    key["2"] |= {"own": 0.9, "alike": 0.7}
    assert blind.by_limits(key, answers, 0.7, 0.75)["kappa"] == 1.0
    assert blind.by_limits(key, answers, 0.7, 0.7)["yes by the verdict alone"] == 1
    assert blind.by_limits(key, answers, 0.75, 0.75)["yes by the eye alone"] == 1


def test_the_limits_of_a_picture_are_its_weakest_subjects() -> None:
    s_gt, s_dc = torch.tensor([[0.8, 0.2], [0.2, 0.5]]), torch.tensor([[0.6, 0.2], [0.1, 0.45]])
    found = Detections(torch.zeros(2, 4), torch.ones(2), ("cat", "cat"))
    verdicts = (Verdict("a", "found", 0.9, ""), Verdict("b", "unlike", 0.7, ""))
    one = Comparison(("a", "b"), 0.4, 0.5, s_gt, s_dc, found, verdicts)
    assert blind.verdict_of(one) == {"verdict": False, "score": 0.4, "own": 0.7, "alike": 0.75}
    lost = replace(one, verdicts=(verdicts[0], Verdict("b", "missing", 0.0, "")))
    assert (blind.verdict_of(lost)["own"], blind.verdict_of(lost)["alike"]) == (0.0, 0.0)


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


def test_sheets_of_single_loras_are_drawn_too(mini_weights: None, drawn_subjects: SubjectSet, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "pair-1" / "training-0" / "pictures" / "fused"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 40), "red").save(folder / "007.png")
    write_subjects(drawn_subjects, tmp_path / "out" / "pair-1" / "both")
    (one,) = blind.of_loras(tmp_path / "out")
    assert one.characters == PAIRS[1] and one.about["method"] == "fused"
    assert blind.sheets([one], 200, 0, tmp_path / "to") == 1
    key = json.loads((tmp_path / "to" / "key.json").read_text())
    assert key["1"]["name"] == "007" and not key["1"]["verdict"] and key["1"]["own"] == 0.0
    assert 0 <= key["1"]["right"] <= 1


@pytest.mark.parametrize(
    ("looked", "row"),
    [
        ("held-out", "| 200 of four held-out pairs, seven methods |"),
        ("development", "| 128 of two development pairs, MuDI and DreamBooth from MuDI's start |"),
    ],
)
def test_the_docs_count_the_answers_that_ship(looked: str, row: str) -> None:
    folder = ROOT / "benchmarks" / "results" / "blind" / looked
    key = json.loads((folder / "key.json").read_text())
    found = blind.agreement(key, blind.read_answers(folder / "answers.txt"))
    both, eye, verdict = (found[f"yes by {who}"] for who in ("both", "the eye alone", "the verdict alone"))
    judges = found["AUROC"]
    assert isinstance(both, int) and isinstance(eye, int) and isinstance(verdict, int) and isinstance(judges, dict)
    numbers = [f"{both + eye}", f"{both + verdict}", f"{both}", f"{found['kappa']:.2f}"]
    numbers += [f"{judges[name]:.2f}" for name in ("score", "right", "leaked")]
    assert f"{row} {' | '.join(numbers)} |" in (ROOT / "docs" / "BENCHMARKS.md").read_text()
