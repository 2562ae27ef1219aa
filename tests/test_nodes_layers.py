"""Layers of newer ComfyUI come into Layout: what Layout Parts gives comes back, and what was moved has moved."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comfyui import Comfy

from mudi_core.types import Placement, SubjectSet


def laid_out(comfy: Comfy, subjects: SubjectSet, **more: Any) -> Any:
    values = {"mode": "random", "seed": 3, "relative_sizes": "", "overlap": 0.4, **more}
    return comfy.run("MudiLayout", subjects=subjects, width=192, height=128, **values).result[0]


def placements(comfy: Comfy, placed: Any) -> dict[str, Placement]:
    layout = comfy.module("generate").drawn_layout(placed, placed.config.seed, 0)
    return {one.token: one for one in layout.placements}


def test_layers_of_a_layout_make_it_again(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    placed = laid_out(comfy, drawn_subjects)
    layers = comfy.run("MudiLayoutParts", layout=placed, shape="figure", grow=0).result[5]
    before, after = (
        placements(comfy, one) for one in (placed, laid_out(comfy, drawn_subjects, mode="given boxes", layers=layers))
    )
    for token, one in before.items():
        assert after[token].xyxy == pytest.approx(one.xyxy, abs=1.5 / 128)
    assert list(before) == list(after)  # from back to front


def test_layers_keep_mirroring_and_rotation(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    text = (
        '{"olis": {"box": [0, 0.2, 0.4, 0.9], "mirror": true, "rotation": 30}, '
        '"hta": {"box": [0.5, 0, 1, 1], "rotation": -100}}'
    )
    placed = laid_out(comfy, drawn_subjects, mode="from text", text=text)
    layers = comfy.run("MudiLayoutParts", layout=placed, shape="figure", grow=0).result[5]
    before, after = (
        placements(comfy, one) for one in (placed, laid_out(comfy, drawn_subjects, mode="given boxes", layers=layers))
    )
    for token, one in before.items():
        assert after[token].mirror is one.mirror and after[token].rotation == pytest.approx(one.rotation)
        assert after[token].xyxy == pytest.approx(one.xyxy, abs=2.5 / 128)


def layer(name: str, x: int, **more: Any) -> dict[str, Any]:
    return {"image": torch.rand(1, 40, 30, 3), "type": "raster", "x": x, "y": 20, "z_index": 0, "name": name, **more}


def test_place_size_rotation_mirroring_and_order_of_a_layer_count(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    first, second = drawn_subjects.tokens
    layers = {
        "version": 1,
        "canvas": (384, 256),
        "layers": [
            layer("background", 0, image=torch.rand(1, 256, 384, 3)),
            layer(second.upper(), 192, w=96, h=64, z_index=2, flip_h=True),
            layer(first, 0, z_index=5, rotation=math.radians(90)),
            layer(first, 50, visible=False),
        ],
    }
    found = placements(comfy, laid_out(comfy, drawn_subjects, mode="given boxes", layers=layers))
    assert list(found) == [second, first]
    assert found[second].mirror and not found[first].mirror and found[first].rotation == pytest.approx(90)
    x0, y0, x1, y1 = found[second].xyxy
    assert 0.5 <= x0 < x1 <= 0.75 and 20 / 256 <= y0 < y1 <= 84 / 256


def test_a_turned_layer_takes_the_room_that_core_gives_it(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    """It turns about its middle: 30 x 40 px on its side are 40 x 30, not a figure squeezed into 30 x 40."""
    first, second = drawn_subjects.tokens
    read = comfy.module("layer_editor").places_of
    layers = [layer(first, 100, rotation=math.radians(90)), layer(second, 0, flip_v=True, rotation=math.radians(20))]
    places = read({"version": 1, "layers": layers}, drawn_subjects, (200, 100))
    assert places[first].box == pytest.approx((95 / 200, 25 / 100, 135 / 200, 55 / 100))
    upside_down = places[second]
    assert upside_down.mirror is True and upside_down.rotation == pytest.approx(-160)


def test_layers_that_are_nobodys_are_refused_by_their_names(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    for names in ([], ["sky"], ["sky", "sea", "sand"]):
        layers = {"version": 1, "layers": [layer(name, 0) for name in names]}
        with pytest.raises(comfy.module("generate").BadLayout, match=f"layers: {', '.join(names) or 'none'}"):
            laid_out(comfy, drawn_subjects, mode="given boxes", layers=layers)
    unnamed = {"version": 1, "layers": [layer("", 0), layer("", 60)]}
    assert len(placements(comfy, laid_out(comfy, drawn_subjects, mode="given boxes", layers=unnamed))) == 2
    outside = {"version": 1, "layers": [layer("", 500), layer("", 60)]}
    with pytest.raises(comfy.module("generate").BadLayout, match="no part of the canvas of 192x128"):
        laid_out(comfy, drawn_subjects, mode="given boxes", layers=outside)
