"""Seg-Mix: cut-out subjects, composed side by side on a plain canvas (paper section 4.1); and the baseline Cut-Mix.

Each subject is cut out once (`cut_outs`). Every composition is then made from the small cut-outs in 8-bit arithmetic,
only inside the boxes where something stands, with one conversion to floats at the end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..boxes import to_pixels
from ..levels import to_bytes
from ..masks import mask_box
from ..types import BadLayout, Layout, Mix, MudiError, Placement, Subject, SubjectSet
from .captions import SENTENCE, STYLES, BadTemplate, check_fields, composition
from .cut import SOFT, CutOut, EmptyMask, Pixels, drawn, turned_aspect
from .cutouts import CutOuts, cut_outs
from .layout import Figure, pair_layout
from .layout_config import LayoutConfig

__all__ = ["CutOut", "CutOuts", "EmptyMask", "SegMixConfig", "compose", "cut_outs", "cutmix", "segmix", "standing"]


class TooFewSubjects(MudiError):
    """A composition of two was asked of a set with one subject."""


class BadSegMixConfig(MudiError):
    """A canvas, colour, caption or probability that cannot be used."""


@dataclass(frozen=True)
class SegMixConfig:
    """How training images are composed. The defaults are those of the official code."""

    size: tuple[int, int] = (1024, 1024)
    """Width and height of the canvas in pixels."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Colour of the canvas, RGB, 0..1."""
    captions: str = SENTENCE
    """How captions are written: one of `captions.STYLES`."""
    caption: str = ""
    """The user's own template, with `captions.FIELDS` in braces; empty: that of the style."""
    priors: bool = False
    """The subjects are prior images, whose captions say class nouns alone: the tokens mean nothing."""
    strangers: frozenset[str] = frozenset()
    """Tokens of figures without a name, who stand beside a subject and whose captions say class nouns alone."""
    mirror_prob: float = 0.0
    """Probability that a figure is mirrored. Text and one-sided marks then look wrong."""

    def __post_init__(self) -> None:
        if min(self.size) < 8:
            raise BadSegMixConfig(f"A canvas of {self.size[0]}x{self.size[1]} px is too small.")
        if len(self.background) != 3 or not all(0 <= value <= 1 for value in self.background):
            raise BadSegMixConfig(f"The background must be a colour (r, g, b) in 0..1, got {self.background}.")
        if not 0 <= self.mirror_prob <= 1:
            raise BadSegMixConfig(f"mirror_prob must lie in 0..1, got {self.mirror_prob}.")
        if self.captions not in STYLES:
            raise BadSegMixConfig(f"There is no style of captions {self.captions!r}; there are: {', '.join(STYLES)}.")
        try:
            check_fields(self.caption)
        except BadTemplate as error:
            raise BadSegMixConfig(str(error)) from None


def segmix(
    cutouts: CutOuts, rng: random.Random, config: SegMixConfig | None = None, first: tuple[str, int] | None = None
) -> Mix:
    """Compose a training image of two subjects; the same state of `rng` gives the same image (paper section 4.1).

    The first subject comes from a photo drawn from all, or is the given (token, photo); the second is another subject,
    with a photo of its own. Raise `TooFewSubjects` for a set of one, `BadLayout` when `relative_scale` names an unknown
    token.
    """
    config = config or SegMixConfig()
    cutouts.check(config.layout.relative_scale or {}, "relative_scale")
    pair = [
        cutouts.figure(token, photo, config.mirror_prob > 0 and rng.random() < config.mirror_prob)
        for token, photo in _draw_pair(cutouts.subjects, rng, first, config.strangers)
    ]
    layout = pair_layout(pair[0], pair[1], rng, config.size, config.layout)
    return compose(layout, cutouts, config.background, _caption(cutouts.subjects, pair, config))


def cutmix(
    cutouts: CutOuts, rng: random.Random, config: SegMixConfig | None = None, first: tuple[str, int] | None = None
) -> Mix:
    """Compose the Cut-Mix baseline: photos of two subjects, one in each half, with their surroundings and a hard seam.

    From each photo comes the largest window with the shape of a half, with the subject as near to its middle as
    possible. The masks are the halves. Only size, mirror_prob and the captions of the config matter. Raise
    `TooFewSubjects` for a set of one.
    """
    config = config or SegMixConfig()
    width, height = config.size
    pair = _draw_pair(cutouts.subjects, rng, first, config.strangers)
    sides = pair if rng.random() < 0.5 else pair[::-1]
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    masks = torch.zeros(2, height, width)
    placements = []
    for i, ((token, photo), (x0, x1)) in enumerate(zip(sides, ((0, width // 2), (width // 2, width)), strict=True)):
        mirror = config.mirror_prob > 0 and rng.random() < config.mirror_prob
        canvas[:, x0:x1] = _window(cutouts.subjects[token], photo, (x1 - x0, height), mirror)
        masks[i, :, x0:x1] = 1
        placements.append(Placement(token, (x0 / width, 0.0, x1 / width, 1.0), photo, mirror))
    figures = [Figure(token, 1.0, photo) for token, photo in pair]
    caption = _caption(cutouts.subjects, figures, config, halves=True)
    return Mix(_floats(canvas), masks, Layout(config.size, tuple(placements)), caption)


def compose(
    layout: Layout,
    cutouts: CutOuts,
    background: tuple[float, float, float] | Tensor = (1.0, 1.0, 1.0),
    caption: str | None = None,
) -> Mix:
    """Draw a layout: the image, the visible mask of each placement, and a caption (default: Seg-Mix's).

    ``background``: a colour, or a picture ``[h, w, 3]``, 0..1, of the canvas's size.

    A cut-out fills the box of its placement. In a box of another shape it is as large as fits, centred, never
    stretched. The caption names the subjects in the order of the layout. Raise `BadLayout` when the layout names a
    subject or photo that the set does not have, and for a picture of another size.
    """
    import cv2

    width, height = layout.size
    canvas = _ground(background, layout.size)
    placed: list[tuple[slice, slice, Pixels]] = []
    for placement in layout.placements:
        cut_out, (x0, y0, x1, y1) = standing(placement, cutouts, layout.size)
        rgba = drawn(cut_out, (x1 - x0, y1 - y0), placement.mirror, placement.rotation)
        alpha = cv2.extractChannel(rgba, 3)
        rows, columns = slice(y0, y1), slice(x0, x1)
        above, opaque = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB)
        above = cv2.multiply(above, opaque, scale=1 / 255)
        below = cv2.multiply(canvas[rows, columns], cv2.bitwise_not(opaque), scale=1 / 255)
        canvas[rows, columns] = cv2.add(above, below)
        placed.append((rows, columns, alpha))
    # From front to back: each takes its share of what those in front leave, so the sum is at most 1.
    masks = torch.zeros(len(placed), height, width)
    left = np.full((height, width), 255, dtype=np.uint8)
    for i, (rows, columns, alpha) in reversed(list(enumerate(placed))):
        visible = cv2.multiply(alpha, left[rows, columns], scale=1 / 255)
        left[rows, columns] -= visible.astype(np.uint8, copy=False)
        masks[i, rows, columns] = _floats(visible)
    if caption is None:
        figures = [Figure(placement.token, 1.0) for placement in layout.placements]
        colour = (1.0, 1.0, 1.0) if isinstance(background, Tensor) else background
        caption = _caption(cutouts.subjects, figures, SegMixConfig(background=colour))
    return Mix(_floats(canvas), masks, layout, caption)


def standing(placement: Placement, cutouts: CutOuts, size: tuple[int, int]) -> tuple[CutOut, tuple[int, int, int, int]]:
    """Return the cut-out of a placement, and the box that it fills on a canvas of this size, in pixels."""
    cut_out = cutouts.get(placement.token, placement.photo)
    aspect = turned_aspect(cut_out.aspect, placement.rotation)
    return cut_out, _fit(to_pixels(placement.xyxy, size), aspect)


def _ground(background: tuple[float, float, float] | Tensor, size: tuple[int, int]) -> Pixels:
    """Return what is behind the figures, 8-bit ``[h, w, 3]``, to be painted on."""
    width, height = size
    if not isinstance(background, Tensor):
        row = np.tile(np.array([round(255 * value) for value in background], dtype=np.uint8), width)
        return np.tile(row, height).reshape(height, width, 3)
    if background.shape != (height, width, 3):
        raise BadLayout(
            f"The picture behind the figures is {background.shape[1]}x{background.shape[0]} px, the canvas {width}x"
            f"{height} px. Bring it to the canvas's size."
        )
    canvas: Pixels = to_bytes(background).copy()
    return canvas


def _draw_pair(
    subjects: SubjectSet, rng: random.Random, first: tuple[str, int] | None, strangers: frozenset[str]
) -> tuple[tuple[str, int], tuple[str, int]]:
    """Draw token and photo of two different subjects; every photo of the set is equally likely to be the first.

    Strangers are never two; who of a subject and a stranger is named first is a coin's choice.
    """
    if len(subjects) < 2:
        raise TooFewSubjects(
            f"Seg-Mix composes two subjects, but there is only '{subjects.tokens[0]}'. Add another subject."
        )
    if first is None:
        own = [subject for subject in subjects if subject.token not in strangers]
        first = rng.choice([(subject.token, i) for subject in own for i in range(len(subject.photos))])
    token = rng.choice([other for other in subjects.tokens if other != first[0]])
    second = (token, rng.randrange(len(subjects[token].photos)))
    return (second, first) if token in strangers and rng.random() < 0.5 else (first, second)


def _caption(subjects: SubjectSet, figures: Sequence[Figure], config: SegMixConfig, halves: bool = False) -> str:
    names = [
        ("" if figure.token in config.strangers else figure.token, subjects[figure.token].class_noun)
        for figure in figures
    ]
    return composition(config.captions, names, config.background, config.caption, prior=config.priors, halves=halves)


def _window(subject: Subject, index: int, size: tuple[int, int], mirror: bool) -> Pixels:
    """Return the largest window of this shape in a photo, around the subject, resized to this size."""
    import cv2

    photo = subject.photos[index]
    width, height = photo.size
    scale = min(width / size[0], height / size[1])
    w, h = max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)
    x0, y0, x1, y1 = mask_box(subject.masks[index], SOFT) or (0, 0, width, height)
    left, top = min(max((x0 + x1 - w) // 2, 0), width - w), min(max((y0 + y1 - h) // 2, 0), height - h)
    pixels: Pixels = to_bytes(photo.image[top : top + h, left : left + w])
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)
    return np.ascontiguousarray(pixels[:, ::-1]) if mirror else pixels


def _fit(box: tuple[int, int, int, int], aspect: float) -> tuple[int, int, int, int]:
    """Return the largest box of this aspect in the middle of another; the other itself when only rounding differs."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    if min(abs(h * aspect - w), abs(w / aspect - h)) <= 1:
        return box
    w, h = max(min(w, round(h * aspect)), 1), max(min(h, round(w / aspect)), 1)
    x0, y0 = x0 + (x1 - x0 - w) // 2, y0 + (y1 - y0 - h) // 2
    return x0, y0, x0 + w, y0 + h


def _floats(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels).to(torch.float32).div_(255)
