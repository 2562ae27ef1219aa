"""Who a character of the drawn world is, how it stands, and where: the values that are drawn."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .backdrop import BACKGROUNDS
from .pen import BODY, CLOTH

SPECIES = ("cat", "dog", "bear", "rabbit", "fox", "penguin", "robot", "alien")
COLORS = tuple(BODY)
PATTERNS = ("plain", "striped", "spotted", "patched")
HEADWEAR = ("none", "hat", "cap", "crown", "bow", "beanie")
NECKWEAR = ("none", "scarf", "bowtie")
CLOTH_COLORS = tuple(CLOTH)
ARMS = ("down", "waving", "up")
EYES = ("open", "happy")

Combination = tuple[str, str, str, str, str]
"""Species, colour, pattern, headwear, neckwear."""


@dataclass(frozen=True)
class Character:
    """The identity of a character."""

    species: str
    color: str
    pattern: str
    headwear: str
    headwear_color: str
    neckwear: str
    neckwear_color: str
    glasses: bool

    def __post_init__(self) -> None:
        _check("species", self.species, SPECIES)
        _check("color", self.color, COLORS)
        _check("pattern", self.pattern, PATTERNS)
        _check("headwear", self.headwear, HEADWEAR)
        _check("neckwear", self.neckwear, NECKWEAR)
        for kind, color in ((self.headwear, self.headwear_color), (self.neckwear, self.neckwear_color)):
            _check(f"color of {kind}", color, ("none",) if kind == "none" else CLOTH_COLORS)

    @property
    def combination(self) -> Combination:
        """The looks that decide whether a character is held out."""
        return self.species, self.color, self.pattern, self.headwear, self.neckwear

    def describe(self, detail: float = 1.0, rng: random.Random | None = None) -> str:
        """Describe the looks: all of them without rng, else each with probability detail, the colour more often."""

        def keep() -> bool:
            return rng is None or rng.random() < detail

        words = [self.color] if rng is None or rng.random() < (2 + detail) / 3 else []
        if self.pattern != "plain" and keep():
            words.append(self.pattern)
        extras = []
        if self.headwear != "none" and keep():
            extras.append(f"a {self.headwear_color} {self.headwear}")
        if self.neckwear != "none" and keep():
            extras.append(f"a {self.neckwear_color} {'bow tie' if self.neckwear == 'bowtie' else self.neckwear}")
        if self.glasses and keep():
            extras.append("glasses")
        noun = " ".join([*words, self.species])
        return f"{noun} with {_listed(extras)}" if extras else noun


@dataclass(frozen=True)
class Pose:
    """How a character stands; not part of its identity."""

    mirror: bool = False
    tilt: float = 0.0  # degrees
    arms: str = "down"
    eyes: str = "open"
    squash: float = 1.0  # width factor; the height takes the inverse

    def __post_init__(self) -> None:
        _check("arms", self.arms, ARMS)
        _check("eyes", self.eyes, EYES)


@dataclass(frozen=True)
class Actor:
    """A character at a place; xyxy is its full extent in fractions of the canvas."""

    character: Character
    pose: Pose
    xyxy: tuple[float, float, float, float]
    grounded: bool = True  # casts a soft shadow under the feet


@dataclass(frozen=True)
class Scene:
    """A background and the characters in front of it, back to front."""

    background: str
    background_seed: int
    actors: tuple[Actor, ...]

    def __post_init__(self) -> None:
        _check("background", self.background, BACKGROUNDS)


def _check(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {value!r}")


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
