"""A detail pass: each figure of a finished picture is drawn again, larger and alone, and put back where it stood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..eyes import Embedder, Segmenter
from ..score.compare import References, compare_boxes
from ..score.verdicts import LAX, STRANGER, reached
from ..types import Comparison, Detections, MudiError, VerdictLimits

if TYPE_CHECKING:
    import numpy as np

MULTIPLE = 16
"""Sides of what is drawn again are multiples of this, in pixels: every VAE keeps them."""


class BadDetail(MudiError):
    """Settings of a detail pass that cannot be used."""


@dataclass(frozen=True)
class DetailConfig:
    """How figures are drawn again."""

    side: int = 1024
    """Longer side in pixels at which a figure is drawn: the base model's own size. A larger figure keeps its size."""
    margin: float = 0.25
    """How much of the picture is seen around a figure, as a share of its box's longer side."""
    feather: float = 0.04
    """How wide the border of a figure blends into the picture, as a share of its box's longer side. The margin is at
    least twice that, so that it ends in sight."""
    only_better: bool = True
    """Keep a new figure only where it is more like its own subject, among all subjects, than the old one, and where
    the whole picture, looked at again, is no worse."""

    def __post_init__(self) -> None:
        if self.side < 64 or self.side > 4096:
            raise BadDetail(f"side is {self.side}; it must be 64 to 4096 px, as large as the model's own pictures.")
        if not 0 <= self.margin <= 2 or not 0 <= self.feather <= 0.5:
            raise BadDetail(f"margin {self.margin} must lie in 0..2, and feather {self.feather} in 0..0.5.")


@dataclass(frozen=True, eq=False)
class Region:
    """A figure of a picture: whose it is and where it stands."""

    subject: int
    """Its number in the set."""
    row: int
    """Its row in ``Comparison.detections``."""
    window: tuple[int, int, int, int]
    """The part of the picture that is drawn again: left, top, right, bottom in pixels."""
    mask: Tensor
    """Float ``[h, w]`` of the picture, 0..1: how much of a pixel becomes new. 0 outside the window."""


Redraw = Callable[[Region, Tensor, Tensor], Tensor]
"""A region, its enlarged part of the picture ``[h, w, 3]`` and its mask ``[h, w]`` -> the part drawn again."""
Look = Callable[[Tensor], Comparison]
"""A picture ``[h, w, 3]`` -> its Detect-and-Compare, with the references, the detector and the embedder of the pass."""


@dataclass(frozen=True, eq=False)
class Detailed:
    """A picture after the pass."""

    image: Tensor
    """Float ``[h, w, 3]``, 0..1; equal to the bit to the picture outside the masks."""
    regions: tuple[Region, ...]
    kept: tuple[bool, ...]
    """Whether each region is new in the image."""
    comparison: Comparison
    """Detect-and-Compare of the image, whose figures were looked for again."""


def figures_of(comparison: Comparison, limits: VerdictLimits = LAX) -> list[tuple[int, int]]:
    """Return (subject, row of the box) for every subject that a picture shows, from the largest likeness down.

    Each figure belongs to one subject; one that is less than half as alike as the subject's own photos is nobody's.
    """
    s_gt, s_dc = reached(comparison.s_gt, limits), comparison.s_dc
    pairs = [(float(s_dc[row, i] / s_gt[i, i]), i, row) for row in range(len(s_dc)) for i in range(len(s_gt))]
    found: list[tuple[int, int]] = []
    if comparison.count_is_right:  # its rows are matched already
        pairs = [(alike, i, row) for alike, i, row in pairs if i == row]
    for alike, i, row in sorted(pairs, reverse=True):
        if alike >= STRANGER and all(i != one and row != other for one, other in found):
            found.append((i, row))
    return found


def regions_of(
    picture: Tensor, comparison: Comparison, segmenter: Segmenter, config: DetailConfig, limits: VerdictLimits = LAX
) -> list[Region]:
    """Return where the subjects' figures stand in a picture ``[h, w, 3]``; no pixel belongs to two of them."""
    found = figures_of(comparison, limits)
    if not found:
        return []
    boxes = comparison.detections.xyxy[[row for _, row in found]]
    outlines = [mask > 0.5 for mask in segmenter(picture, boxes)]
    taken = torch.zeros(picture.shape[:2], dtype=torch.bool)
    regions = []
    for number, ((subject, row), box) in enumerate(zip(found, boxes, strict=True)):
        own = outlines[number] & ~taken
        taken |= own
        # The border of a figure must not reach into another figure.
        others = torch.stack([*outlines[:number], *outlines[number + 1 :], torch.zeros_like(own)]).any(0) & ~own
        mask = torch.where(others, 0.0, _softened(own, float((box[2:] - box[:2]).max()) * config.feather))
        x0, y0, x1, y1 = window = _window(
            box, max(config.margin, 2 * config.feather), (picture.shape[1], picture.shape[0])
        )
        inside = torch.zeros_like(mask)
        inside[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
        if inside.amax() > 0:
            regions.append(Region(subject, row, window, inside))
    return regions


def detail(
    picture: Tensor,
    comparison: Comparison,
    references: References,
    segmenter: Segmenter,
    embedder: Embedder,
    redraw: Redraw,
    look: Look,
    config: DetailConfig | None = None,
) -> Detailed:
    """Draw every subject's figure of a picture ``[h, w, 3]``, 0..1, again and put it back.

    ``comparison``: what ``look`` says of the picture. A picture without figures comes back as it is.
    """
    config = config or DetailConfig()
    regions = regions_of(picture, comparison, segmenter, config, references.limits)
    boxes = comparison.detections
    image, last, kept = picture.clone(), comparison, []
    for region in regions:
        new = _pasted(image, region, redraw, config.side)
        before, after = (_miss(one, region, boxes, references, embedder) for one in (image, new))
        found = last if config.only_better and after >= before else look(new)
        kept.append(found is not last and (not config.only_better or _holds(last, found)))
        if kept[-1]:
            image, last = new, found
    return Detailed(image, tuple(regions), tuple(kept), last)


def _holds(before: Comparison, after: Comparison) -> bool:
    """Whether a picture has lost nothing: a detector may overlook a figure that was drawn again, or find one more."""
    return after.score >= before.score and after.count_is_right >= before.count_is_right


def _miss(image: Tensor, region: Region, boxes: Detections, references: References, embedder: Embedder) -> float:
    """Return what a figure adds to the squared norm of Detect-and-Compare (algorithm 3): 0 is its subject itself."""
    row = slice(region.row, region.row + 1)
    alone = Detections(boxes.xyxy[row], boxes.confidence[row], boxes.labels[row])
    (compared,) = compare_boxes([image], [alone], references, embedder)
    return float((references.s_gt[region.subject] - compared.s_dc[0]).square().sum())


def _softened(outline: Tensor, width: float) -> Tensor:
    """Return an outline ``[h, w]`` grown by ``width`` pixels and blurred there, float, 0..1."""
    import cv2

    mask: np.ndarray = outline.float().numpy()
    reach = max(1, round(width))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    grown = cv2.dilate(mask, disc)
    return torch.from_numpy(cv2.blur(grown, (2 * reach + 1, 2 * reach + 1))).clamp(0, 1)


def _window(box: Tensor, margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a box with some of the picture around it, as far as the picture goes."""
    x0, y0, x1, y1 = box.tolist()
    around = margin * max(x1 - x0, y1 - y0)
    return (
        max(0, int(x0 - around)), max(0, int(y0 - around)),
        min(size[0], int(x1 + around) + 1), min(size[1], int(y1 + around) + 1),
    )  # fmt: skip


def _pasted(image: Tensor, region: Region, redraw: Redraw, side: int) -> Tensor:
    """Return a picture with one region drawn again."""
    x0, y0, x1, y1 = region.window
    part, mask = image[y0:y1, x0:x1], region.mask[y0:y1, x0:x1]
    scale = max(1.0, side / max(part.shape[:2]))
    size = tuple(max(MULTIPLE, round(scale * length / MULTIPLE) * MULTIPLE) for length in (x1 - x0, y1 - y0))
    drawn = redraw(region, _resized(part, size), _resized(mask, size))
    new, weight = image.clone(), mask[..., None]
    blended = part * (1 - weight) + _resized(drawn, (x1 - x0, y1 - y0)) * weight
    new[y0:y1, x0:x1] = torch.where(weight > 0, blended, part)
    return new


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``[h, w]`` or ``[h, w, 3]`` to (width, height), values kept in 0..1."""
    import cv2

    pixels = image.float().cpu().contiguous().numpy()
    smaller = size[0] < pixels.shape[1]
    resized = cv2.resize(pixels, (size[0], size[1]), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4)
    return torch.from_numpy(resized).clamp(0, 1)
