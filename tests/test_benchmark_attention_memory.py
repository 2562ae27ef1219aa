"""The reckoning of what attention's nodes take of memory: every cross-attention of SDXL's blocks, and what grows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comfyui_server import ROOT


def reckoned(*more: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / "attention_memory.py"), "--json", "--channels", "32"]
    done = subprocess.run([*command, "--side", "256", *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_layer_is_called_and_each_subject_takes_its_own() -> None:
    checkout = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI")
    if not (checkout / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {checkout}: set COMFYUI_DIR to a checkout")
    two, four = reckoned("--subjects", "2"), reckoned("--subjects", "4")
    kinds = ("Separate LoRAs", "Regional Prompts", "Layout Guidance", "Reference Adapter", "all four")
    for found in (two, four):
        assert found["layers called"] == {"plain": 0, **dict.fromkeys(kinds, 70)}
    assert two["peaks"]["plain"] == four["peaks"]["plain"] > 0
    channels = 10 * 64 + 60 * 128
    assert two["of the adapter's layers"] == 2 * channels * 2048 * 2
    kept = 2 * channels * 16 * 2  # keys and values of 16 tokens, in fp16
    more = {kind: four["peaks"][kind] - two["peaks"][kind] for kind in kinds}
    assert 2 * kept <= more["Reference Adapter"] <= 2.5 * kept, "besides them only what one layer needs for a moment"
    # Of rank 32: 8 layers of a block with channels c on both sides, but for the keys and values of the text.
    loras = 2 * 32 * 2 * (10 * (6 * 2 * 64 + 2 * (64 + 2048)) + 60 * (6 * 2 * 128 + 2 * (128 + 2048)))
    assert (two["of the LoRAs"], four["of the LoRAs"]) == (loras, 2 * loras)
    assert loras <= two["peaks"]["Separate LoRAs"] - two["peaks"]["plain"] <= 1.2 * loras, "the card has a copy of each"
    assert more["Separate LoRAs"] >= loras and more["Regional Prompts"] > 0
    assert two["peaks"]["all four"] > max(two["peaks"][kind] for kind in kinds[:4])
