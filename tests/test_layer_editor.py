"""Core's nodes of layers and boxes with ours: Create Layered Image takes Layout Parts' layers, Layout those of
Add Layer; Layout and Detect Subjects take the boxes of Create Bounding Boxes.

Older ComfyUI has no such nodes.
"""

from __future__ import annotations

import re
import shutil

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


SIDES = ("x", "y", "width", "height")


def boxes(*fractions: tuple[float, float, float, float], side: int = 192) -> Graph:
    """Create Bounding Boxes with what is drawn on its canvas: left, top, width and height of each."""
    drawn = [dict(zip(SIDES, (side * one for one in box), strict=True)) | {"type": "obj"} for box in fractions]
    inputs = {"width": side, "height": side, "editor_state": {"__value__": drawn}}
    return {"boxes": {"class_type": "CreateBoundingBoxes", "inputs": inputs}}


@pytest.fixture
def boxed(server: Server) -> Server:
    if "CreateBoundingBoxes" not in server.get("/object_info"):
        pytest.skip("this ComfyUI has no Create Bounding Boxes")
    return server


def in_boxes(drawn: Graph) -> Graph:
    given = {**OURS["layout"]["inputs"], "mode": "given boxes", "text": "", "boxes": ["boxes", 1]}
    return {**drawn, "subjects": OURS["subjects"], "layout": {"class_type": "MudiLayout", "inputs": given}}


def test_boxes_drawn_on_cores_canvas_place_our_subjects(boxed: Server) -> None:
    (shown,) = boxed.run(in_boxes(boxes((0, 0.25, 0.5, 0.5), (0.5, 0, 0.5, 1)))).outputs["layout"]["mudi_layout"]
    places = {one["token"]: one["box"] for one in shown["drawn"]}
    assert set(places) == {"olis", "hta"}
    for box, (x0, y0, x1, y1) in ((places["olis"], (0, 0.25, 0.5, 0.75)), (places["hta"], (0.5, 0, 1, 1))):
        assert x0 - 0.01 <= box[0] < box[2] <= x1 + 0.01 and y0 - 0.01 <= box[1] < box[3] <= y1 + 0.01
        assert max((box[2] - box[0]) / (x1 - x0), (box[3] - box[1]) / (y1 - y0)) > 0.95  # as large as fits


@pytest.mark.parametrize("drawn", [(), ((0, 0, 0.5, 1),)], ids=["none", "one"])
def test_too_few_boxes_of_cores_canvas_are_told(
    boxed: Server, drawn: tuple[tuple[float, float, float, float], ...]
) -> None:
    run = boxed.wait(boxed.queue(in_boxes(boxes(*drawn))))
    assert run.status == "error" and re.search(r"box.*\.$", run.error, re.DOTALL), run.error
    assert str(len(drawn)) in run.error or "no box" in run.error, run.error


def test_a_box_drawn_on_cores_canvas_finds_a_subject(boxed: Server) -> None:
    """Drawn over its photo, it stands in the place of a detector."""
    (photo, *_) = sorted((boxed.base / "input" / "drawn").rglob("*.png"))
    shutil.copy(photo, boxed.base / "input" / "one.png")
    find = {"photos": ["photo", 0], "found": ["boxes", 1], "query": "cat", "threshold": 0.25}
    mask = {"photos": ["photo", 0], "boxes": ["find", 0], "segmenter": "embedded (drawn toys only)", "download": False}
    choice = {"detector": "embedded (drawn toys only)", "which": "exactly one", "download": False}
    graph: Graph = {
        **boxes((0.25, 0.25, 0.5, 0.5), side=96),
        "photo": {"class_type": "LoadImage", "inputs": {"image": "one.png"}},
        "find": {"class_type": "MudiDetectSubjects", "inputs": {**find, **choice}},
        "mask": {"class_type": "MudiSamMask", "inputs": mask},
        "shown": {"class_type": "MaskToImage", "inputs": {"mask": ["mask", 0]}},
        "save": {"class_type": "PreviewImage", "inputs": {"images": ["shown", 0]}},
    }
    run = boxed.run(graph)
    (shown,) = boxed.files(run, "save")
    assert Image.open(shown).size == Image.open(photo).size


def test_layers_made_of_cores_boxes_place_our_subjects(boxed: Server) -> None:
    if "LayersFromBoundingBoxes" not in boxed.get("/object_info"):
        pytest.skip("this ComfyUI makes no layers of boxes")
    photo = {"class_type": "EmptyImage", "inputs": {"width": 40, "height": 60, "batch_size": 2, "color": 0xFF0000}}
    size = {"canvas_width": 192, "canvas_height": 192, "crop_to_content": True}
    layers = {"image": ["photo", 0], "bboxes": ["boxes", 1], **size}
    graph = in_boxes(boxes((0, 0, 0.5, 1), (0.5, 0.5, 0.5, 0.5)))
    del graph["layout"]["inputs"]["boxes"]
    graph["layout"]["inputs"]["layers"] = ["layers", 0]
    graph |= {"photo": photo, "layers": {"class_type": "LayersFromBoundingBoxes", "inputs": layers}}
    (shown,) = boxed.run(graph).outputs["layout"]["mudi_layout"]
    boxes_of = sorted(one["box"] for one in shown["drawn"])
    assert len(boxes_of) == 2 and boxes_of[0][2] <= 0.51 and boxes_of[1][0] >= 0.49 and boxes_of[1][1] >= 0.49
