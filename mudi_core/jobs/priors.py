"""Pictures of other members of each class, made by the user's own model, for prior preservation (paper, appendix B)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from ..bases.checkpoint import Checkpoint
from ..eyes import Detector, Segmenter
from ..types import MudiError, Photo, Subject, SubjectSet
from .generate import GenerateConfig, generate_plain
from .one_figure import NoneUsable, Sample, with_one_figure

PROMPT = "a photo of a {}, simple background, full body view, award winning photography, highly detailed"
NEGATIVE_PROMPT = "anime, cartoon, graphic, text, painting, crayon, graphite, abstract glitch, blurry"
"""Both prompts are those of the official code."""
COUNT, THRESHOLD = 50, 0.4
"""The official code's pictures per class and least confidence of the detector."""


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
    also: tuple[str, ...] = ()
    """Class nouns of others than the subjects, for `stage.strangers`."""


def make_priors(
    subjects: SubjectSet,
    sample: Sample,
    detector: Detector,
    segmenter: Segmenter,
    config: PriorsConfig = PriorsConfig(),
    on_step: Callable[[int, int], None] | None = None,
) -> SubjectSet:
    """Return pictures of each subject's class with masks, under the subject's own token and class noun (appendix B).

    Further classes get tokens of their own, which mean nothing.
    A picture is kept only when exactly one member of the class is detected and segmented in it. ``on_step`` is called
    with the pictures kept and the pictures in all. Raise `NoPriors` when `one_figure.TRIES` in a row cannot be used.
    """
    made: list[Subject] = []
    names = [(subject.token, subject.class_noun) for subject in subjects]
    names += [(f"other{number}", noun) for number, noun in enumerate(config.also, start=1)]
    for place, (token, noun) in enumerate(names):

        def pictures(noun: str = noun, place: int = place) -> Iterator[Photo]:
            text = config.prompt.replace("{}", noun)
            for tried in itertools.count():
                seed = random.Random(f"{config.seed}/{place}/prior/{tried}").getrandbits(63)
                yield Photo("prior", sample(text, seed))

        photos: list[Photo] = []
        masks: list[Tensor] = []
        try:
            for photo, mask in with_one_figure(
                pictures(), f"{token}_prior", noun, detector, segmenter, config.threshold
            ):
                photos.append(photo)
                masks.append(mask)
                if on_step is not None:
                    on_step(place * config.count + len(photos), config.count * len(names))
                if len(photos) == config.count:
                    break
        except NoneUsable as error:
            raise NoPriors(f"{error} Or choose another class noun.") from error
        made.append(Subject(token, noun, tuple(photos), tuple(masks)))
    return SubjectSet(tuple(made))


def sampler(base: Checkpoint, steps: int | None = None) -> Sample:
    """Return what makes the picture of a text and a seed with the base model, by its usual settings and no start."""
    config = replace(GenerateConfig.usual(base.usual, "", 1), gamma=0.0, count=1)
    if base.usual.prior_prompt is None:
        config = replace(config, negative_prompt=NEGATIVE_PROMPT)
    if steps is not None:
        config = replace(config, steps=steps)

    def sample(text: str, seed: int) -> Tensor:
        return generate_plain(base, replace(config, prompt=text, seed=seed))

    return sample
