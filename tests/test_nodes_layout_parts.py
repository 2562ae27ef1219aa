"""Layout Parts: masks, boxes, canvas and layers of a layout, for nodes of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy
from torch import Tensor

from mudi_core.jobs.generate import draw_layout
from mudi_core.stage.segmix import compose
from mudi_core.types import Mix, SubjectSet

SIZE = (192, 128)


def layout(comfy: Comfy, subjects: SubjectSet, **more: Any) -> Any:
    settings = {"mode": "random", "relative_sizes": "", "overlap": 0.6, "seed": 5, **more}
    return comfy.run("MudiLayout", subjects=subjects, width=SIZE[0], height=SIZE[1], **settings).result[0]


def parts(comfy: Comfy, placed: Any, shape: str = "figure", grow: int = 0) -> Any:
    return comfy.run("MudiLayoutParts", layout=placed, shape=shape, grow=grow).result


def composed(placed: Any) -> Mix:
    return compose(draw_layout(placed.cutouts, placed.config, 0, SIZE), placed.cutouts)


def in_order(mix: Mix, subjects: SubjectSet) -> list[Tensor]:
    rows = [placement.token for placement in mix.layout.placements]
    return [mix.masks[rows.index(token)] for token in subjects.tokens]


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_masks_are_in_the_subjects_order_whoever_stands_in_front(
    comfy: Comfy, drawn_subjects: SubjectSet, seed: int
) -> None:
    placed = layout(comfy, drawn_subjects, seed=seed)
    masks, each, boxes, canvas, names, _ = parts(comfy, placed)
    mix = composed(placed)
    assert masks.shape == (2, SIZE[1], SIZE[0]) and torch.equal(canvas, mix.image[None])
    assert names == [subject.name for subject in drawn_subjects]
    for mask, alone, wanted in zip(masks, each, in_order(mix, drawn_subjects), strict=True):
        assert torch.equal(mask, wanted) and torch.equal(alone, wanted[None])
    for mask, box in zip(masks, boxes, strict=True):
        ys, xs = torch.nonzero(mask > 0.5, as_tuple=True)
        assert box["x"] - 1 <= xs.min() and xs.max() <= box["x"] + box["width"]
        assert box["y"] - 1 <= ys.min() and ys.max() <= box["y"] + box["height"]


def test_boxes_as_masks_are_whole(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    masks, _, boxes, *_ = parts(comfy, layout(comfy, drawn_subjects), "box")
    for mask, box in zip(masks, boxes, strict=True):
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert mask.sum() == box["width"] * box["height"]


def test_masks_grow_and_shrink(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    placed = layout(comfy, drawn_subjects)
    plain, wide, narrow = (parts(comfy, placed, grow=grow)[0] for grow in (0, 6, -3))
    assert (wide >= plain).all() and (narrow <= plain).all()
    assert wide.sum() > plain.sum() > narrow.sum() > 0


def test_its_boxes_are_the_places_of_a_layout(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    placed = layout(comfy, drawn_subjects)
    boxes = parts(comfy, placed)[2]
    again = parts(comfy, layout(comfy, drawn_subjects, mode="given boxes", boxes=boxes))[2]
    for one, other in zip(boxes, again, strict=True):
        assert all(abs(one[side] - other[side]) <= 1 for side in ("x", "y", "width", "height"))


def test_a_subject_that_is_not_placed_has_no_mask(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    second = drawn_subjects.tokens[1]
    placed = layout(comfy, drawn_subjects, mode="from text", text=f'{{"{second}": [0, 0, 500, 1000]}}')
    masks, each, boxes, _, names, _ = parts(comfy, placed)
    assert len(masks) == len(each) == len(boxes) == 1
    assert names == [drawn_subjects.subjects[1].name]


def test_the_layers_make_the_canvas_again(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    """Laid over each other from the lowest z_index, as the Layer Editor does: its masks say what is transparent."""
    placed = layout(comfy, drawn_subjects)
    canvas, document = parts(comfy, placed)[3][0], parts(comfy, placed)[5]
    assert document["version"] == 1 and document["canvas"] == SIZE
    ground, *figures = sorted(document["layers"], key=lambda layer: layer["z_index"])
    picture = ground["image"][0].clone()
    for layer in figures:
        height, width = layer["image"].shape[1:3]
        place = (slice(layer["y"], layer["y"] + height), slice(layer["x"], layer["x"] + width))
        shown = 1 - layer["mask"][0][..., None]
        picture[place] = picture[place] * (1 - shown) + layer["image"][0] * shown
    inside = composed(placed).masks.amax(0) > 0.99
    assert (picture - canvas)[inside].abs().max() < 0.02
    outside = composed(placed).mask == 0
    assert (picture[outside] == 1).all()
    assert [layer["name"] for layer in document["layers"][1:]] and document["layers"][0]["name"] == "background"


def test_a_layer_is_whole_where_its_subject_stands_behind_another(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    """Somebody moves the one in front away in the Layer Editor: there is no hole behind."""
    one, other = drawn_subjects.tokens

    def shown(text: str) -> Tensor:
        layers = parts(comfy, layout(comfy, drawn_subjects, mode="from text", text=text))[5]["layers"]
        return 1 - next(layer for layer in layers if layer["name"].startswith(one))["mask"]

    back, front = '{"box": [0, 0, 0.6, 1], "photo": "#1", "depth": 1}', "[0.2, 0.2, 0.8, 1]"
    alone = shown(f'{{"{one}": {back}}}')
    assert alone.sum() > 1000 and torch.equal(shown(f'{{"{one}": {back}, "{other}": {front}}}'), alone)
