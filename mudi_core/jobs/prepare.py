"""Photos of one subject become a `Subject`: found in each, cut out, and checked to be there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..eyes import Detector, Segmenter
from ..levels import unpacked
from ..progress import Progress, silent
from ..subjects.find import Which, checked_subject, find_boxes, segment_boxes
from ..types import Photo, Subject


@dataclass(frozen=True)
class Wanted:
    """The subject to find in photos."""

    token: str
    class_noun: str
    query: str = ""
    """What the detector looks for; empty: the class noun."""
    threshold: float = 0.25
    """The least confidence of a box that counts, 0..1."""
    which: Which = "exactly one"


def prepare(
    photos: Sequence[Photo], wanted: Wanted, detector: Detector, segmenter: Segmenter, progress: Progress = silent
) -> Subject:
    """Find a subject in each of its photos and cut it out (paper section 4.1).

    Raise `find.NotFound`, `SeveralFound` or `CoversAll`, with the name of the photo and the best score, or
    `BadSubject`.
    """
    query, masks = wanted.query or wanted.class_noun, []
    with progress("finding and cutting out") as update:
        for done, packed in enumerate(photos, start=1):
            photo = replace(packed, image=unpacked(packed.image))
            found = find_boxes(photo, query, detector, wanted.threshold, wanted.which)
            masks.append(segment_boxes(photo, found.xyxy, segmenter, wanted.which)[0])
            update(done, len(photos))
    return checked_subject(photos, masks, wanted.token, wanted.class_noun)
