"""`benchmarks/loras.py`: the table of a training's file of results is that of its pictures."""

from __future__ import annotations

import json
from pathlib import Path

from comfyui_server import ROOT
from PIL import Image

from benchmarks.loras import METHODS, RESULTS, Looks, keep, rows_of, table
from mudi_core.toy.world import PAIRS


def test_results_tell_the_table_without_pictures(tmp_path: Path) -> None:
    for training, method in enumerate(("stacked", "MuDI", "MuDI")):
        for number in range(3):
            path = tmp_path / "pair-0" / f"training-{training % 2}" / "pictures" / method / f"{number:03d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"score": number / 4, "sound": number == 2, "boxes": [[0, 0, 30, 40]]}))
            Image.new("RGB", (64, 64), (40 * number, 99, 200)).save(path.with_suffix(".png"))
    pairs = {"pair-0": PAIRS[0]}
    before = table(tmp_path, pairs, 2, METHODS)
    assert "| stacked | 3 | 0.25 (" in before and "| MuDI | 6 | 0.25 (" in before
    for place in sorted((tmp_path / "pair-0").iterdir()):
        keep(rows_of(place, PAIRS[0], Looks()), place / RESULTS)
        assert len((place / RESULTS).read_text().splitlines()) in (3, 6)
        for path in place.rglob("pictures/*/*"):
            path.unlink()
    assert table(tmp_path, pairs, 2, METHODS) == before


def test_the_docs_have_the_table_of_the_results_that_ship() -> None:
    results, page = ROOT / "benchmarks" / "results" / "loras", (ROOT / "docs" / "measurements.md").read_text()
    pairs = {f"pair-{i}": PAIRS[i] for i in range(4)}
    rows = table(results, pairs, 2, METHODS).splitlines()
    assert len(rows) == 2 + len(METHODS) and "\n".join(rows) in page
