"""The benchmark of a training step runs, and says what the targets are about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

STAND_IN = """
import json, pathlib, sys, time, torch
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given["--resolution"] != "192" or given["--train_batch_size"] != "8":
    raise ValueError("other settings")
lines = (pathlib.Path(given["--instance_data_dir"]) / "metadata.jsonl").read_text().splitlines()
assert len(lines) == 5 and (pathlib.Path(given["--pretrained_model_name_or_path"]) / "unet").is_dir()
weight = torch.nn.Parameter(torch.ones(()))
optimizer = torch.optim.AdamW([weight])
for _ in range(int(given["--max_train_steps"])):
    weight.grad = torch.ones(())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    optimizer.step()
"""


def measured(*options: str) -> dict[str, Any]:
    script = Path(__file__).parent.parent / "benchmarks" / "train_step.py"
    command = [sys.executable, str(script), "--device", "cpu", "--rounds", "1", "--steps", "1", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout).values()
    result: dict[str, Any] = found
    return result


def test_a_script_like_the_official_one_is_timed_as_it_is(mini_weights: None, tmp_path: Path) -> None:
    (tmp_path / "train_segmix_lora_sdxl.py").write_text(STAND_IN)
    found = measured("--official", str(tmp_path))
    assert 50 <= found["step_ms"]["official"] < 500
    assert abs(found["official_takes_times"] * found["step_ms"]["ours"] / found["step_ms"]["official"] - 1) < 1e-6
    (tmp_path / "train_segmix_lora_sdxl.py").write_text("raise ValueError('not on this machine')")
    assert measured("--official", str(tmp_path))["official_does_not_run"] == "ValueError: not on this machine"


def test_it_compares_three_ways_in_one_run(mini_weights: None) -> None:
    found = measured()
    assert set(found["step_ms"]) == {"floor", "ours", "naive"} and min(found["step_ms"].values()) > 0
    times = found["step_ms"]
    assert abs(found["of_the_floor"] * times["ours"] / times["floor"] - 1) < 1e-6
    assert abs(found["naive_takes_times"] * times["ours"] / times["naive"] - 1) < 1e-6
