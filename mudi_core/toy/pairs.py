"""Casts of held-out characters drawn by a seed: as many as a comparison needs, chosen before anybody sees a picture."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from .world import HELD_OUT_IDENTITIES, SUBJECT_TOKENS, Character, SubjectSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

Pair = tuple[SubjectSpec, SubjectSpec]
MOST = 30
"""Pairs that every seed can draw of `HELD_OUT_IDENTITIES`."""


class Cast(NamedTuple):
    """Which of the casts that a seed draws."""

    subjects: int
    """2..5 characters."""
    alike: bool
    """Of one species, like the dogs of several friends; else each of another."""
    number: int
    """From 0."""


def drawn(seed: int, count: int, characters: Sequence[Character] = HELD_OUT_IDENTITIES) -> tuple[Pair, ...]:
    """Return the first ``count`` pairs of a seed: the first of a longer draw are those of a shorter one.

    Every pair shares a species and differs in the body colour, like two dogs of two friends; nobody is in two pairs
    while others are left. Tokens are drawn too. Raise `ValueError` when the characters give fewer pairs.
    """
    rng = random.Random(f"pairs {seed}")
    return tuple((first, second) for first, second in _casts(rng, Cast(2, True, count - 1), characters))


def drawn_cast(seed: int, cast: Cast, characters: Sequence[Character] = HELD_OUT_IDENTITIES) -> tuple[SubjectSpec, ...]:
    """Return a cast of a seed; no two of it have one body colour, and no two casts of a size and kind a character.

    Raise `ValueError` when the characters do not give so many.
    """
    kind = "alike" if cast.alike else "different"
    return _casts(random.Random(f"{cast.subjects} {kind} {seed}"), cast, characters)[cast.number]


def _casts(rng: random.Random, last: Cast, characters: Sequence[Character]) -> list[tuple[SubjectSpec, ...]]:
    """Return the casts up to the last one."""
    left = rng.sample(characters, len(characters))
    casts: list[tuple[SubjectSpec, ...]] = []
    while left and len(casts) <= last.number:
        some = [left.pop(0)]
        for one in list(left):
            if len(some) < last.subjects and _fits(one, some, last.alike):
                left.remove(one)
                some.append(one)
        if len(some) == last.subjects:
            tokens = rng.sample(SUBJECT_TOKENS, last.subjects)
            casts.append(tuple(map(_named, tokens, some)))
    if len(casts) <= last.number:
        kind = "pairs" if last.subjects == 2 else f"casts of {last.subjects}"
        asked = last.number + 1
        raise ValueError(f"{len(characters)} characters give {len(casts)} {kind}; {asked} were asked for.")
    return casts


def _fits(one: Character, some: Sequence[Character], alike: bool) -> bool:
    species = {other.species for other in some}
    return (one.species in species) == alike and one.color not in {other.color for other in some}


def _named(token: str, character: Character) -> SubjectSpec:
    return SubjectSpec(token, character.species, character)
