"""Boxes that another node found, in place of a detector of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..mudi_core.types import Detections, MudiError
from . import convert

if TYPE_CHECKING:
    from torch import Tensor

    from .sockets import BoundingBox


class BoxesDoNotFit(MudiError):
    """The boxes do not belong to these pictures: too few lists, an empty one, or a box outside its picture."""


class GivenBoxes:
    """A `Detector` that finds the boxes of a BOUNDING_BOX link, picture by picture, in their order."""

    limits = ""

    def __init__(self, boxes: Sequence[Any], pictures: Sequence[Tensor], word: str = "picture") -> None:
        """Take the boxes of all ``pictures`` ``[h, w, 3]``, which errors call by this word. Raise `BoxesDoNotFit`."""
        lists = [one for some in boxes for one in convert.boxes_per_image(some)]
        if len(lists) != len(pictures):
            raise BoxesDoNotFit(
                f"There are {len(pictures)} {word}s but boxes for {len(lists)}. Connect the {word}s that the boxes "
                "were found in."
            )
        for number, (picture, one) in enumerate(zip(pictures, lists, strict=True), start=1):
            check_inside(f"{word} {number}", (picture.shape[1], picture.shape[0]), one)
        self._lists = iter(lists)

    def __call__(self, image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
        """Return the next picture's boxes of at least this score, surest first; a box without a score is sure."""
        boxes = next(self._lists)
        scores = torch.tensor([float(box.get("score", 1.0)) for box in boxes])
        order = [row for row in scores.argsort(descending=True, stable=True).tolist() if scores[row] >= threshold]
        labels = (queries[0] if queries else "",) * len(order)
        best = float(scores.max()) if boxes else 0.0
        return Detections(convert.xyxy(boxes)[order], scores[order], labels, best)


def check_inside(name: str, size: tuple[int, int], boxes: list[BoundingBox]) -> None:
    """Raise `BoxesDoNotFit` where a box lies outside a picture of this width and height by half or more."""
    from ..mudi_core.boxes import area, clip

    whole = convert.xyxy(boxes)
    for box, seen, all_of_it in zip(boxes, area(clip(whole, size)).tolist(), area(whole).tolist(), strict=True):
        if not seen > all_of_it / 2:
            raise BoxesDoNotFit(
                f"{name} is {size[0]}x{size[1]} px, and a box of {box['width']:g}x{box['height']:g} px at "
                f"{box['x']:g}, {box['y']:g} does not lie in it. Was it found in a picture of another size? Connect "
                f"the {name.split()[0]}s that the boxes were found in."
            )
