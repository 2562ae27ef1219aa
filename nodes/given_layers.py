"""Layers of ComfyUI's Layer Editor as the places of subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..mudi_core.types import BadLayout

if TYPE_CHECKING:
    from ..mudi_core.stage.layout_text import Place
    from ..mudi_core.types import SubjectSet


def places_of(layers: Any, subjects: SubjectSet, size: tuple[int, int]) -> dict[str, Place]:
    """Return a place for each token from core's LAYERS: box, mirroring, rotation, and who stands in front.

    A layer is a subject's where its name is the subject's token, name or class noun, as Layout Parts calls them; or
    there are as many visible layers as subjects, which then are theirs in their order. ``size``: of the picture, in
    pixels; a document with a canvas of its own is stretched to it. Raise `BadLayout`.
    """
    from ..mudi_core.stage.layout_text import Place

    document = layers if isinstance(layers, dict) else {}
    shown = [one for one in document.get("layers") or [] if _is_layer(one) and one.get("visible", True)]
    width, height = document.get("canvas") or size
    places = {}
    for token, layer in zip(subjects.tokens, _in_order(shown, subjects), strict=True):
        rows, columns = layer["image"].shape[1:3]
        x, y = float(layer.get("x", 0)), float(layer.get("y", 0))
        right, low = x + float(layer.get("w") or columns), y + float(layer.get("h") or rows)
        box = (max(0.0, x / width), max(0.0, y / height), min(1.0, right / width), min(1.0, low / height))
        if not (box[0] < box[2] and box[1] < box[3]):
            raise BadLayout(f"The layer of '{token}' has no part of the canvas of {width}x{height} px.")
        turned = math.degrees(float(layer.get("rotation", 0.0)))
        depth = -float(layer.get("z_index", 0))
        places[token] = Place(box, mirror=bool(layer.get("flip_h", False)), rotation=turned, depth=depth)
    return places


def _is_layer(one: Any) -> bool:
    image = one.get("image") if isinstance(one, dict) else None
    return isinstance(image, torch.Tensor) and image.ndim == 4 and image.numel() > 0


def _in_order(shown: Sequence[dict[str, Any]], subjects: SubjectSet) -> list[dict[str, Any]]:
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
