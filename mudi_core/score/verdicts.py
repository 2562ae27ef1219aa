"""What a picture shows of each subject, in words: found, unlike its photos, mixed with another, twice or missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..types import SubjectSet, Verdict, VerdictLimits, listed

if TYPE_CHECKING:
    from torch import Tensor

    from ..eyes import Embedder


LAX = VerdictLimits()
"""For an embedder that names none of its own: nobody has validated it with real models."""


STRANGER = 0.5
"""A mixed box is nobody's when it is less than this share as similar to each subject as that subject's photos are."""


SMALLEST_GAP = 0.02
"""Two subjects cannot be told apart when the similarity of their references differs by less than this."""


def limits_of(embedder: Embedder) -> VerdictLimits:
    """Return an embedder's own limits of verdicts, or `LAX` when it has none."""
    limits: VerdictLimits = getattr(embedder, "verdict_limits", LAX)
    return limits


def judge(
    subjects: SubjectSet, s_gt: Tensor, s_dc: Tensor, queries: Sequence[str] = (), limits: VerdictLimits = LAX
) -> tuple[Verdict, ...]:
    """Return a verdict per subject from the similarities ``s_gt [n, n]`` and ``s_dc [m, n]``, for any number of boxes.

    Every box belongs to its most similar subject. If that subject already has a better box, and this one is mixed with
    a subject that has none, it belongs to the latter. Boxes are named by their rows: "figure 1" is the first.
    ``queries`` is what the detector looked for.
    """
    photos, s_gt = s_gt, reached(s_gt, limits)
    n = len(subjects)
    rivals: dict[
        int, list[tuple[float, int]]
    ] = {}  # box -> (share of its owner, the other subject), closest rival first
    owned: list[list[int]] = [[] for _ in range(n)]
    for box in range(len(s_dc)):
        owner = int(s_dc[box].argmax())
        closest = sorted((_share(s_gt, s_dc[box], owner, other), other) for other in range(n) if other != owner)
        if s_dc[box, owner] >= _needed(s_gt, owner, _own_share(closest), limits):
            rivals[box] = closest
            owned[owner].append(box)
    for mine in owned:
        mine.sort(key=lambda box: _own_share(rivals[box]), reverse=True)

    verdicts: list[Verdict | None] = [None] * n
    for i in (i for i in range(n) if not owned[i]):
        spare = [box for mine in owned for box in mine[1:] if rivals[box][0][1] == i]
        spare = [box for box in spare if rivals[box][0][0] < limits.own]
        if spare:
            box = min(spare, key=lambda box: rivals[box][0][0])
            owner = next(k for k in range(n) if box in owned[k])
            owned[owner].remove(box)
            verdicts[i] = _mixed(subjects, i, owner, box, 1 - rivals[box][0][0], _alike(photos, s_dc, box, i))
        else:
            verdicts[i] = _missing(subjects, i, photos, s_dc, queries, limits)
    for i in (i for i in range(n) if owned[i]):
        best = owned[i][0]
        share = _own_share(rivals[best])
        alike = _alike(photos, s_dc, best, i)
        if len(owned[i]) > 1:
            verdicts[i] = _duplicated(subjects, i, sorted(owned[i]), share, alike)
        elif share < limits.own:
            verdicts[i] = _mixed(subjects, i, rivals[best][0][1], best, share, alike)
        elif s_dc[best, i] < limits.alike * s_gt[i, i]:
            verdicts[i] = _unlike(subjects, i, best, share, alike, limits.alike * float(s_gt[i, i]))
        else:
            rival = subjects.subjects[rivals[best][0][1]].name if rivals[best] else ""
            words = f"figure {best + 1}: {alike}{f'; {share:.0%} its own, {1 - share:.0%} {rival}' if rival else ''}"
            name = subjects.subjects[i].name
            verdicts[i] = Verdict(subjects.tokens[i], "found", share, f"{name}: found ({words}).")
    return tuple(verdict for verdict in verdicts if verdict is not None)


def reached(s_gt: Tensor, limits: VerdictLimits) -> Tensor:
    """Return ``s_gt`` ``[n, n]`` with the likeness on its diagonal of which `limits.alike` is needed.

    It is that of the photos, or what makes `limits.cosine` the needed one: of one photo to itself it is always 1.
    """
    if limits.cosine is None:
        return s_gt
    return s_gt.clone().fill_diagonal_(limits.cosine / limits.alike)


def _needed(s_gt: Tensor, i: int, share: float, limits: VerdictLimits) -> float:
    """Return how similar a box must be to subject i to count as it, when this share of its likeness is its own.

    A mixed box is less similar to both subjects, so less is needed. To be the subject itself it takes `limits.alike`.
    """
    return (min(limits.alike, LAX.alike) if share >= limits.own else STRANGER) * float(s_gt[i, i])


def _alike(photos: Tensor, s_dc: Tensor, box: int, i: int) -> str:
    return f"{s_dc[box, i]:.2f} alike, {s_dc[box, i] / photos[i, i]:.0%} of what its own photos reach"


def _mixed(subjects: SubjectSet, i: int, other: int, box: int, share: float, alike: str) -> Verdict:
    name, rival = subjects.subjects[i].name, subjects.subjects[other].name
    words = f"{name}: mixed with {rival} (figure {box + 1}: {alike}; {share:.0%} its own, {1 - share:.0%} {rival})."
    return Verdict(subjects.tokens[i], "mixed", share, words)


def _unlike(subjects: SubjectSet, i: int, box: int, share: float, alike: str, needed: float) -> Verdict:
    words = (
        f"{subjects.subjects[i].name}: figure {box + 1} is nobody else, but not alike enough ({alike}; "
        f"{needed:.2f} needed)."
    )
    return Verdict(subjects.tokens[i], "unlike", share, words)


def _duplicated(subjects: SubjectSet, i: int, figures: Sequence[int], share: float, alike: str) -> Verdict:
    numbers = ", ".join(str(box + 1) for box in figures)
    words = (
        f"{subjects.subjects[i].name}: duplicated, {len(figures)} figures resemble it ({numbers}; the closest is "
        f"{alike}; {share:.0%} its own)."
    )
    return Verdict(subjects.tokens[i], "duplicated", share, words)


def _missing(
    subjects: SubjectSet, i: int, photos: Tensor, s_dc: Tensor, queries: Sequence[str], limits: VerdictLimits
) -> Verdict:
    """Return the verdict for a subject without a box: what is nearest, and whether it is somebody else."""
    name = subjects.subjects[i].name
    if not len(s_dc):
        asked = " or ".join(f"'{query}'" for query in queries)
        words = f"{name}: missing, nothing was found{f' for {asked}' if asked else ''}."
        return Verdict(subjects.tokens[i], "missing", 0.0, words)
    words = f"{name}: missing."
    shown = [box for box in range(len(s_dc)) if s_dc[box].any()]
    if hidden := [f"figure {box + 1}" for box in range(len(s_dc)) if box not in shown]:
        words += f" No face was found in {listed(hidden)}."
    if not shown:
        return Verdict(subjects.tokens[i], "missing", 0.0, words)
    nearest = max(shown, key=lambda box: float(s_dc[box, i]))
    owner = int(s_dc[nearest].argmax())
    s_gt = reached(photos, limits)
    rest = [_share(s_gt, s_dc[nearest], i, other) for other in range(len(subjects)) if other != i]
    needed = f"; {_needed(s_gt, i, min(rest, default=1.0), limits):.2f} needed" if owner == i else ""
    words += f" Figure {nearest + 1} is nearest ({_alike(photos, s_dc, nearest, i)}{needed})"
    words += "." if owner == i else f", but more like {subjects.subjects[owner].name} ({s_dc[nearest, owner]:.2f})."
    return Verdict(subjects.tokens[i], "missing", 0.0, words)


def _own_share(rivals: list[tuple[float, int]]) -> float:
    """Return the share of a box against its closest rival; all of it when there is none."""
    return rivals[0][0] if rivals else 1.0


def _share(s_gt: Tensor, row: Tensor, i: int, j: int) -> float:
    """Return how much of the likeness of a box belongs to subject i rather than j, 0..1.

    Half when both are equally similar; all when it prefers i as clearly as the photos of i do.
    """
    lead = float(row[i] - row[j])
    apart = gap(s_gt, i, j) if lead > 0 else gap(s_gt, j, i)
    return min(max(0.5 + 0.5 * lead / max(apart, SMALLEST_GAP), 0.0), 1.0)


def gap(s_gt: Tensor, i: int, j: int) -> float:
    """Return how much more similar the references of i are to each other than to those of j."""
    return float(s_gt[i, i] - s_gt[i, j])
