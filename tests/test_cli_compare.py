"""`compare` on folders: ranked, with reasons, and without what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mudi_core import eyes as backends
from mudi_core.cli import main
from mudi_core.types import Detections


def halves(image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
    """A figure in each half, or none at all in a black picture."""
    height, width = image.shape[:2]
    boxes = [[0, 0, width / 2, height], [width / 2, 0, width, height]] if image.any() else []
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.full((len(boxes),), 0.9), ("cat",) * len(boxes), 0.12)


def mean_colour(images: Sequence[Tensor]) -> Tensor:
    return torch.nn.functional.normalize(torch.stack([image.mean((0, 1)) - 0.5 for image in images]), dim=-1)


@pytest.fixture
def eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "load_detector", lambda *about: halves)
    monkeypatch.setattr(backends, "load_embedder", lambda *about: mean_colour)


@pytest.fixture
def pictures(drawn_dataset: Path, tmp_path: Path) -> Path:
    """Both subjects side by side, one of them twice, and nobody: of three sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    first, second = (Image.open(drawn_dataset / f"{token}_0.png").convert("RGB") for token in ("olis", "hta"))
    for name, left, right, size in (
        ("1_twice.png", first, first, (128, 64)),
        ("2_both.png", first, second, (192, 96)),
    ):
        wide = Image.new("RGB", (192, 96))
        wide.paste(left, (0, 0))
        wide.paste(right, (96, 0))
        wide.resize(size).save(folder / name)
    Image.new("RGB", (64, 80)).save(folder / "3_nobody.png")
    return folder


def compare(capsys: pytest.CaptureFixture[str], pictures: Path, dataset: Path, *more: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = main(["compare", str(pictures), "--dataset", str(dataset), "--base", "mini", "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def test_the_best_picture_comes_first(
    eyes: None, pictures: Path, drawn_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = compare(capsys, pictures, drawn_dataset)
    assert code == 0 and answer["skipped"] == {}
    scores = [one["score"] for one in answer["pictures"]]
    assert scores[:2] == sorted(scores[:2], reverse=True) and answer["pictures"][0]["file"] == "2_both.png"
    assert answer["mean"] == pytest.approx(sum(scores) / 3)
    (pictures / "phone.HEIC").touch()
    assert main(["compare", str(pictures), "--dataset", str(drawn_dataset), "--base", "mini"]) == 0
    text, told = capsys.readouterr()
    assert "phone.HEIC (of a kind that cannot be read: save them as JPEG" in told
    assert text.index("2_both.png") < text.index("mean of 3") and "% its own" in text


def test_a_picture_in_which_nothing_is_found_scores_zero_with_the_reason(
    eyes: None, pictures: Path, drawn_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, answer = compare(capsys, pictures, drawn_dataset)
    (nobody,) = [one for one in answer["pictures"] if one["file"] == "3_nobody.png"]
    assert nobody["score"] == 0 and nobody["count"] == 0 and "12% sure" in nobody["reason"]
    assert [verdict["status"] for verdict in nobody["verdicts"]] == ["missing", "missing"]
    assert nobody["verdicts"][0]["text"] == "olis cat: missing, nothing was found for 'cat'."


def test_a_right_count_below_zero_stands_before_a_wrong_count(
    eyes: None, pictures: Path, drawn_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opposite(images: Sequence[Tensor]) -> Tensor:
        """The figures of the picture whose halves are 64 pixels are the opposite of everybody."""
        return mean_colour(images) * torch.tensor([[-1.0 if len(image) == 64 else 1.0] for image in images])

    monkeypatch.setattr(backends, "load_embedder", lambda *about: opposite)
    _, answer = compare(capsys, pictures, drawn_dataset)
    assert [one["file"] for one in answer["pictures"]] == ["2_both.png", "1_twice.png", "3_nobody.png"]
    assert answer["pictures"][1]["score"] < 0 == answer["pictures"][2]["score"]


def test_subjects_that_look_alike_are_told(
    eyes: None, pictures: Path, drawn_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare(capsys, pictures, drawn_dataset)[1]["remarks"] == []
    monkeypatch.setattr(backends, "load_embedder", lambda *about: lambda images: torch.ones(len(images), 4))
    (remark,) = compare(capsys, pictures, drawn_dataset)[1]["remarks"]
    assert main(["compare", str(pictures), "--dataset", str(drawn_dataset), "--base", "mini"]) == 0
    assert f"Warning: {remark}" in capsys.readouterr().out and "'olis cat' and 'hta cat' look alike" in remark


def test_an_unreadable_picture_among_400_is_skipped_and_named(
    eyes: None, pictures: Path, drawn_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (pictures / "2_both.png").read_bytes()
    for number in range(4, 400):
        (pictures / f"{number}.png").write_bytes(whole)
    (pictures / "400.png").write_bytes(whole[:200])
    code, answer = compare(capsys, pictures, drawn_dataset)
    assert code == 3
    assert len(answer["pictures"]) == 399 and list(answer["skipped"]) == ["400.png"]
    assert "damaged" in answer["skipped"]["400.png"]
    assert main(["compare", str(pictures), "--dataset", str(drawn_dataset), "--base", "mini"]) == 3
    text = capsys.readouterr().out
    assert "1 of 400 were skipped:" in text and "400.png is damaged" in text


def test_a_folder_of_nothing_readable_is_a_mistake(
    eyes: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert main(["compare", str(tmp_path), "--dataset", str(drawn_dataset), "--base", "mini"]) == 1
    assert "text.png is not a picture" in capsys.readouterr().err


def test_references_can_be_cut_out(
    eyes: None, pictures: Path, drawn_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut_out = (compare(capsys, pictures, drawn_dataset, *more)[1]["s_gt"] for more in ((), ("--cut-out",)))
    assert whole != cut_out


def test_missing_weights_are_named_with_their_folder_and_link(
    pictures: Path, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", str(pictures), "--dataset", str(drawn_dataset), "--base", "sdxl", "--models", str(tmp_path)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "https://huggingface.co/google/owlv2" in said and str(tmp_path) in said


@pytest.mark.parametrize(
    ("first_line", "others", "words"),
    [
        ("", "", "has no metadata.jsonl"),
        (
            '{"id": {"a": "olis cat", "b": "hta cat"}}',
            '{"id": "a", "file_name": "p.png", "mask_path": "m.png", "text": "t"}',
            "Subject 'hta' has no photos",
        ),
    ],
)
def test_no_subjects_and_a_subject_without_photos_are_sentences(
    first_line: str,
    others: str,
    words: str,
    eyes: None,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for name in ("p.png", "m.png"):
        Image.new("RGB" if name == "p.png" else "L", (64, 64), "white").save(dataset / name)
    if first_line:
        (dataset / "metadata.jsonl").write_text(f"{first_line}\n{others}\n")
    assert main(["compare", str(pictures), "--dataset", str(dataset), "--base", "mini"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and words in said and "Traceback" not in said
