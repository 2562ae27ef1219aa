"""The benchmark of photos' memory runs, in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_it_prints_a_peak_for_each_subject():
    program = Path(__file__).parents[1] / "benchmarks" / "photos.py"
    small = ["--width", "400", "--height", "300", "--photos", "1"]
    run = subprocess.run([sys.executable, str(program), *small], capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in run.stdout.splitlines()] == ["1 photos", "2 photos"]
