"""Results of a benchmark without their pictures: what is packed on one machine goes on, and is told, on another."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import torch

from mudi_core.benchmark.page import page
from mudi_core.benchmark.results import OtherSpec, Result, Results
from mudi_core.benchmark.spec import Spec
from mudi_core.types import Comparison, Detections, Verdict
from workshop import kept, looks

SPEC = Spec("kept", "mini", {"cats": 0}, ("cutmix", "mudi"), ("a photo of {subjects}",), 3, trainings=2)


def fill(results: Results, some: slice) -> None:
    found = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), ("cat",), 1.0)
    for i, cell in list(enumerate(results.spec.cells()))[some]:
        one = Comparison(
            ("a", "b"), i / 10, 0.5, torch.eye(2), torch.full((1, 2), i / 7), found,
            (Verdict("a", "found", 1.0, ""), Verdict("b", "missing", 0.0, "")), ("cat",),
        )  # fmt: skip
        results.add(Result(cell, one, 0.25, (0.5, 0.75), {"clip-b32": (0.25, 0.5)}, 1.5), torch.full((40, 40, 3), 0.5))


def test_what_is_packed_in_parts_is_the_whole_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "load", lambda: None)
    monkeypatch.setattr(looks, "read", lambda reader, image, xyxy: [])
    here = Results(tmp_path / "here", SPEC)
    fill(here, slice(0, 5))
    assert kept.pack(here, tmp_path / "parts" / "1.jsonl.xz") == 5
    fill(here, slice(5, None))
    here.remark("cats/singles.decoupled", "as it was fused")
    assert kept.pack(here, tmp_path / "parts" / "2.jsonl.xz") == 7, "only what the first part does not have"
    parts = sorted((tmp_path / "parts").iterdir())
    assert kept.unpack(parts, tmp_path / "there") == 12
    there = Results(tmp_path / "there", SPEC)
    for cell in SPEC.cells():
        assert there.path(cell, ".json").read_text() == here.path(cell, ".json").read_text()
        assert looks.look_at(there, there.read(cell), None) == looks.Seen(0.0, 0.0)  # type: ignore[arg-type]
    assert there.remarks() == {"cats/singles.decoupled": "as it was fused"}
    assert "<figcaption>" in page(there, [there.read(cell) for cell in SPEC.cells()])
    with pytest.raises(OtherSpec):
        Results(tmp_path / "there", Spec("kept", "mini", {"cats": 1}, SPEC.methods, SPEC.prompts, 3))


def test_a_file_writes_nothing_outside_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "evil.jsonl.xz"
    with lzma.open(path, "wt") as file:
        file.write(json.dumps({"path": "../evil", "json": {}, "looks.json": {}}) + "\n")
    with pytest.raises(ValueError, match="leads out of"):
        kept.unpack([path], tmp_path / "there")
    assert not (tmp_path / "evil.json").exists()
