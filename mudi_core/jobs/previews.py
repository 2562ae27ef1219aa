"""How a LoRA looks during its training: the same few seeds every time, from both starts, each picture scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bases.checkpoint import Checkpoint
from ..eyes import Detector, Embedder
from ..lora.adapter import apply_lora
from ..score.compare import References, compare_all
from ..stage.cutouts import cut_outs
from ..types import SubjectSet
from .generate import GenerateConfig, generate

PLAIN, MUDI = "plain", "mudi"
STARTS = {PLAIN: "plain start", MUDI: "MuDI's start"}
"""The possible starts of a picture, in words."""

Score = Callable[[Iterable[Tensor]], list[float]]
"""Detect-and-Compare of each picture ``[h, w, 3]``."""


@dataclass(frozen=True, eq=False)
class Preview:
    """The pictures of one moment of a training."""

    pictures: dict[str, tuple[Tensor, ...]]
    """Float ``[h, w, 3]``, 0..1, by their start (`PLAIN`, `MUDI`), in the order of the seeds."""
    scores: dict[str, tuple[float, ...]]
    """The scores of the same pictures."""

    @property
    def score(self) -> float:
        """The mean score of all pictures."""
        every = [score for scores in self.scores.values() for score in scores]
        return sum(every) / len(every)

    @property
    def words(self) -> str:
        """The mean score of each start, in words."""
        return ", ".join(f"{STARTS[start]} {sum(each) / len(each):.2f}" for start, each in self.scores.items())


Paint = Callable[[float], Sequence[Tensor]]
"""The strength of a start (0 is the plain sampler) -> a picture ``[h, w, 3]`` of each seed."""


def look(paint: Paint, gamma: float, score: Score) -> Preview:
    """Paint pictures of the same seeds from the plain start and from MuDI's; return them with their scores."""
    pictures = {PLAIN: tuple(paint(0.0)), MUDI: tuple(paint(gamma))}
    scores = score([picture for group in pictures.values() for picture in group])
    half = len(pictures[PLAIN])
    return Preview(pictures, {PLAIN: tuple(scores[:half]), MUDI: tuple(scores[half:])})


class Previews:
    """Paints previews with a checkpoint and a LoRA, by diffusers' sampler."""

    def __init__(self, checkpoint: Checkpoint, subjects: SubjectSet, config: GenerateConfig, score: Score) -> None:
        """Prepare previews. ``config``: ``count`` pictures are made from each start. Raise `checkpoint.NoPictures`."""
        if checkpoint.is_flow:
            checkpoint.flux_pipeline()
        self.checkpoint, self.config, self.score = checkpoint, config, score
        self.cutouts = cut_outs(subjects, max_side=max(config.size or (checkpoint.side, checkpoint.side)))

    def draw(self, lora: Mapping[str, Tensor]) -> Preview:
        """Paint pictures with the state of a LoRA.

        The VAE moves to the U-Net's device for this and back to the CPU after.

        The text encoders read where they are: off a card that has no room for them beside a training.
        """
        self.checkpoint.move_vae(self.checkpoint.device)
        try:
            with apply_lora(self.checkpoint.unet, lora):
                return look(self._paint, self.config.gamma, self.score)
        finally:
            self.checkpoint.move_vae(torch.device("cpu"))

    def _paint(self, gamma: float) -> list[Tensor]:
        config = replace(self.config, gamma=gamma)
        return [picture.image for picture in generate(self.checkpoint, self.cutouts, config)]


def scorer(
    subjects: SubjectSet, detector: Detector, embedder: Embedder, threshold: float, cut_out: bool = False
) -> Score:
    """Return a function that scores pictures by Detect-and-Compare; the photos are embedded once."""
    references = References(subjects, embedder, cut_out)

    def score(pictures: Iterable[Tensor]) -> list[float]:
        found = compare_all(pictures, references, detector, embedder, threshold=threshold)
        return [comparison.score for comparison in found]

    return score
