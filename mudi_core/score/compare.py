"""Detect-and-Compare: how well a picture keeps several subjects apart (paper section 5, algorithm 3).

Every detected box is compared with the references of every subject. With ``S_GT`` the similarities between the
subjects' own references and ``S_DC`` those of the boxes to the references, a faithful picture has ``S_DC = S_GT``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from .. import boxes
from ..masks import mask_box
from ..types import Comparison, Detections, MudiError, SubjectSet
from .verdicts import SMALLEST_GAP, gap, judge

if TYPE_CHECKING:
    from torch import Tensor

    from ..eyes import Detector, Embedder

_log = logging.getLogger(__name__)


class NoNumbers(MudiError):
    """An embedder that gave NaN or infinity for a picture or photo."""


class References:
    """The subjects' photos, embedded once, to compare any number of pictures with."""

    def __init__(self, subjects: SubjectSet, embedder: Embedder, cut_out: bool = False) -> None:
        """``cut_out`` shows the embedder each subject on white, without its surroundings (the official code: whole)."""
        self.subjects = subjects
        self.means = torch.stack(
            [_unit(embedder(_reference_images(subjects, token, cut_out))).mean(0) for token in subjects.tokens]
        )
        """Float ``[n, d]``: mean of the unit embeddings; its products are means of pairwise similarities."""
        self.s_gt = self.means @ self.means.T
        """Float ``[n, n]``: mean similarity of the references of i to those of j, a photo's to itself included."""
        self.remarks = look_alike([subject.name for subject in subjects], self.s_gt)
        """What a user should know of these references, in sentences."""
        for remark in self.remarks:
            _log.warning(remark)


def look_alike(names: Sequence[str], s_gt: Tensor) -> list[str]:
    """A sentence for each two subjects that ``s_gt`` ``[n, n]`` cannot tell apart."""
    return [
        f"The photos of '{names[i]}' and '{names[j]}' look alike to this embedder; verdicts on them mean little."
        for i, j in torch.combinations(torch.arange(len(names))).tolist()
        if min(gap(s_gt, i, j), gap(s_gt, j, i)) <= SMALLEST_GAP
    ]


def best_first(results: Sequence[Comparison]) -> list[int]:
    """The pictures' numbers, from 0: those with as many figures as subjects first, in each group by their scores.

    A wrong count scores 0, a right one may score less; still it is the better picture.
    """
    return sorted(range(len(results)), key=lambda i: (results[i].count_is_right, results[i].score), reverse=True)


@dataclass(frozen=True)
class Scores:
    """What the similarity matrices say of a picture."""

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
) -> Comparison:
    """Detect-and-Compare of a float image ``[h, w, 3]``, 0..1.

    ``queries`` are the words to detect (default: the subjects' class nouns), ``threshold`` the detector's, 0..1. The
    detections of the result stand in the order of the rows of ``s_dc``.
    """
    return next(compare_all([image], references, detector, embedder, queries, threshold))


def compare_all(
    images: Iterable[Tensor],
    references: References,
    detector: Detector,
    embedder: Embedder,
    queries: Sequence[str] | None = None,
    threshold: float = 0.25,
    batch: int = 8,
) -> Iterator[Comparison]:
    """`compare` of any number of pictures of any sizes, in their order.

    ``batch`` of them are held at a time, and what is found in these is embedded together.
    """
    nouns = (subject.class_noun for subject in references.subjects)
    words = list(dict.fromkeys(nouns if queries is None else queries))
    waiting = iter(images)
    while held := list(islice(waiting, batch)):
        found = [detector(image, words, threshold) for image in held]
        yield from compare_boxes(held, found, references, embedder, words)


def compare_boxes(
    images: Sequence[Tensor],
    found: Sequence[Detections],
    references: References,
    embedder: Embedder,
    queries: Sequence[str] = (),
) -> list[Comparison]:
    """Detect-and-Compare of pictures ``[h, w, 3]``, 0..1, with what was found in each, by whatever detector.

    ``queries``: what it looked for, so that this can be said where nothing was found.
    """
    subjects, s_gt = references.subjects, references.s_gt
    seen = [_inside(detections, image) for image, detections in zip(images, found, strict=True)]
    crops = [
        _square(image[y0:y1, x0:x1])
        for image, detections in zip(images, seen, strict=True)
        for x0, y0, x1, y1 in _whole(detections)
    ]
    rows = _unit(embedder(crops)) @ references.means.T if crops else torch.zeros(0, len(subjects))
    results = []
    for detections, s_dc in zip(seen, torch.split(rows, [len(detections) for detections in seen]), strict=True):
        scores = score_matrices(s_gt, s_dc)
        order = list(scores.order)
        results.append(
            Comparison(
                tokens=subjects.tokens,
                score=scores.score,
                score_spectral=scores.score_spectral,
                s_gt=s_gt,
                s_dc=s_dc[order],
                detections=_picked(detections, order),
                verdicts=judge(subjects, s_gt, s_dc[order], queries),
                queries=tuple(queries),
            )
        )
    return results


def score_matrices(s_gt: Tensor, s_dc: Tensor) -> Scores:
    """Match the rows of ``s_dc`` ``[m, n]`` to the subjects of ``s_gt`` ``[n, n]`` and score them.

    Each subject in turn takes the unused row that is most like it, as the official code does. When m is not n, both
    scores are 0 and the rows are ordered by the subject they are most like.
    """
    m, n = s_dc.shape
    if m != n:
        nearest = s_dc.argmax(dim=1).tolist()
        return Scores(0.0, 0.0, tuple(sorted(range(m), key=lambda row: nearest[row])))
    free = list(range(m))
    order = []
    for column in range(n):
        best = max(free, key=lambda row: float(s_dc[row, column]))
        free.remove(best)
        order.append(best)
    difference = (s_gt - s_dc[order]).double()
    frobenius = float(torch.linalg.matrix_norm(difference, "fro"))
    return Scores(1 - frobenius**2, 1 - float(torch.linalg.matrix_norm(difference, 2)), tuple(order))


def _reference_images(subjects: SubjectSet, token: str, cut_out: bool) -> list[Tensor]:
    subject = subjects[token]
    if not cut_out:
        return [photo.image for photo in subject.photos]
    images = []
    for photo, mask in zip(subject.photos, subject.masks, strict=True):
        x0, y0, x1, y1 = mask_box(mask) or (0, 0, *photo.size)
        shown = mask[y0:y1, x0:x1, None].to(photo.image)
        images.append(_square(photo.image[y0:y1, x0:x1] * shown + (1 - shown)))
    return images


def _square(crop: Tensor) -> Tensor:
    """A crop ``[h, w, 3]`` in the middle of a white square, so that no embedder stretches it."""
    height, width = crop.shape[:2]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return functional.pad(crop, (0, 0, left, side - width - left, top, side - height - top), value=1.0)


def _unit(embeddings: Tensor) -> Tensor:
    vectors = embeddings.detach().float().cpu()
    if not vectors.isfinite().all():
        raise NoNumbers(
            "The embedder gave values that are no numbers (NaN) for a picture or a subject's photo, so nothing can be "
            "compared. Look for a damaged photo, or choose another embedder."
        )
    return functional.normalize(vectors, dim=-1)


def _whole(detections: Detections) -> list[tuple[int, int, int, int]]:
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in detections.xyxy.round().int().tolist()]


def _inside(detections: Detections, image: Tensor) -> Detections:
    """The part of each box inside the picture; boxes of which not a pixel is inside are left out."""
    clipped = boxes.clip(detections.xyxy.detach().float().cpu(), (image.shape[1], image.shape[0]))
    detections = replace(detections, xyxy=clipped, confidence=detections.confidence.detach().cpu())
    seen = [i for i, (x0, y0, x1, y1) in enumerate(_whole(detections)) if x0 < x1 and y0 < y1]
    return _picked(detections, seen)


def _picked(detections: Detections, rows: list[int]) -> Detections:
    return Detections(
        detections.xyxy[rows],
        detections.confidence[rows],
        tuple(detections.labels[i] for i in rows),
        detections.best_confidence,
    )
