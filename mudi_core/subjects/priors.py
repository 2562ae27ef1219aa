"""Pictures of other members of each class, made by the user's own model, for prior preservation (paper, appendix B)."""

from __future__ import annotations

import random
from collections.abc import Callable

from torch import Tensor

from ..eyes import Detector, Segmenter
from ..types import MudiError, Photo, Subject, SubjectSet
from .find import CoversAll, NotFound, SeveralFound, find_boxes, segment_boxes

PROMPT = "a photo of a {}, simple background, full body view, award winning photography, highly detailed"
NEGATIVE_PROMPT = "anime, cartoon, graphic, text, painting, crayon, graphite, abstract glitch, blurry"
"""Both are the official code's."""
COUNT, THRESHOLD, TRIES = 50, 0.4, 10
"""The official code's: pictures of a class, least confidence of the detector, and how often a picture is tried."""

Sample = Callable[[str, int], Tensor]
"""``(prompt, seed)`` -> a picture ``[h, w, 3]``, 0..1, by the plain sampler."""


class NoPriors(MudiError):
    """The model's pictures of a class do not show exactly one of it."""


def make_priors(
    subjects: SubjectSet,
    sample: Sample,
    detector: Detector,
    segmenter: Segmenter,
    *,
    count: int = COUNT,
    seed: int = 0,
    threshold: float = THRESHOLD,
    prompt: str = PROMPT,
    on_step: Callable[[int, int], None] | None = None,
) -> SubjectSet:
    """``count`` pictures of each subject's class with their masks, under the subject's own token and class noun.

    A picture is kept only when exactly one member of the class is detected and segmented in it. ``prompt`` has {} where
    the class noun belongs; ``on_step`` hears pictures kept and pictures in all. Raises `NoPriors` when `TRIES` pictures
    one after another are no good.
    """
    made = []
    for place, subject in enumerate(subjects):
        photos: list[Photo] = []
        masks: list[Tensor] = []
        text = prompt.replace("{}", subject.class_noun)
        tries = failed = 0
        while len(photos) < count:
            image = sample(text, random.Random(f"{seed}/{place}/prior/{tries}").getrandbits(63))
            tries += 1
            photo = Photo(f"{subject.token}_prior_{len(photos)}.png", image)
            try:
                found = find_boxes(photo, subject.class_noun, detector, threshold)
                masks.append(segment_boxes(photo, found.xyxy, segmenter)[0])
            except (NotFound, SeveralFound, CoversAll) as error:
                failed += 1
                if failed == TRIES:
                    raise NoPriors(
                        f"{TRIES} pictures of '{subject.class_noun}' in a row do not show exactly one that can be cut "
                        f"out. The last: {error} Or choose another class noun."
                    ) from error
                continue
            failed = 0
            photos.append(photo)
            if on_step is not None:
                on_step(place * count + len(photos), count * len(subjects))
        made.append(Subject(subject.token, subject.class_noun, tuple(photos), tuple(masks)))
    return SubjectSet(tuple(made))
