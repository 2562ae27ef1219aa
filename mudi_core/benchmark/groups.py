"""Combos that a rule makes: every combination of subjects of some sorts, with prompts, boxes and pictures of their own.

So the lists of MS-Bench, of CustomConcept101 and of the paper's figure 26 need a few lines each, not thousands.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations, product
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ..boxes import Box
from ..files import NotText, read_text
from ..subjects.picture_file import SUFFIXES
from ..subjects.prompt import SUBJECTS
from ..toy.pairs import Cast
from ..types import MudiError, listed
from .wording import MOST_NUMBERED, places_in

CONCEPTS = "dataset_multiconcept.json"
"""The list of pairs in a copy of CustomConcept101 (arXiv 2212.04488), beside ``prompts`` and ``benchmark_dataset``."""


MOST_TOGETHER = 5
"""Characters of a cast: more are in no picture of the embedded model's world."""


class BadGroup(MudiError):
    """A group that names an unknown sort, or whose prompts or boxes do not fit its subjects; a list of another form."""


@dataclass(frozen=True)
class Own:
    """What a combo has of its own, in the place of the spec's."""

    prompts: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    """Where each subject stands, fractions of the canvas; empty: at random."""
    pictures: int = 0
    """Of each method and training, dealt over the prompts; 0: the spec's seeds of each prompt."""
    strength: float | None = None
    """Of a reference adapter, 0 or more; None: the adapter's own."""

    def as_json(self) -> dict[str, Any]:
        """Return what the picture of a cell depends on; folders of before do not name strengths."""
        strength = {} if self.strength is None else {"strength": self.strength}
        return {"prompts": self.prompts, "boxes": self.boxes, **strength}


@dataclass(frozen=True)
class Group:
    """Combos of one kind."""

    of: tuple[str, ...]
    """The sort of each subject. Of a sort that is named k times, every k subjects are taken once."""
    prompts: tuple[str, ...]
    boxes: tuple[Box, ...] = ()
    every_order: bool = False
    """Name the subjects in every order, each a prompt of its own."""
    pictures: int = 0
    """Of all combos together, for each method and training, dealt evenly; 0: the spec's seeds of each prompt."""
    strength: float | None = None
    """Of a reference adapter; None: the adapter's own."""


@dataclass(frozen=True)
class Casts:
    """Combos of characters of the toy world that the spec's ``pairs_seed`` draws (`toy.pairs.Cast`)."""

    subjects: int
    alike: bool
    count: int

    def combos(self, title: str) -> dict[str, Cast]:
        """Return the casts by their names: the title with a number. Raise `BadGroup`."""
        if not 2 <= self.subjects <= MOST_TOGETHER or self.count < 1:
            raise BadGroup(f"[casts.{title}]: subjects is 2 to {MOST_TOGETHER}, count 1 or more.")
        return {f"{title} {i}": Cast(self.subjects, self.alike, i) for i in range(self.count)}


class Made(NamedTuple):
    """What the rules made, as a `Spec` has it."""

    combos: dict[str, tuple[str, ...]]
    nouns: dict[str, str]
    own: dict[str, Own]


def made(groups: Mapping[str, Group], sorts: Mapping[str, Mapping[str, str]], here: Path) -> Made:
    """Return the combos of all groups. ``sorts``: class nouns by the subjects' paths below `here`. Raise `BadGroup`."""
    nouns = {str(here / where): noun for sort in sorts.values() for where, noun in sort.items()}
    combos: dict[str, tuple[str, ...]] = {}
    own: dict[str, Own] = {}
    for title, group in groups.items():
        _check(title, group, sorts)
        members = list(_members(group, sorts))
        prompts = tuple(_ordered(title, group))
        for i, some in enumerate(members):
            name = " + ".join(map(_short, some))
            if name in combos:
                raise BadGroup(f"[groups.{title}] makes '{name}', which is made already. Name each combo once.")
            combos[name] = tuple(str(here / where) for where in some)
            dealt = group.pictures * (i + 1) // len(members) - group.pictures * i // len(members)
            own[name] = Own(prompts, group.boxes, dealt, group.strength)
    return Made(combos, nouns, own)


def concepts(folder: Path) -> Made:
    """Return the pairs of a copy of CustomConcept101, each with the prompts of its kind. Raise `BadGroup`."""
    combos: dict[str, tuple[str, ...]] = {}
    nouns: dict[str, str] = {}
    own: dict[str, Own] = {}
    try:
        for number, (*subjects, kind) in enumerate(json.loads(read_text(folder / CONCEPTS))):
            some = []
            for subject in subjects:
                where = str(folder / "benchmark_dataset" / PurePath(subject["instance_data_dir"]).name)
                nouns[where] = str(subject["class_prompt"])
                some.append(where)
            name = f"{number:03d} {' + '.join(map(_short, some))}"
            lines = read_text(folder / kind["prompt_filename_compose"]).splitlines()
            combos[name] = tuple(some)
            own[name] = Own(tuple(filter(None, map(str.strip, lines))))
    except (OSError, NotText) as error:
        raise BadGroup(f"{folder} is no whole copy of CustomConcept101: {error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadGroup(f"{folder / CONCEPTS} is not the list of CustomConcept101. Download it again.") from error
    for name, one in own.items():  # a prompt of theirs names one of the two twice and the other never
        for prompt in one.prompts:
            if not places_in(prompt) or max(places_in(prompt)) >= len(combos[name]):
                raise BadGroup(f"'{name}': the prompt {prompt!r} names other subjects than the two. Download it again.")
    return Made(combos, nouns, own)


def _check(title: str, group: Group, sorts: Mapping[str, Any]) -> None:
    for sort in group.of:
        if sort not in sorts:
            raise BadGroup(f"[groups.{title}] names the sort '{sort}'; there are: {', '.join(sorts)}.")
    if group.boxes and len(group.boxes) != len(group.of):
        raise BadGroup(
            f"[groups.{title}] has {len(group.boxes)} boxes for {len(group.of)} subjects. Give one for each."
        )
    for x0, y0, x1, y1 in group.boxes:
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise BadGroup(f"[groups.{title}] has the box {[x0, y0, x1, y1]}; it must be x0, y0, x1, y1 inside 0..1.")
    if group.strength is not None and group.strength < 0:
        raise BadGroup(f"[groups.{title}] has the strength {group.strength}; it must be 0 or more.")
    if not 1 <= len(group.of) <= MOST_NUMBERED or not group.prompts or group.pictures < 0:
        raise BadGroup(
            f"[groups.{title}] needs 1 to {MOST_NUMBERED} sorts and at least one prompt; pictures is 0 or more."
        )
    for prompt in group.prompts:
        if SUBJECTS not in prompt and places_in(prompt) != set(range(len(group.of))):
            raise BadGroup(
                f"[groups.{title}]: {prompt!r} does not name each of {len(group.of)} subjects: {{0}} and so on."
            )


def _members(group: Group, sorts: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the subjects of each combo, in the order of the group's sorts."""
    counts = Counter(group.of)
    for picked in product(*(combinations(sorts[sort], count) for sort, count in counts.items())):
        waiting = {sort: iter(some) for sort, some in zip(counts, picked, strict=True)}
        yield tuple(next(waiting[sort]) for sort in group.of)


def _ordered(title: str, group: Group) -> Iterator[str]:
    for prompt in group.prompts:
        if not group.every_order:
            yield prompt
        elif SUBJECTS not in prompt:
            raise BadGroup(f"[groups.{title}]: with every_order the prompt {prompt!r} needs {SUBJECTS}.")
        else:
            for order in permutations(range(len(group.of))):
                yield prompt.replace(SUBJECTS, listed([f"{{{i}}}" for i in order]))


def _short(where: str) -> str:
    path = PurePath(where)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name
