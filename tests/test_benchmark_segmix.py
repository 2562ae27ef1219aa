"""The benchmark of Seg-Mix runs on a dataset of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_it_compares_two_ways_on_the_same_photos(drawn_dataset: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "segmix.py"), str(drawn_dataset)]
    done = subprocess.run(
        [*command, "--rounds", "1", "--seconds", "0.05", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[drawn_dataset.name]
    assert set(found) == {"ours", "naive"} and min(way["composite_ms"] for way in found.values()) > 0
    ratio = found["naive"]["composite_ms"] / found["ours"]["composite_ms"]
    assert found["naive"]["ours_is_faster_by"] == pytest.approx(ratio, rel=1e-6)
