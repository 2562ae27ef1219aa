"""Pictures of other members of each class, made by the user's own model, for prior preservation (paper, appendix B)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ..eyes import Detector, Segmenter
from ..subjects.find import CoversAll, NotFound, SeveralFound, find_boxes, segment_boxes
from ..types import MudiError, Photo, Subject, SubjectSet

PROMPT = "a photo of a {}, simple background, full body view, award winning photography, highly detailed"
NEGATIVE_PROMPT = "anime, cartoon, graphic, text, painting, crayon, graphite, abstract glitch, blurry"
"""Both prompts are those of the official code."""
COUNT, THRESHOLD, TRIES = 50, 0.4, 10
"""The official code's pictures per class, least confidence of the detector, and attempts per picture."""

Sample = Callable[[str, int], Tensor]
"""``(prompt, seed)`` -> a picture ``[h, w, 3]``, 0..1, by the plain sampler."""


class NoPriors(MudiError):
    """A model whose pictures of a class do not show exactly one member of it."""


@dataclass(frozen=True)
class PriorsConfig:
    """Which pictures to make of each class."""

    count: int = COUNT
    """Pictures to keep of each class."""
    seed: int = 0
    threshold: float = THRESHOLD
    """Least confidence of the detector, 0..1."""
    prompt: str = PROMPT
    """The prompt, with {} in place of the class noun."""


def make_priors(
    subjects: SubjectSet,
    sample: Sample,
    detector: Detector,
    segmenter: Segmenter,
    config: PriorsConfig = PriorsConfig(),
    on_step: Callable[[int, int], None] | None = None,
) -> SubjectSet:
    """Return pictures of each subject's class with masks, under the subject's own token and class noun (appendix B).

    A picture is kept only when exactly one member of the class is detected and segmented in it. ``on_step`` is called
    with the pictures kept and the pictures in all. Raise `NoPriors` when `TRIES` pictures in a row cannot be used.
    """
    made = []
    for place, subject in enumerate(subjects):

        def pictures(subject: Subject = subject, place: int = place) -> Iterator[Tensor]:
            text = config.prompt.replace("{}", subject.class_noun)
            for tried in itertools.count():
                yield sample(text, random.Random(f"{config.seed}/{place}/prior/{tried}").getrandbits(63))

        photos: list[Photo] = []
        masks: list[Tensor] = []
        for photo, mask in _good_ones(pictures(), subject, detector, segmenter, config.threshold):
            photos.append(photo)
            masks.append(mask)
            if on_step is not None:
                on_step(place * config.count + len(photos), config.count * len(subjects))
            if len(photos) == config.count:
                break
        made.append(Subject(subject.token, subject.class_noun, tuple(photos), tuple(masks)))
    return SubjectSet(tuple(made))


def _good_ones(
    pictures: Iterator[Tensor], subject: Subject, detector: Detector, segmenter: Segmenter, threshold: float
) -> Iterator[tuple[Photo, Tensor]]:
    """Yield the pictures that show exactly one member of the subject's class, with its mask. Raise `NoPriors`."""
    good = failed = 0
    for image in pictures:
        photo = Photo(f"{subject.token}_prior_{good}.png", image)
        try:
            found = find_boxes(photo, subject.class_noun, detector, threshold)
            mask = segment_boxes(photo, found.xyxy, segmenter)[0]
        except (NotFound, SeveralFound, CoversAll) as error:
            failed += 1
            if failed == TRIES:
                raise NoPriors(
                    f"{TRIES} pictures of '{subject.class_noun}' in a row do not show exactly one that can be cut out. "
                    f"The last one: {error} Or choose another class noun."
                ) from error
            continue
        good, failed = good + 1, 0
        yield photo, mask
