"""Core's nodes of layers with ours: Create Layered Image takes Layout Parts' layers, Layout takes Add Layer's.

Older ComfyUI has no such nodes.
"""

from __future__ import annotations

import pytest
from comfyui_server import Graph, Server
from PIL import Image
from test_layout_editor import alike, server

__all__ = ["server"]

TEXT = '{"olis": [0, 0.2, 0.6, 1], "hta": {"box": [0.3, 0.1, 0.9, 1], "mirror": true, "rotation": 20}}'
OURS: Graph = {
    "subjects": {"class_type": "MudiLoadSubjectSet", "inputs": {"name": "drawn"}},
    "layout": {
        "class_type": "MudiLayout",
        "inputs": {
            **{"subjects": ["subjects", 0], "width": 192, "height": 192, "mode": "from text", "text": TEXT},
            **{"seed": 3, "relative_sizes": "", "overlap": 0.4},
        },
    },
    "parts": {"class_type": "MudiLayoutParts", "inputs": {"layout": ["layout", 0], "shape": "figure", "grow": 0}},
    "canvas": {"class_type": "PreviewImage", "inputs": {"images": ["parts", 3]}},
    "layered": {"class_type": "ImageCompositor", "inputs": {"layers": ["parts", 5], "compositor": {}}},
}


@pytest.fixture
def layered(server: Server) -> Server:
    if "ImageCompositor" not in server.get("/object_info"):
        pytest.skip("this ComfyUI has no Layer Editor")
    return server


def test_core_lays_our_layers_over_each_other_as_layout_does(layered: Server) -> None:
    run = layered.run(OURS)
    canvas, composed = (Image.open(layered.files(run, node)[0]).convert("RGB") for node in ("canvas", "layered"))
    assert composed.size == canvas.size == (192, 192)
    assert alike(composed, canvas) < 0.01


def test_layers_that_core_adds_place_our_subjects(layered: Server) -> None:
    """Add Layer twice, each named after a subject; what stands in Layout stands in the picture of the layers."""
    photo = {"class_type": "EmptyImage", "inputs": {"width": 40, "height": 60, "batch_size": 1, "color": 0xFF0000}}
    first = {"image": ["photo", 0], "name": "hta", "x": 100, "y": 60, "width": 80, "height": 120, "flip_h": True}
    second = {"image": ["photo", 0], "layers": ["first", 0], "name": "olis cat", "x": 4, "y": 20, "rotation": 15.0}
    given = {**OURS["layout"]["inputs"], "mode": "given boxes", "text": "", "layers": ["second", 0]}
    graph: Graph = {
        "subjects": OURS["subjects"], "photo": photo,
        "first": {"class_type": "AddLayer", "inputs": first},
        "second": {"class_type": "AddLayer", "inputs": second},
        "layout": {"class_type": "MudiLayout", "inputs": given},
    }  # fmt: skip
    (shown,) = layered.run(graph).outputs["layout"]["mudi_layout"]
    hta, olis = shown["drawn"]  # from back to front: core lays later ones on top
    assert (hta["token"], hta["mirror"], hta["rotation"]) == ("hta", True, 0)
    assert (olis["token"], olis["mirror"], round(olis["rotation"])) == ("olis", False, 15)
    x0, y0, x1, y1 = (192 * side for side in hta["box"])
    assert 99 <= x0 < x1 <= 181 and 59 <= y0 < y1 <= 181
