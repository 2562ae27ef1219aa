"""Prompts of a benchmark: the subjects stand where {subjects} is, or each at its number: "a {0} wearing a {1}"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..score.fidelity import every_order
from ..subjects.prompt import SUBJECTS, write_prompt
from ..types import MudiError, SubjectSet

MOST_NUMBERED = 10
"""Subjects that have a place of one digit."""
_PLACE = re.compile(r"\{(\d)\}")


class NotNumbered(MudiError):
    """A prompt that names a subject that the combo does not have."""


def places_in(text: str) -> set[int]:
    """Return the numbers of the subjects that a prompt names by number; none where it has {subjects}."""
    return set() if SUBJECTS in text else {int(number) for number in _PLACE.findall(text)}


def worded(names: Sequence[str], text: str) -> str:
    """Write a prompt with the names of the subjects, in their order or where their numbers are. Raise `NotNumbered`."""
    if not (places := places_in(text)):
        return write_prompt(names, text)
    if max(places) >= len(names):
        raise NotNumbered(f"The prompt {text!r} names subject {max(places)}, but there are 0 to {len(names) - 1}.")
    return _PLACE.sub(lambda place: names[int(place[1])], text)


def alone(name: str, text: str) -> str:
    """Write a prompt for one of the subjects; of what others do beside it with numbers, nothing is left."""
    return write_prompt([name], "" if places_in(text) else text)


def orders(subjects: SubjectSet, text: str) -> list[str]:
    """Return what a text scorer reads: class nouns in all orders, or only in the given one where they are numbered.

    Raise `prompt.TooManyOrders`.
    """
    if places_in(text):
        return [worded([subject.class_noun for subject in subjects], text)]
    return every_order(subjects, text)
