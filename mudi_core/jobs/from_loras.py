"""Subjects from LoRAs of single subjects: each subject's pictures, painted by its own LoRA (paper, 5.4 and C.2)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from ..eyes import Detector, Embedder, Segmenter
from ..lora.concepts import Concept, check_concepts
from ..lora.metadata import CAPTIONS
from ..progress import Progress, Update, silent
from ..score.fellows import most_alike
from ..stage.captions import SENTENCE, STYLES
from ..subjects.prompt import SCENES, write_prompt
from ..types import MudiError, Photo, Subject, SubjectSet
from .one_figure import NoneUsable, Sample, with_one_figure

Painting = Callable[[Concept], AbstractContextManager[Sample]]
"""Inside its block the base model has the concept's LoRA, and the value paints."""


class NoPictures(MudiError):
    """A LoRA whose pictures do not show its subject once, so that it could be cut out."""


class BadPictures(MudiError):
    """A setting of the pictures that is out of range."""


@dataclass(frozen=True)
class PicturesConfig:
    """Which pictures to paint of each subject. Raises `BadPictures`."""

    count: int = 8
    """Pictures to keep of each subject."""
    spare: int = 4
    """Usable pictures beyond these; the least alike of all are left out."""
    scenes: tuple[str, ...] = SCENES
    """What follows the name in a prompt, in turn; or a whole prompt with {subjects} for the name."""
    seed: int = 0
    threshold: float = 0.25
    """Least confidence of the detector, 0..1."""

    def __post_init__(self) -> None:
        for name, least, most in (("count", 1, 1000), ("spare", 0, 1000)):
            if not least <= getattr(self, name) <= most:
                raise BadPictures(f"{name} is {getattr(self, name)}; it must be {least} to {most}.")
        if not self.scenes:
            raise BadPictures("There is no prompt. Write at least one line, such as 'on the beach'.")


@dataclass(frozen=True, eq=False)
class Painted:
    """The subjects, and how alike the pictures of each are."""

    subjects: SubjectSet
    kept: tuple[tuple[float, ...], ...]
    """The likeness of each kept picture to its fellows, -1..1, by subject."""
    left_out: tuple[tuple[float, ...], ...]
    """That of the others that could have been used."""

    def told(self) -> list[str]:
        """Return a sentence for each subject."""
        lines = []
        for subject, kept, others in zip(self.subjects, self.kept, self.left_out, strict=True):
            words = f"{subject.name}: {len(kept)} pictures, likeness to each other {min(kept):.2f} to {max(kept):.2f}"
            if others:
                words += f"; {len(others)} less alike left out, {min(others):.2f} to {max(others):.2f}"
            lines.append(f"{words}.")
        return lines


def paint_subjects(
    concepts: Sequence[Concept],
    painting: Painting,
    detector: Detector,
    segmenter: Segmenter,
    embedder: Embedder,
    config: PicturesConfig = PicturesConfig(),
    progress: Progress = silent,
) -> Painted:
    """Paint each subject by its own LoRA, and keep the pictures that show it once and are most alike.

    The caption of a picture is its prompt, so that training learns what it says of the surroundings as no part of the
    subject. Raise `CannotFuse` for LoRAs that cannot be told apart, and `NoPictures`.
    """
    check_concepts(concepts, least=1)
    subjects, kept, others = [], [], []
    for concept in concepts:
        style = concept.lora.about.get(CAPTIONS, SENTENCE)
        for token, noun in concept.names:
            with painting(concept) as sample, progress(f"painting {token} {noun}") as update:
                asked = _pictures(f"{token} {noun}", sample, config, style if style in STYLES else SENTENCE)
                usable = with_one_figure(asked, token, noun, detector, segmenter, config.threshold)
                photos, masks = zip(*_first(usable, config.count + config.spare, update, concept), strict=True)
            rows, likeness = most_alike(Subject(token, noun, photos, masks), embedder, config.count)
            subjects.append(Subject(token, noun, tuple(photos[i] for i in rows), tuple(masks[i] for i in rows)))
            kept.append(tuple(likeness[i] for i in rows))
            others.append(tuple(one for i, one in enumerate(likeness) if i not in rows))
    return Painted(SubjectSet(tuple(subjects)), tuple(kept), tuple(others))


def _first(
    usable: Iterator[tuple[Photo, Tensor]], count: int, update: Update, concept: Concept
) -> list[tuple[Photo, Tensor]]:
    """Return so many usable pictures. Raise `NoPictures`."""
    found = []
    try:
        for pair in itertools.islice(usable, count):
            found.append(pair)
            update(len(found), count)
    except NoneUsable as error:
        raise NoPictures(
            f"{concept.lora.name} does not paint '{concept.words}' so that it can be cut out. {error} Or try another "
            "trigger word, class noun or strength of this LoRA."
        ) from error
    return found


def _pictures(name: str, sample: Sample, config: PicturesConfig, style: str) -> Iterator[Photo]:
    for number, scene in enumerate(itertools.cycle(config.scenes)):
        prompt = write_prompt([name], scene, style=style)
        seed = random.Random(f"{config.seed}/{name}/{number}").getrandbits(63)
        yield Photo("picture", sample(prompt, seed), prompt)
