"""The benchmark of what is worn in attention runs in a ComfyUI, and adds up."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_server import ROOT


def test_it_times_every_method_over_the_sampler_alone(mini_weights: None) -> None:
    checkout = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI")
    if not (checkout / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {checkout}: set COMFYUI_DIR to a checkout")
    command = [sys.executable, str(ROOT / "benchmarks" / "attention.py"), "--steps", "2", "--rounds", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    alone, *methods = found["seconds"]
    assert alone == "KSampler alone" and methods == list(found["ratios"])
    assert methods == ["Separate LoRAs", "Regional Prompts", "Layout Guidance", "Reference Adapter", "all together"]
    for name, ratio in found["ratios"].items():
        pairs = zip(found["seconds"][name], found["seconds"][alone], strict=True)
        assert ratio == pytest.approx(statistics.median(took / plain for took, plain in pairs)) and ratio > 0
