"""The reckoning of a reference adapter's memory calls every layer of SDXL's blocks, and grows with the references."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_server import ROOT


def reckoned(*more: str) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "benchmarks" / "reference_memory.py"), "--json", "--channels", "32"]
    done = subprocess.run([*command, "--side", "256", *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_layer_is_called_and_each_reference_takes_its_keys_and_values() -> None:
    checkout = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI")
    if not (checkout / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {checkout}: set COMFYUI_DIR to a checkout")
    two, four = reckoned("--subjects", "2"), reckoned("--subjects", "4")
    assert two["layers called"] == four["layers called"] == 70
    assert two["plain"] == four["plain"] > 0
    channels = 10 * 64 + 60 * 128
    assert two["of the adapter's layers"] == 2 * channels * 2048 * 2
    kept = 2 * channels * 16 * 2  # keys and values of 16 tokens, in fp16
    more = four["with references"] - two["with references"]
    assert 2 * kept <= more <= 2.5 * kept, "besides them only what one layer needs for a moment"
