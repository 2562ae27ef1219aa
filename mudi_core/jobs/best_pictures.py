"""Pictures of all subjects from many prompts, and the best of them, which a training can go on from (paper, 5.5, C.3).

The paper makes 200 pictures from simple prompts and keeps the 50 with the best Detect-and-Compare score. Here only
those count in which every subject is itself, and of one prompt only so many, so that no single scene is learned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..progress import Progress, silent
from ..types import Comparison, MudiError, Photo, SubjectSet
from .search import Judge

Paint = Callable[[str, int], Tensor]
"""``(prompt, seed)`` -> a picture ``[h, w, 3]``, 0..1."""


class BadPictures(MudiError):
    """A setting of the pictures that is out of range."""


class NoneSound(MudiError):
    """Too few pictures that show every subject as itself; the sentence says what was wrong and what to change."""


@dataclass(frozen=True)
class BestConfig:
    """Which pictures to paint, and how many to keep. Raises `BadPictures`."""

    prompts: tuple[str, ...]
    """Whole prompts that name every subject; pictures take them in turn."""
    count: int = 200
    keep: int = 50
    per_prompt: int = 0
    """Most that are kept of one prompt; 0: twice an even share of ``keep``."""
    least: int = 10
    """Sound pictures without which nothing can be learned."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise BadPictures("There is no prompt. Write at least one that names every subject.")
        for name, least, most in (("count", 1, 10_000), ("keep", 1, 10_000), ("per_prompt", 0, 10_000)):
            _check(name, getattr(self, name), least, most)
        _check("least", self.least, 1, self.keep)

    @property
    def most(self) -> int:
        """Most pictures of one prompt."""
        return self.per_prompt or -(-2 * self.keep // len(self.prompts))


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise BadPictures(f"{name} is {value}; it must be {least} to {most}.")


def asked(prompts: Sequence[str], count: int, seed: int) -> list[tuple[str, int]]:
    """Return prompt and seed of each of ``count`` pictures: the prompts in turn, every seed another."""
    return [
        (prompts[number % len(prompts)], random.Random(f"{seed}/{number}/picture").getrandbits(63))
        for number in range(count)
    ]


@dataclass(frozen=True, eq=False)
class Tried:
    """A picture that was painted, and what was found in it."""

    number: int
    prompt: str
    seed: int
    score: float
    """Detect-and-Compare's, 1 at best."""
    figures: int
    themselves: int
    """Subjects that are found as themselves."""
    boxes: tuple[tuple[float, float, float, float], ...]
    """``xyxy`` of its figures in pixels."""
    image: Tensor | None = None
    """``[h, w, 3]``, 0..1; None where it is only on disk, or was not worth keeping."""
    path: Path | None = None

    def is_sound(self, subjects: int) -> bool:
        """Return whether it shows each of so many subjects once, as itself."""
        return self.figures == self.themselves == subjects


class Shelf(Protocol):
    """Where pictures that were tried are kept, so that nothing is painted twice."""

    begun: int
    """Pictures that are there from an earlier run."""

    def get(self, number: int, prompt: str, seed: int) -> Tried | None:
        """Return what came of a picture; None where it was not tried."""

    def add(self, one: Tried, keep: bool) -> Tried:
        """Keep what came of a picture, and the picture itself where that is wanted; return it as it is kept."""

    def image(self, one: Tried) -> Tensor:
        """Return a picture that was kept."""


class InMemory:
    """A shelf that lasts as long as its pictures are used."""

    begun = 0

    def get(self, number: int, prompt: str, seed: int) -> Tried | None:
        """Return None: nothing is kept from before."""
        return None

    def add(self, one: Tried, keep: bool) -> Tried:
        """Return it, without its picture where nobody will want it."""
        return one if keep else replace(one, image=None)

    def image(self, one: Tried) -> Tensor:
        """Return its picture."""
        assert one.image is not None
        return one.image


def try_all(
    pictures: Sequence[tuple[str, int]],
    subjects: int,
    paint: Paint,
    judge: Judge,
    shelf: Shelf,
    *,
    keep_all: bool = False,
) -> Iterator[Tried]:
    """Paint and judge pictures of these prompts and seeds, in their order, and yield what came of each.

    Pictures are kept where they are sound, or all.
    """
    for number, (prompt, seed) in enumerate(pictures):
        there = shelf.get(number, prompt, seed)
        if there is None:
            image = paint(prompt, seed)
            (comparison,) = judge([image])
            one = _tried(number, prompt, seed, comparison, image)
            there = shelf.add(one, keep_all or one.is_sound(subjects))
        yield there


def _tried(number: int, prompt: str, seed: int, found: Comparison, image: Tensor) -> Tried:
    boxes = tuple((box[0], box[1], box[2], box[3]) for box in found.detections.xyxy.tolist())
    return Tried(number, prompt, seed, found.score, len(boxes), found.themselves, boxes, image)


def best_of(sound: Sequence[Tried], keep: int, per_prompt: int) -> list[Tried]:
    """Return the best by score, at most so many and so many of a prompt, in the order in which they were tried."""
    kept: list[Tried] = []
    for one in sorted(sound, key=lambda one: (-one.score, one.number)):
        if len(kept) < keep and sum(other.prompt == one.prompt for other in kept) < per_prompt:
            kept.append(one)
    return sorted(kept, key=lambda one: one.number)


@dataclass(frozen=True, eq=False)
class Best:
    """The best pictures, and how many there were."""

    kept: tuple[Tried, ...]
    tried: int
    sound: int

    @property
    def words(self) -> str:
        """What came of it, in a sentence."""
        scores = [one.score for one in self.kept]
        return (
            f"{self.sound} of {self.tried} pictures show every subject as itself; {len(self.kept)} are kept, with "
            f"scores of {min(scores):.2f} to {max(scores):.2f}."
        )


def best_pictures(
    config: BestConfig,
    subjects: SubjectSet,
    paint: Paint,
    judge: Judge,
    shelf: Shelf,
    progress: Progress = silent,
) -> Best:
    """Paint ``config.count`` pictures and return the best that show every subject as itself. Raise `NoneSound`."""
    n, kept, sound, wrong_count = len(subjects), list[Tried](), 0, 0
    words = f"going on from picture {shelf.begun + 1}" if shelf.begun else ""
    with progress("painting pictures to choose from") as update:
        for one in try_all(asked(config.prompts, config.count, config.seed), n, paint, judge, shelf):
            if one.is_sound(n):
                sound += 1
                # Who is not among the best so far never is later: others can be forgotten.
                kept = best_of([*kept, one], config.keep, config.most)
            wrong_count += one.figures != n
            update(one.number + 1, config.count, words)
    if sound < max(config.least, n):
        raise NoneSound(_why(config, n, sound, wrong_count))
    return Best(tuple(kept), config.count, sound)


def _why(config: BestConfig, n: int, sound: int, wrong_count: int) -> str:
    """Return what was wrong with the pictures, and what to change."""
    mixed = config.count - sound - wrong_count
    few = "None" if sound == 0 else f"Only {sound}"
    if wrong_count >= mixed:
        advice = (
            "Most have a wrong number of figures: use MuDI's start with a higher gamma, simpler prompts, or another "
            "threshold of the detector."
        )
    else:
        advice = "In most somebody is mixed or missing: train the first LoRA longer, or on better photos and masks."
    return (
        f"{few} of {config.count} pictures show every subject as itself, and {max(config.least, n)} are needed: "
        f"{wrong_count} do not show {n} figures, in {mixed} not everybody is itself. {advice} Or make more pictures."
    )


def as_subjects(best: Best, subjects: SubjectSet, shelf: Shelf) -> SubjectSet:
    """Return the kept pictures as photos to train on without compositions, each with its prompt as caption.

    They are dealt out to the subjects, whose names stay; each is there once. A mask is where its figures are.
    """
    n, made = len(subjects), []
    for place, subject in enumerate(subjects):
        own = best.kept[place::n]
        images = [shelf.image(one) for one in own]
        photos = tuple(
            Photo(f"{one.number:04d}.png", image, one.prompt) for one, image in zip(own, images, strict=True)
        )
        masks = tuple(_figures(one, image) for one, image in zip(own, images, strict=True))
        made.append(replace(subject, photos=photos, masks=masks))
    return SubjectSet(tuple(made))


def _figures(one: Tried, image: Tensor) -> Tensor:
    """Return where the boxes of a picture are, ``[h, w]``, 0 or 1."""
    mask = torch.zeros(image.shape[:2])
    for x0, y0, x1, y1 in one.boxes:
        mask[max(0, int(y0)) : max(1, int(y1) + 1), max(0, int(x0)) : max(1, int(x1) + 1)] = 1
    return mask
