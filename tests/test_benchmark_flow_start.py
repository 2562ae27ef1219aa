"""`benchmarks/flow_start.py`: it goes on where it was stopped, with what it began with."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.flow_start import WEIGHTS, begin, make, methods_of, table
from mudi_core.toy.world import DEV_PAIRS


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    return Namespace(
        out=tmp_path / "out", weights=WEIGHTS, seeds=1, pictures=4, steps=1, batch=1, rate=1e-3, sampler_steps=1,
        guidance=5.0, judge=False,
    )  # fmt: skip


def test_a_folder_keeps_the_weights_and_settings_that_it_began_with(options: Namespace, tmp_path: Path) -> None:
    own = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    assert all(torch.equal(value, own[name]) for name, value in begin(options).unet.state_dict().items())
    options.weights = tmp_path / "newer.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in own.items()}, options.weights)
    assert all(torch.equal(value, own[name]) for name, value in begin(options).unet.state_dict().items())
    options.rate = 2e-3
    with pytest.raises(SystemExit, match="was begun with .*'rate': 0.001.*or another --out"):
        begin(options)


def test_what_is_there_is_not_made_again(options: Namespace, mini_weights: None) -> None:
    pairs, methods = {"dev-0": DEV_PAIRS[0]}, methods_of([2.0])
    make(options, pairs, methods)
    files = {path: path.stat().st_mtime_ns for path in (options.out / "dev-0" / "training-0").rglob("*.*")}
    names = {path.relative_to(options.out / "dev-0" / "training-0") for path in files}
    assert {path.name for path in names if len(path.parts) == 1} == {"dreambooth.safetensors", "segmix.safetensors"}
    assert len([path for path in names if path.suffix == ".png"]) == 3 * 4
    gone = next(path for path in files if path.match("Seg-Mix/2-000.json"))
    gone.unlink()
    make(options, pairs, methods)
    assert {path for path, time in files.items() if path.stat().st_mtime_ns != time} == {gone}
    rows = table(options.out, pairs, 1, methods).split("\n")[2:]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {method}", "4"] for method in methods]


def test_the_start_has_seg_mixs_lora() -> None:
    assert methods_of([1, 2.5]) == {
        "DreamBooth": ("dreambooth", 0.0), "Seg-Mix": ("segmix", 0.0),
        "Seg-Mix with start, gamma 1": ("segmix", 1), "Seg-Mix with start, gamma 2.5": ("segmix", 2.5),
    }  # fmt: skip
