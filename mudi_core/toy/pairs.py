"""Pairs of held-out characters drawn by a seed: as many as a comparison needs, chosen before anybody sees a picture."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from .world import HELD_OUT_IDENTITIES, SUBJECT_TOKENS, Character, SubjectSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

Pair = tuple[SubjectSpec, SubjectSpec]
MOST = 30
"""Pairs that every seed can draw of `HELD_OUT_IDENTITIES`."""


def drawn(seed: int, count: int, characters: Sequence[Character] = HELD_OUT_IDENTITIES) -> tuple[Pair, ...]:
    """Return the first ``count`` pairs of a seed: the first of a longer draw are those of a shorter one.

    Every pair shares a species and differs in the body colour, like two dogs of two friends; nobody is in two pairs
    while others are left. Tokens are drawn too. Raise `ValueError` when the characters give fewer pairs.
    """
    rng = random.Random(f"pairs {seed}")
    left = rng.sample(characters, len(characters))
    pairs: list[Pair] = []
    while len(pairs) < count:
        first = left.pop(0)
        other = next((one for one in left if one.species == first.species and one.color != first.color), None)
        if other is not None:
            left.remove(other)
            tokens = rng.sample(SUBJECT_TOKENS, 2)
            pairs.append((_named(tokens[0], first), _named(tokens[1], other)))
        if not left and len(pairs) < count:
            raise ValueError(f"{len(characters)} characters give {len(pairs)} pairs; {count} were asked for.")
    return tuple(pairs)


def _named(token: str, character: Character) -> SubjectSpec:
    return SubjectSpec(token, character.species, character)
