"""Layers of ComfyUI's Layer Editor (LAYERS): made from a layout, and read as the places of subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from ..mudi_core.types import BadLayout

if TYPE_CHECKING:
    from ..mudi_core.stage.layout_text import Place
    from ..mudi_core.types import Layout, Placement, SubjectSet
    from .sockets import PlacedSubjects

    Layer = dict[str, Any]
    """One item of core's LAYERS: image, mask (1 is transparent), x, y, z_index, name, rotation, ..."""


def document(placed: PlacedSubjects, layout: Layout) -> dict[str, Any]:
    """Return a document of layers: the scene or white, and each subject, from back to front.

    A subject's layer is its whole cut-out, so nothing is missing where it is moved out from behind another one.
    Mirroring and rotation are the layer's own: the editor goes on from there.
    """
    width, height = layout.size
    ground = torch.ones(1, height, width, 3) if placed.scene is None else placed.scene[None]
    background = {"image": ground, "type": "raster", "x": 0, "y": 0, "z_index": 0, "name": "background"}
    figures = [_figure(placed, one, layout.size, depth) for depth, one in enumerate(layout.placements, 1)]
    return {"version": 1, "canvas": (width, height), "layers": [background, *figures]}


def _figure(placed: PlacedSubjects, placement: Placement, size: tuple[int, int], depth: int) -> Layer:
    from ..mudi_core.stage.cut import drawn, upright_size
    from ..mudi_core.stage.segmix import standing

    cut_out, (x0, y0, x1, y1) = standing(placement, placed.cutouts, size)
    width, height = upright_size(cut_out.aspect, (x1 - x0, y1 - y0), placement.rotation)
    rgba = torch.from_numpy(drawn(cut_out, (width, height), mirror=False)).float()[None] / 255
    return {
        "image": rgba[..., :3], "mask": 1 - rgba[..., 3], "type": "raster",
        "x": (x0 + x1 - width) // 2, "y": (y0 + y1 - height) // 2, "z_index": depth,
        "name": placed.cutouts.subjects[placement.token].name,
        "flip_h": placement.mirror, "rotation": math.radians(placement.rotation),
    }  # fmt: skip


def places_of(layers: Any, subjects: SubjectSet, size: tuple[int, int]) -> dict[str, Place]:
    """Return a place for each token from core's LAYERS: box, mirroring, rotation, and who stands in front.

    A layer is a subject's where its name is the subject's token, name or class noun, as Layout Parts calls them; or
    there are as many visible layers as subjects, which then are theirs in their order. ``size``: of the picture, in
    pixels; a document with a canvas of its own is stretched to it. Raise `BadLayout`.
    """
    from ..mudi_core.stage.layout_text import Place

    given = layers if isinstance(layers, dict) else {}
    shown = [one for one in given.get("layers") or [] if _is_layer(one) and one.get("visible", True)]
    width, height = _canvas(given.get("canvas") or size)
    places = {}
    for token, layer in zip(subjects.tokens, _in_order(shown, subjects), strict=True):
        x0, y0, x1, y1 = _around(layer)
        box = (max(0.0, x0 / width), max(0.0, y0 / height), min(1.0, x1 / width), min(1.0, y1 / height))
        if not (box[0] < box[2] and box[1] < box[3]):
            raise BadLayout(f"The layer of '{token}' has no part of the canvas of {width:g}x{height:g} px.")
        # Upside down is mirrored and half a turn.
        upside_down = bool(layer.get("flip_v", False))
        mirror = bool(layer.get("flip_h", False)) is not upside_down
        turned = math.remainder(math.degrees(_radians(layer)) + 180 * upside_down, 360)
        places[token] = Place(box, mirror=mirror, rotation=turned, depth=-_number(layer, "z_index"))
    return places


def _radians(layer: Layer) -> float:
    """Return a layer's rotation, clockwise."""
    return _number(layer, "rotation")


def _number(layer: Layer, key: str) -> float:
    """Return what a layer says of itself, or 0 where it says nothing."""
    value = layer.get(key)
    number = _finite(0 if value is None else value)
    if number is None:
        name = str(layer.get("name") or "without a name")
        raise BadLayout(f"{key} of the layer '{name}' is no number. Look at the node that makes the layers.")
    return number


def _canvas(size: Any) -> tuple[float, float]:
    sides = [_finite(side) for side in size] if isinstance(size, list | tuple) else []
    if len(sides) != 2 or not all(side is not None and side > 0 for side in sides):
        raise BadLayout("The canvas of the layers has no width and height. Look at the node that makes the layers.")
    return cast("tuple[float, float]", tuple(sides))


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def _around(layer: Layer) -> tuple[float, float, float, float]:
    """Return the box around a layer, in pixels: core turns a layer about its middle."""
    rows, columns = layer["image"].shape[1:3]
    width, height = _number(layer, "w") or columns, _number(layer, "h") or rows
    x, y = _number(layer, "x") + width / 2, _number(layer, "y") + height / 2
    cos, sin = abs(math.cos(_radians(layer))), abs(math.sin(_radians(layer)))
    across, down = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return x - across, y - down, x + across, y + down


def _is_layer(one: Any) -> bool:
    image = one.get("image") if isinstance(one, dict) else None
    return isinstance(image, torch.Tensor) and image.ndim == 4 and image.numel() > 0


def _in_order(shown: Sequence[Layer], subjects: SubjectSet) -> list[Layer]:
    """Return the layer of each subject. Raise `BadLayout` where they cannot be told."""
    named = [
        [one for one in shown if str(one.get("name", "")).strip().lower() in _called(subject)] for subject in subjects
    ]
    if all(len(found) == 1 for found in named):
        return [found[0] for found in named]
    if len(shown) == len(subjects):
        return list(shown)
    names = ", ".join(str(one.get("name") or "without a name") for one in shown) or "none"
    raise BadLayout(
        f"There are {len(subjects)} subjects, and these layers: {names}. Name one layer for each subject: "
        f"{', '.join(subjects.tokens)}."
    )


def _called(subject: Any) -> set[str]:
    return {name.lower() for name in (subject.token, subject.name, subject.class_noun)}
