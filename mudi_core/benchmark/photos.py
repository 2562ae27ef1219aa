"""The subjects of a combo that names each by its own folder: datasets, or plain photos that are prepared once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..eyes import Detector, Segmenter
from ..jobs.prepare import Wanted, prepare
from ..progress import Progress
from ..subjects import storage
from ..subjects.find import CoversAll, NotFound
from ..types import MudiError, Photo, Subject, SubjectSet
from .results import Results

log = logging.getLogger(__name__)

TOKENS = ("olis", "hta", "ult", "amg", "lun")
"""Those of the official code, for subjects that come with the same one."""
_PREPARED = ".subjects"
"""Where subjects of plain photos lie among the results: no combo can have this name."""


class NoNoun(MudiError):
    """Plain photos of which nobody says what they show."""


@dataclass(frozen=True)
class Preparing:
    """How plain photos become subjects."""

    results: Results
    detector: Detector
    segmenter: Segmenter | None
    threshold: float
    """Least confidence of the detector in a photo, 0..1."""
    progress: Progress


def joined(subjects: Sequence[Subject]) -> SubjectSet:
    """Return the subjects as one set; when two have the same token, all get tokens anew. Raise `BadSubject`."""
    if len({subject.token for subject in subjects}) < len(subjects) <= len(TOKENS):
        subjects = [replace(one, token=token) for one, token in zip(subjects, TOKENS, strict=False)]
    return SubjectSet(tuple(subjects))


def _place(where: Path, how: Preparing) -> Path:
    """Return where the dataset of plain photos lies, or will."""
    number = hashlib.sha256(str(where).encode(errors="surrogateescape")).hexdigest()[:8]
    return how.results.folder / _PREPARED / f"{where.stem} {number}"


def subjects_of(where: Path, how: Preparing) -> list[Subject]:
    """Return the subjects of a dataset, or the one of plain photos: a folder of them, or one picture.

    What the detector does not find, such as a landscape, is the whole photo; a warning says so. Raise `NoNoun`, and as
    `storage.read_subjects` and `storage.read_photos` do.
    """
    if (where / storage.METADATA).is_file():
        return list(storage.read_subjects(where))
    place = _place(where, how)
    with how.results.claimed(place.name, wait=True):
        if not (place / storage.METADATA).is_file():
            noun = how.results.spec.nouns.get(str(where))
            if noun is None:
                raise NoNoun(f"{where} is no dataset, and [nouns] does not say what is in its photos. Write it there.")
            photos = (storage.read_photo(where),) if where.is_file() else storage.read_photos(where)
            storage.write_subjects(SubjectSet((_found(photos, noun, how),)), place)
        return list(storage.read_subjects(place))


def _found(photos: Sequence[Photo], noun: str, how: Preparing) -> Subject:
    assert how.segmenter is not None, "plain photos are cut out"
    wanted = Wanted(TOKENS[0], noun, threshold=how.threshold, which="best")
    masks: list[Tensor] = []
    for photo in photos:
        try:
            masks += prepare([photo], wanted, how.detector, how.segmenter, how.progress).masks
        except (NotFound, CoversAll) as error:
            log.warning("%s The whole photo counts as the %s.", error, noun)
            masks.append(torch.ones(photo.image.shape[:2]))
    return Subject(wanted.token, noun, tuple(photos), tuple(masks))
