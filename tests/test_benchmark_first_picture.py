"""The quickstart gives a picture soon, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from comfyui_server import CHECKOUT

from benchmarks.first_picture import measure


def test_a_new_server_computes_less_than_thirty_seconds_for_the_quickstarts_first_picture(
    tmp_path: Path, mini_weights: None
) -> None:
    if not (CHECKOUT / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {CHECKOUT}: set COMFYUI_DIR to a checkout")
    told = measure("0_quickstart", tmp_path, steps=2)
    assert 0 < told["picture_cpu"] < 30, told
