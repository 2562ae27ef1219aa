"""Detect-and-Compare: how well a picture keeps several subjects apart (paper section 5, algorithm 3).

Every detected box is compared with the references of every subject. ``S_GT`` holds the similarities between the
references of the subjects, ``S_DC`` those of the boxes to the references; a faithful picture has ``S_DC = S_GT``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from .. import boxes
from ..types import Comparison, Detections, SubjectSet, VerdictLimits
from .matching import Matching, matched
from .vectors import on_square, photo_vectors, unit
from .verdicts import LAX, SMALLEST_GAP, gap, judge, limits_of, reached

if TYPE_CHECKING:
    from torch import Tensor

    from ..eyes import Detector, Embedder

_log = logging.getLogger(__name__)


class References:
    """The photos of the subjects, embedded once, to compare many pictures with."""

    def __init__(
        self, subjects: SubjectSet, embedder: Embedder, cut_out: bool = False, limits: VerdictLimits | None = None
    ) -> None:
        """Embed the photos of the subjects.

        ``cut_out``: show the embedder each subject on white, without its surroundings (the official code shows whole
        photos). ``limits``: when a figure is a subject itself; None: the embedder's, or lax ones. Raise `NoNumbers` or
        `NoFace`.
        """
        self.subjects = subjects
        seen = [photo_vectors(subject, embedder, cut_out) for subject in subjects]
        self.means = torch.stack([vectors.mean(0) for vectors, _ in seen])
        """Float ``[n, d]``: see `vectors.photo_means`; products of them are means of pairwise similarities."""
        self.s_gt = self.means @ self.means.T
        """Float ``[n, n]``: mean similarity of the references of i to those of j, including a photo to itself."""
        self.limits = limits or limits_of(embedder)
        """When a figure is a subject itself."""
        self.remarks = look_alike([subject.name for subject in subjects], self.s_gt, self.limits)
        self.remarks += [remark for _, remark in seen if remark]
        """Sentences for the user about these references."""
        for remark in self.remarks:
            _log.warning(remark)


def look_alike(names: Sequence[str], s_gt: Tensor, limits: VerdictLimits = LAX) -> list[str]:
    """Return a sentence for every two subjects that ``s_gt`` ``[n, n]`` cannot tell apart."""
    s_gt = reached(s_gt, limits)
    return [
        f"The photos of '{names[i]}' and '{names[j]}' look alike to this embedder, so verdicts on them mean little."
        for i, j in torch.combinations(torch.arange(len(names))).tolist()
        if min(gap(s_gt, i, j), gap(s_gt, j, i)) <= SMALLEST_GAP
    ]


def best_first(results: Sequence[Comparison]) -> list[int]:
    """Return the indices of the pictures, best first: by how many subjects are themselves, then by score.

    A wrong number of figures scores 0, a right one may score less; of as many themselves the right number is better.
    """

    def rank(i: int) -> tuple[int, bool, float]:
        return results[i].themselves, results[i].count_is_right, results[i].score

    return sorted(range(len(results)), key=rank, reverse=True)


ANCHORS = (
    "The score is 1 when every figure is as alike as its own photos are, 0 when the number of figures is wrong; below "
    "0 the figures resemble the wrong subjects or none."
)
"""What the score means (paper, section 5 and algorithm 3)."""


@dataclass(frozen=True)
class Scores:
    """The scores of a picture from its similarity matrices."""

    score: float
    """1 - ||S_GT - S_DC||_F^2 (paper); 0 when the count differs."""
    score_spectral: float
    """1 - ||S_GT - S_DC||_2 (official code); 0 when the count differs."""
    order: tuple[int, ...]
    """The rows of S_DC in matched order: row k belongs to subject k when the count is right."""


def compare(
    image: Tensor,
    references: References,
    detector: Detector,
    embedder: Embedder,
    queries: Sequence[str] | None = None,
    threshold: float = 0.25,
    matching: Matching = "in order",
) -> Comparison:
    """Run Detect-and-Compare on a float image ``[h, w, 3]``, 0..1 (paper section 5, algorithm 3).

    ``queries``: the words to detect (default: the subjects' class nouns). ``threshold``: least confidence of the
    detector, 0..1. ``matching``: how figures are given to subjects (`score.matching`). The detections of the result
    are in the order of the rows of ``s_dc``. Raise `NoNumbers`.
    """
    return next(compare_all([image], references, detector, embedder, queries, threshold, matching=matching))


def compare_all(
    images: Iterable[Tensor],
    references: References,
    detector: Detector,
    embedder: Embedder,
    queries: Sequence[str] | None = None,
    threshold: float = 0.25,
    batch: int = 8,
    matching: Matching = "in order",
) -> Iterator[Comparison]:
    """Run `compare` on any number of pictures of any sizes, in their order.

    ``batch`` pictures are in memory at a time, and the figures in them are embedded together.
    """
    nouns = (subject.class_noun for subject in references.subjects)
    words = list(dict.fromkeys(nouns if queries is None else queries))
    waiting = iter(images)
    while held := list(islice(waiting, batch)):
        found = [detector(image, words, threshold) for image in held]
        yield from compare_boxes(held, found, references, embedder, words, matching)


def compare_boxes(
    images: Sequence[Tensor],
    found: Sequence[Detections],
    references: References,
    embedder: Embedder,
    queries: Sequence[str] = (),
    matching: Matching = "in order",
) -> list[Comparison]:
    """Run Detect-and-Compare on pictures ``[h, w, 3]``, 0..1, with the boxes that any detector found in each.

    ``queries``: what the detector looked for, shown when nothing was found. Raise `NoNumbers`.
    """
    subjects, s_gt = references.subjects, references.s_gt
    inside = [_inside(detections, image) for image, detections in zip(images, found, strict=True)]
    crops = [
        on_square(image[y0:y1, x0:x1])
        for image, detections in zip(images, inside, strict=True)
        for x0, y0, x1, y1 in _whole(detections)
    ]
    rows = unit(embedder(crops)) @ references.means.T if crops else torch.zeros(0, len(subjects))
    results = []
    for detections, s_dc in zip(inside, torch.split(rows, [len(detections) for detections in inside]), strict=True):
        scores = score_matrices(s_gt, s_dc, matching)
        order = list(scores.order)
        results.append(
            Comparison(
                tokens=subjects.tokens,
                score=scores.score,
                score_spectral=scores.score_spectral,
                s_gt=s_gt,
                s_dc=s_dc[order],
                detections=_picked(detections, order),
                verdicts=judge(subjects, s_gt, s_dc[order], queries, references.limits),
                queries=tuple(queries),
                remarks=tuple(references.remarks),
            )
        )
    return results


def score_matrices(s_gt: Tensor, s_dc: Tensor, matching: Matching = "in order") -> Scores:
    """Match the rows of ``s_dc`` ``[m, n]`` to the subjects of ``s_gt`` ``[n, n]`` and score them (algorithm 3).

    When m is not n, both scores are 0 and the rows are ordered by their most similar subject.
    """
    m, n = s_dc.shape
    if m != n:
        nearest = s_dc.argmax(dim=1).tolist()
        return Scores(0.0, 0.0, tuple(sorted(range(m), key=lambda row: nearest[row])))
    order = matched(s_gt, s_dc, matching)
    difference = (s_gt - s_dc[order]).double()
    frobenius = float(torch.linalg.matrix_norm(difference, "fro"))
    return Scores(1 - frobenius**2, 1 - float(torch.linalg.matrix_norm(difference, 2)), tuple(order))


def _whole(detections: Detections) -> list[tuple[int, int, int, int]]:
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in detections.xyxy.round().int().tolist()]


def _inside(detections: Detections, image: Tensor) -> Detections:
    """Cut each box at the picture's borders; drop boxes without a pixel inside."""
    clipped = boxes.clip(detections.xyxy.detach().float().cpu(), (image.shape[1], image.shape[0]))
    detections = replace(detections, xyxy=clipped, confidence=detections.confidence.detach().cpu())
    rows = [i for i, (x0, y0, x1, y1) in enumerate(_whole(detections)) if x0 < x1 and y0 < y1]
    return _picked(detections, rows)


def _picked(detections: Detections, rows: list[int]) -> Detections:
    return Detections(
        detections.xyxy[rows],
        detections.confidence[rows],
        tuple(detections.labels[i] for i in rows),
        detections.best_confidence,
    )
