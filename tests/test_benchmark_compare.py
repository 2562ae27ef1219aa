"""`benchmarks/compare.py`: both ways give the same scores, and ours is the faster."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from benchmarks.compare import drawn_pictures, drawn_subjects, measure, ours
from mudi_core.eyes import embedded as eyes


def test_references_are_embedded_once_and_scores_stay_the_same(mini_weights: None) -> None:
    subjects, pictures = drawn_subjects(3, 64), list(islice(drawn_pictures(96), 6))
    embedder, seen = eyes.load_embedder(), 0

    def counting(images: Sequence[Tensor]) -> Tensor:
        nonlocal seen
        seen += len(images)
        return embedder(images)

    found = eyes.load_detector()
    ours(pictures, subjects, (found, counting))
    assert 2 * 3 <= seen <= 2 * 3 + 3 * len(pictures)  # six photos once, and at most three figures a picture
    measured = measure(pictures, subjects, (found, embedder), rounds=1)
    assert measured["largest difference"] < 1e-4
    assert measured["ratio"] > 1.5


def test_pictures_are_the_same_in_every_run() -> None:
    first, second = (next(drawn_pictures(64)) for _ in range(2))
    assert torch.equal(first, second)
