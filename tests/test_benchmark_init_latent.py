"""The benchmark of the start runs in a ComfyUI, and adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_server import ROOT


def test_it_times_both_nodes_and_the_sampler(mini_weights: None) -> None:
    checkout = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI")
    if not (checkout / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {checkout}: set COMFYUI_DIR to a checkout")
    command = [sys.executable, str(ROOT / "benchmarks" / "init_latent.py"), "--steps", "2", "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = found["seconds"]
    assert list(seconds) == ["Layout", "Init Latent", "KSampler"] and min(seconds.values()) > 0
    assert found["with_the_start"] == pytest.approx(sum(seconds.values()) / seconds["KSampler"])
