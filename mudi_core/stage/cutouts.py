"""The cut-outs of a subject set, made once to be drawn many times, and the choice of which photo is shown how."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..masks import large_pieces
from ..types import BadLayout, MudiError, SubjectSet
from .cut import CutOut, cut_out, turned_aspect
from .layout import Figure
from .layout_text import photo_index, photo_number

_HOW_TO_CHOOSE = (
    "{!r} does not choose photos. Write random, best, or olis:hta=#1:#3 with a number for each, counted from 1."
)


Value = TypeVar("Value")


class BadPoses(MudiError):
    """A choice of photos, or a rotation, that is not possible."""


@dataclass(frozen=True)
class Poses:
    """How the subjects are shown: which photo of each, mirrored or not, rotated or not. Raises `BadPoses`."""

    photos: str | Mapping[str, int] = "random"
    """"random", "best" (see `CutOuts.best`), or the index of a photo by token (others at random)."""
    mirror: bool = False
    """Mirror figures at random. Text and one-sided marks then look wrong."""
    max_rotation: float = 0.0
    """Rotate each figure at random, by up to this many degrees to either side."""

    def __post_init__(self) -> None:
        if isinstance(self.photos, str) and self.photos not in ("random", "best"):
            raise BadPoses(_HOW_TO_CHOOSE.format(self.photos))
        if not 0 <= self.max_rotation <= 180:
            raise BadPoses(f"max_rotation is {self.max_rotation}; it must be 0 to 180 degrees.")


def parse_photos(text: str) -> str | dict[str, int]:
    """Read `Poses.photos` from "random", "best" or "olis:hta=#1:#3" (see `photo_index`). Raise `BadPoses`."""
    choice = text.strip() or "random"
    if choice in ("random", "best"):
        return choice
    names, _, numbers = choice.partition("=")
    tokens, written = [name.strip() for name in names.split(":")], [number.strip() for number in numbers.split(":")]
    indices = [photo_index(int(one) if one.isdecimal() and len(one) < 10 else one) for one in written]
    chosen = {token: index for token, index in zip(tokens, indices, strict=False) if token and index is not None}
    if not len(chosen) == len(tokens) == len(indices):
        raise BadPoses(_HOW_TO_CHOOSE.format(text))
    return chosen


def old_numbers(text: str) -> str:
    """Return a remark on a choice of photos whose numbers count from 0, as in older workflows; "" when none does."""
    choice = parse_photos(text)
    if isinstance(choice, str) or text.partition("=")[2].count("#") == len(choice):
        return ""
    from_1 = f"{':'.join(choice)}={':'.join(map(photo_number, choice.values()))}"
    return f"photos: numbers without # count from 0, as in older versions. Counted from 1 this is {from_1}."


@dataclass(frozen=True, eq=False)
class CutOuts:
    """The cut-outs of a subject set, ready to be composed."""

    subjects: SubjectSet
    by_token: Mapping[str, tuple[CutOut, ...]]
    """For each token, one cut-out per photo."""

    def figure(self, token: str, photo: int = 0, mirror: bool = False, rotation: float = 0.0) -> Figure:
        """Return what a layout needs to know about one cut-out; ``rotation`` in degrees clockwise.

        Raise `BadLayout` when the set has no such subject or photo.
        """
        return Figure(token, turned_aspect(self.get(token, photo).aspect, rotation), photo, mirror, rotation)

    def check(self, tokens: Iterable[str], source: str) -> None:
        """Raise `BadLayout`, which names `source` as the cause, when one of these is not a token of the set."""
        for token in tokens:
            if token not in self.by_token:
                raise BadLayout(f"{source} names '{token}', but the subjects are: {', '.join(self.by_token)}.")

    def resolve(self, by_name: Mapping[str, Value], source: str) -> dict[str, Value]:
        """Return the values by token, from values by token, by name ("olis corgi") or by class noun.

        A class noun works when only one subject has it. Raise `BadLayout`, which names `source` as the cause, for any
        other name and for a subject that is named twice.
        """
        found: dict[str, Value] = {}
        for name, value in by_name.items():
            tokens = [name] if name in self.by_token else []
            tokens = tokens or [subject.token for subject in self.subjects if name == subject.name]
            tokens = tokens or [subject.token for subject in self.subjects if name == subject.class_noun]
            self.check([name] if len(tokens) != 1 else tokens, source)
            if tokens[0] in found:
                raise BadLayout(f"{source} names '{tokens[0]}' twice.")
            found[tokens[0]] = value
        return found

    def figures(
        self, rng: random.Random, poses: Poses | None = None, turns: random.Random | None = None
    ) -> list[Figure]:
        """Return one figure per subject, in the order of the set.

        `rng` draws the photos, whatever the poses are, and `turns` draws everything else, so other poses do not change
        the places. Raise `BadLayout` for a photo or subject that does not exist.
        """
        poses, turns = poses or Poses(), turns or rng
        chosen = self.resolve(poses.photos, "The choice of photos") if isinstance(poses.photos, Mapping) else {}
        figures = []
        for token in self.subjects.tokens:
            photo = rng.randrange(len(self.by_token[token]))
            if poses.photos == "best":
                photo = self.best(token)
            mirror = poses.mirror and turns.random() < 0.5
            rotation = turns.uniform(-poses.max_rotation, poses.max_rotation) if poses.max_rotation else 0.0
            figures.append(self.figure(token, chosen.get(token, photo), mirror, rotation))
        return figures

    def best(self, token: str) -> int:
        """Return the index of the photo that shows the subject largest, among those that show it whole.

        A subject is whole when the border of the photo does not cut it off.
        """
        masks = self.subjects[token].masks

        def rank(photo: int) -> tuple[bool, float]:
            inside = (masks[photo] > 0.5).numpy()
            kept = large_pieces(inside)
            inside = inside if kept is None else inside & kept
            cut_off = bool(inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any())
            return not cut_off, float(inside.sum())

        return max(range(len(masks)), key=rank)

    def get(self, token: str, photo: int) -> CutOut:
        """Return the cut-out of one photo. Raise `BadLayout` when the set has no such subject or photo."""
        self.check([token], "The layout")
        if not 0 <= photo < len(self.by_token[token]):
            raise BadLayout(
                f"The layout names photo {photo_number(photo)} of '{token}', which has {len(self.by_token[token])} "
                "photos."
            )
        return self.by_token[token][photo]


def cut_outs(subjects: SubjectSet, max_side: int = 1024, on_step: Callable[[int, int], None] | None = None) -> CutOuts:
    """Cut every subject out of its photos, once; no side is longer than `max_side` pixels (that of the largest canvas).

    The crop is the box of the mask with its soft edge, without specks beside the subject. `on_step` is called with
    photos done and photos in all. Raise `EmptyMask` for a photo whose mask is empty.
    """
    photos = [(subject, photo) for subject in subjects for photo in range(len(subject.photos))]
    by_token: dict[str, tuple[CutOut, ...]] = {}
    for done, (subject, photo) in enumerate(photos, start=1):
        by_token[subject.token] = (*by_token.get(subject.token, ()), cut_out(subject, photo, max_side))
        if on_step is not None:
            on_step(done, len(photos))
    return CutOuts(subjects, by_token)
