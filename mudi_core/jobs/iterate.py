"""Iterative training: a model learns from the best of its own pictures, until that helps no more (paper, 5.5).

Each round paints pictures of all subjects, keeps the best, and trains a LoRA on them on top of the one of before, held
to what that can do (KL). Whether it helped is measured on other prompts and seeds than those that were chosen from.
Everything is kept in a folder as soon as it is there: the same call goes on wherever it was stopped.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..files import whole
from ..lock import claimed
from ..lora.reading import Lora, read_lora
from ..progress import Progress, silent
from ..types import MudiError, SubjectSet
from .best_pictures import BadPictures, BestConfig, Paint, as_subjects, asked, best_pictures, try_all
from .picture_shelf import FolderShelf
from .search import Judge
from .train import LoraFiles, whole_of
from .unfinished import MADE_OF, differences, remember

STATE = "iterate.json"
LEARNING = ("pictures to choose from", "training")
"""What may change until the first round is trained: whoever finds too few pictures can ask for more."""


class CannotIterate(MudiError):
    """A folder that belongs to another iteration, that another process works in, or that cannot be written."""


@dataclass(frozen=True)
class IterateConfig:
    """How to iterate. Raises `BadPictures`."""

    pictures: BestConfig
    """What each round paints and keeps; every round has seeds of its own."""
    fresh: tuple[str, ...]
    """Whole prompts of the pictures that a round is judged by: none of those that are chosen from."""
    checks: int = 32
    """How many of these pictures. They have the same prompts and seeds after every round."""
    rounds: int = 3
    """Most rounds."""

    def __post_init__(self) -> None:
        for name, least, most in (("checks", 2, 10_000), ("rounds", 1, 100)):
            if not least <= getattr(self, name) <= most:
                raise BadPictures(f"{name} is {getattr(self, name)}; it must be {least} to {most}.")
        if not self.fresh:
            raise BadPictures("There is no prompt to check with. Write at least one that names every subject.")
        if both := sorted(set(self.fresh) & set(self.pictures.prompts)):
            raise BadPictures(
                f"'{both[0]}' is a prompt to check with and one to learn from, so the check would say nothing. Use "
                "different ones."
            )


class Model(Protocol):
    """A base model that iterates."""

    def wearing(self, lora: Lora) -> AbstractContextManager[Paint]:
        """Inside the block the base model has a LoRA, and the value paints."""

    def train(self, subjects: SubjectSet, on: Lora, files: LoraFiles, seed: int) -> None:
        """Train a LoRA on pictures of its own on top of another, or go on with it, and write it, alone and together.

        Nothing is done where both files are there (`train.whole_of`).
        """


@dataclass(frozen=True)
class Round:
    """What came of a round; round 0 is the LoRA that came in."""

    number: int
    lora: Path
    scores: tuple[float, ...]
    """Detect-and-Compare of the fresh pictures, in their order."""
    themselves: float
    """Share of them in which every subject is itself."""
    sound: int = 0
    """Pictures that could be chosen from; 0 for round 0."""
    kept: int = 0

    @property
    def mean(self) -> float:
        """The mean score."""
        return sum(self.scores) / len(self.scores)

    def gain(self, before: Round) -> tuple[float, float]:
        """Return how much better the same pictures score than before, and the standard error of that."""
        n = len(self.scores)
        each = [now - then for now, then in zip(self.scores, before.scores, strict=True)]
        mean = sum(each) / n
        return mean, (sum((one - mean) ** 2 for one in each) / (n - 1) / n) ** 0.5

    def improves(self, before: Round) -> bool:
        """Return whether it is better than before by more than the standard error."""
        gain, error = self.gain(before)
        return gain > error


@dataclass(frozen=True)
class Iterated:
    """All rounds, and the best."""

    rounds: tuple[Round, ...]
    best: Round
    stopped: bool
    """Whether it stopped by itself, since the last round was no better."""


def iterate(
    first: Path,
    subjects: SubjectSet,
    model: Model,
    judge: Judge,
    config: IterateConfig,
    folder: Path,
    made_of: Mapping[str, Any],
    progress: Progress = silent,
) -> Iterated:
    """Improve a LoRA of all subjects by pictures that it makes itself; files and numbers are in ``folder``.

    ``made_of``: what else the result depends on, to refuse a folder of something else; "training" of it, and how many
    pictures a round chooses from, may change until the first round is trained, ``config.rounds`` at any time. The LoRA
    of the best round is ``folder/best.safetensors``. Raise `CannotIterate`, `NoneSound`, what model and judge raise.
    """
    with _alone(folder):
        lora = read_lora(first)
        _same(folder, {**made_of, **_settings(config), "lora": lora.fingerprint()})
        work = _Work(subjects, model, judge, config, folder, progress)
        rounds = [replace(work.check(lora, 0), lora=first)]
        best, stopped = rounds[0], False
        for number in range(1, config.rounds + 1):
            rounds.append(work.round(read_lora(best.lora), number))
            stopped = not rounds[-1].improves(best)
            _write(folder, rounds)
            if stopped:
                break
            best = rounds[-1]
        with _writing(folder), whole(folder / "best.safetensors") as part:
            shutil.copyfile(best.lora, part)
        return Iterated(tuple(rounds), best, stopped)


@dataclass(eq=False)
class _Work:
    """An iteration under way."""

    subjects: SubjectSet
    model: Model
    judge: Judge
    config: IterateConfig
    folder: Path
    progress: Progress

    def round(self, on: Lora, number: int) -> Round:
        """Paint, choose, train and check."""
        place = self.folder / f"round-{number}"
        shelf = FolderShelf(place / "pictures")
        seed = random.Random(f"{self.config.pictures.seed}/round/{number}").getrandbits(32)
        with self.model.wearing(on) as paint:
            pictures = replace(self.config.pictures, seed=seed)
            best = best_pictures(pictures, self.subjects, paint, self.judge, shelf, self.progress)
        files = LoraFiles(place / "lora.safetensors", place / "lora.stopped.safetensors")
        self.model.train(as_subjects(best, self.subjects, shelf), on, files, seed)
        assert files.lora is not None
        path = whole_of(files.lora)
        return replace(self.check(read_lora(path), number), lora=path, sound=best.sound, kept=len(best.kept))

    def check(self, lora: Lora, number: int) -> Round:
        """Judge a LoRA by fresh prompts and seeds, the same in every round."""
        n, found = len(self.subjects), []
        shelf = FolderShelf(self.folder / f"check-{number}")
        pictures = asked(self.config.fresh, self.config.checks, self.config.pictures.seed + 1)
        with self.model.wearing(lora) as paint, self.progress(f"checking round {number}") as update:
            for one in try_all(pictures, n, paint, self.judge, shelf, keep_all=True):
                found.append(one)
                update(len(found), len(pictures))
        sound = sum(one.is_sound(n) for one in found) / len(found)
        return Round(number, Path(), tuple(one.score for one in found), sound)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside the block no other process iterates in this folder. Raise `CannotIterate`."""
    with ExitStack() as stack:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            ours = stack.enter_context(claimed(folder / ".iterate.lock"))
        if not ours:
            raise CannotIterate(f"Another process iterates in {folder} now. Wait for it, or choose another folder.")
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotIterate(
            f"{folder} cannot be written: {error.strerror or error}. Make room there and start the same command again: "
            "it goes on with what is there."
        ) from error


def _settings(config: IterateConfig) -> dict[str, Any]:
    """Return the settings as two values: which pictures are painted, and how those to learn from are chosen."""
    pictures = asdict(config.pictures)
    which = {"prompts": pictures.pop("prompts"), "seed": pictures.pop("seed")}
    return {"settings": {**which, "fresh": config.fresh, "checks": config.checks}, LEARNING[0]: pictures}


def _same(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Write what an iteration is made of, or compare it with what is there. Raise `CannotIterate`."""
    found = differences(folder, made_of) if (folder / MADE_OF).exists() else LEARNING
    different = sorted(found, key=LEARNING.__contains__)
    if set(different) <= set(LEARNING) and not any(folder.glob("round-1/*.safetensors")):
        with _writing(folder):
            remember(folder, made_of)
    elif different:
        raise CannotIterate(
            f"{folder} holds an iteration with other {different[0]}. Choose another folder, or give it what it had "
            "before."
        )


def _write(folder: Path, rounds: Sequence[Round]) -> None:
    rows = [
        {
            "round": one.number,
            "lora": str(one.lora),
            "mean": one.mean,
            "themselves": one.themselves,
            "scores": list(one.scores),
            "sound": one.sound,
            "kept": one.kept,
        }
        for one in rounds
    ]
    with _writing(folder), whole(folder / STATE) as part:
        part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
