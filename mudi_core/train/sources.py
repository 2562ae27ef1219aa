"""The pictures that the samples of a run are drawn from: are they enough, and what is doubtful about them?"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

from torch import Tensor

from ..stage.captions import says
from ..subjects.find import doubts
from ..types import MudiError, SubjectSet
from .draw import all_photos
from .parts import Samples

log = logging.getLogger(__name__)


class OneSubject(MudiError):
    """A single subject where compositions of two are needed."""


def checked(subjects: SubjectSet, settings: Samples, others: SubjectSet | None) -> SubjectSet | None:
    """Return the strangers, if the settings want any. Raise `OneSubject` where there is nobody to compose with."""
    if settings.method == "dreambooth":
        return None
    if settings.compose_with_others:
        if others is None:
            raise OneSubject(
                "The subjects are to be composed with others, and there are no pictures of others. Make some of their "
                "class and of other classes (Make Priors, or the command priors)."
            )
        return others
    if len(subjects) < 2:
        raise OneSubject(
            f"There is only one subject, '{subjects.subjects[0].name}', and {settings.method} composes two. Add "
            "another subject, compose it with others, or train with the method 'dreambooth'."
        )
    return None


def warn(subjects: SubjectSet) -> None:
    """Warn about masks and captions that teach something else than the subject."""
    for doubt in doubts(subjects):
        log.warning(doubt)
    for subject, photo, _ in all_photos(subjects):
        if photo.caption and not says(photo.caption, subject.token):
            log.warning(
                "%s: its caption '%s' does not say '%s', so the photo will not teach that name. Add it.",
                photo.name,
                photo.caption,
                subject.token,
            )


def contents(subjects: SubjectSet | None) -> Iterator[str | Tensor]:
    """Yield everything in a set that can affect a plan."""
    for subject, photo, mask in [] if subjects is None else all_photos(subjects):
        yield json.dumps([subject.token, subject.class_noun, photo.name, photo.caption])
        yield photo.image
        yield mask
