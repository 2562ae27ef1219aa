"""The benchmark of a training step runs, and says what the targets are about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_it_compares_three_ways_in_one_run(mini_weights: None) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "train_step.py"
    command = [sys.executable, str(script), "--device", "cpu", "--rounds", "1", "--steps", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout).values()
    assert set(found["step_ms"]) == {"floor", "ours", "naive"} and min(found["step_ms"].values()) > 0
    times = found["step_ms"]
    assert abs(found["of_the_floor"] * times["ours"] / times["floor"] - 1) < 1e-6
    assert abs(found["naive_takes_times"] * times["ours"] / times["naive"] - 1) < 1e-6
