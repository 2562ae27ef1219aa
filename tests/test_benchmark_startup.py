"""What the pack adds to ComfyUI's start."""

from __future__ import annotations

from typing import Any

import pytest
from comfyui_server import CHECKOUT

from benchmarks.startup import measure


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    if not (CHECKOUT / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {CHECKOUT}: set COMFYUI_DIR to a checkout")
    return measure(CHECKOUT, 2)


def test_the_pack_adds_little_to_the_start(told: dict[str, Any]) -> None:
    """As a share of what ComfyUI itself needs: a busy machine stretches both."""
    assert told["nodes"] >= 20 and told["added"]["cpu"] <= 0.05 * told["comfyui_cpu"], told


def test_the_pack_imports_nothing_heavy(told: dict[str, Any]) -> None:
    assert told["heavy"] == []
