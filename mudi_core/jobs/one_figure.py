"""Pictures that show exactly one figure that can be cut out, from a stream of pictures that a model paints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from ..eyes import Detector, Segmenter
from ..subjects.find import CoversAll, NotFound, SeveralFound, find_boxes, segment_boxes
from ..types import MudiError, Photo

TRIES = 10
"""Pictures in a row that may be unusable (the official code's attempts per prior picture)."""

Sample = Callable[[str, int], Tensor]
"""``(prompt, seed)`` -> a picture ``[h, w, 3]``, 0..1, by the plain sampler."""


class NoneUsable(MudiError):
    """Pictures in a row of which none shows exactly one figure."""


def with_one_figure(
    pictures: Iterator[Photo], name: str, query: str, detector: Detector, segmenter: Segmenter, threshold: float
) -> Iterator[tuple[Photo, Tensor]]:
    """Yield the pictures that show exactly one figure, with its mask ``[h, w]``, 0 or 1.

    ``name``: of a kept picture, before its number; ``query``: what the detector looks for; ``threshold``: least
    confidence of it, 0..1. Raise `NoneUsable` when `TRIES` pictures in a row cannot be used.
    """
    good = failed = 0
    for picture in pictures:
        photo = replace(picture, name=f"{name}_{good}.png")
        try:
            found = find_boxes(photo, query, detector, threshold)
            mask = segment_boxes(photo, found.xyxy, segmenter)[0]
        except (NotFound, SeveralFound, CoversAll) as error:
            failed += 1
            if failed == TRIES:
                raise NoneUsable(
                    f"{TRIES} pictures of '{query}' in a row do not show exactly one that can be cut out. "
                    f"The last one: {error}"
                ) from error
            continue
        good, failed = good + 1, 0
        yield photo, mask
