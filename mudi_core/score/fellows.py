"""Which pictures of one subject are like the others: those in which something else was drawn or found are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .vectors import reference_images, unit

if TYPE_CHECKING:
    from ..eyes import Embedder
    from ..types import Subject


def most_alike(subject: Subject, embedder: Embedder, count: int) -> tuple[list[int], list[float]]:
    """Return the indices of the ``count`` photos that are most alike, in their order, and the likeness of every photo.

    The photo that is least like the mean of those left is left out, one by one. A likeness, -1..1, is the mean
    similarity of the cut-out on white to the cut-outs of the others that are kept. Raise `vectors.NoNumbers`.
    """
    vectors = unit(embedder(reference_images(subject, True)))
    similar = (vectors @ vectors.T).fill_diagonal_(0)
    kept = list(range(len(subject.photos)))
    while len(kept) > max(1, count):
        sums = similar[kept][:, kept].sum(1)
        kept.pop(int(sums.argmin()))
    likeness = [
        float(similar[i, [j for j in kept if j != i]].mean()) if kept != [i] else 1.0 for i in range(len(similar))
    ]
    return kept, likeness
