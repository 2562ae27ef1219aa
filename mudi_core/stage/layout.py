"""Who stands where: layouts drawn at random or given as boxes. Only geometry, no pixels.

`pair_layout` is the placement of Seg-Mix (paper section 4.1 and the official code). `random_layout` extends it to 1 to
11 subjects for the start of a picture (section 4.2). `ordered_layout` puts them in rows. `given_layout` uses boxes from
the user or from a language model (`layout_text` reads them).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..boxes import Box, overlap, visible_fraction
from ..types import MAX_SUBJECTS, BadLayout, Layout, MudiError, Placement
from .layout_config import LayoutConfig

_TRIES = 100
HIDDEN = 0.25
"""A figure is hidden when less than this share of its box is uncovered."""


class NoRoom(MudiError):
    """The figures cannot stand on the canvas as far apart as the settings ask."""


@dataclass(frozen=True)
class Figure:
    """What a layout needs to know about a cut-out."""

    token: str
    aspect: float
    """Width divided by height, of the box around it after the rotation."""
    photo: int = 0
    """Index into the subject's photos."""
    mirror: bool = False
    rotation: float = 0.0
    """Degrees clockwise."""

    def __post_init__(self) -> None:
        if not self.aspect > 0:
            raise BadLayout(f"{self.token}: the aspect (width / height) must be above 0, got {self.aspect}.")


def pair_layout(
    a: Figure, b: Figure, rng: random.Random, size: tuple[int, int] = (1024, 1024), config: LayoutConfig | None = None
) -> Layout:
    """Place two figures on a canvas (width, height in pixels) as Seg-Mix does (paper section 4.1).

    One stands at a random margin from the left border, the other from the right, each at a random height. One coin
    decides who is on the left, another who is on top (the last placement). Raise `NoRoom` when `max_overlap` is not
    possible.
    """
    config = config or LayoutConfig()
    width, height = size
    figures = [a, b] if rng.random() < 0.5 else [b, a]
    sides = _sizes(figures, (config.width_fraction * width, config.height_fraction * height), rng, config)
    (left_w, left_h), (right_w, right_h) = sides

    def draw(margin: Callable[[int], int]) -> list[Box]:
        if config.shared_y:
            left_y = right_y = rng.randint(0, height - max(left_h, right_h))
        else:
            left_y, right_y = rng.randint(0, height - left_h), rng.randint(0, height - right_h)
        left_x, right_x = margin(width - left_w), width - right_w - margin(width - right_w)
        return [
            (left_x, left_y, left_x + left_w, left_y + left_h),
            (right_x, right_y, right_x + right_w, right_y + right_h),
        ]

    low, high = (round(fraction * width) for fraction in config.margin)

    def random_margin(free: int) -> int:
        return rng.randint(min(low, free), min(high, free))

    for _ in range(_TRIES):
        boxes = draw(random_margin)
        if overlap(*boxes) <= config.max_overlap:
            break
    else:
        boxes = draw(lambda free: min(low, free))  # as far apart as the margins allow
        if overlap(*boxes) > config.max_overlap:
            raise NoRoom(
                f"{a.token} and {b.token} overlap by more than {config.max_overlap:.0%} in every position. "
                "Raise max_overlap, or lower width_fraction below 0.5."
            )
    order = [0, 1] if rng.random() < 0.5 else [1, 0]
    return _layout(size, [figures[i] for i in order], [boxes[i] for i in order])


def random_layout(
    figures: Sequence[Figure],
    rng: random.Random,
    size: tuple[int, int] = (1024, 1024),
    config: LayoutConfig | None = None,
) -> Layout:
    """Place 1 to 11 figures at random on a canvas (width, height in pixels), each at least `min_visible` uncovered.

    All are wholly inside the canvas. Two figures stand as in `pair_layout`. Otherwise the canvas is divided into the
    number of rows that leaves the figures largest, and each figure stands around the middle of a cell. Raise
    `BadLayout` for another number of figures.
    """
    config = config or LayoutConfig()
    _check_number(figures)
    if len(figures) == 2:
        hidden = min(config.max_overlap, 1 - config.min_visible)
        return pair_layout(figures[0], figures[1], rng, size, replace(config, max_overlap=hidden))
    figures = rng.sample(figures, len(figures))
    columns, limit = _cut(figures, size, config)
    sides = _sizes(figures, limit, rng, config)
    cells = _cells(len(figures), columns, size)
    order = rng.sample(range(len(figures)), len(figures))

    for _ in range(_TRIES):
        boxes = [_around(cell, side, rng, size) for cell, side in zip(cells, sides, strict=True)]
        stack = [boxes[i] for i in order]
        if _is_open(stack, config):
            break
    else:
        # Inside their own cells they cannot overlap.
        boxes = [_inside(cell, side, rng) for cell, side in zip(cells, sides, strict=True)]
        stack = [boxes[i] for i in order]
    return _layout(size, [figures[i] for i in order], stack)


def ordered_layout(
    figures: Sequence[Figure],
    size: tuple[int, int] = (1024, 1024),
    config: LayoutConfig | None = None,
    rows: int | None = None,
) -> Layout:
    """Place 1 to 11 figures in their order, from left to right and row by row, as large as fits, none covered.

    Figures of one row stand on one ground line. ``rows`` None: the number that leaves the figures largest. Raise
    `BadLayout` for another number of figures.
    """
    config = config or LayoutConfig()
    _check_number(figures)
    columns, limit = _cut(figures, size, config, rows)
    largest = replace(config, scale=(config.scale[1], config.scale[1]))
    sides = _sizes(figures, limit, random.Random(), largest)
    tallest = max(height for _, height in sides)
    boxes: list[Box] = []
    for (x0, y0, x1, y1), (width, height) in zip(_cells(len(figures), columns, size), sides, strict=True):
        left, top = int((x0 + x1 - width) / 2), int((y0 + y1 + tallest) / 2 - height)
        boxes.append((left, top, left + width, top + height))
    return _layout(size, figures, boxes)


def given_layout(
    boxes: Mapping[str, Box],
    figures: Sequence[Figure],
    size: tuple[int, int] = (1024, 1024),
    depths: Mapping[str, float] | None = None,
) -> Layout:
    """Place figures in the boxes given by token (fractions of the canvas): as large as fits, centred, never stretched.

    Figures with a greater depth stand further back (default: 0); at equal depth the larger ones do, so that they never
    hide a smaller one. Figures without a box are left out. Raise `BadLayout` for a token without a figure, no boxes at
    all, or a box outside the canvas.
    """
    by_token = {figure.token: figure for figure in figures}
    if not boxes:
        raise BadLayout("There are no boxes. Give one for each subject.")
    for token in boxes:
        if token not in by_token:
            raise BadLayout(f"A box is given for '{token}', but the subjects are: {', '.join(by_token)}.")
    width, height = size
    placements = []
    for token, box in boxes.items():
        x0, y0, x1, y1 = Placement(token, box).xyxy
        figure = by_token[token]
        fit_w = min((x1 - x0) * width, (y1 - y0) * height * figure.aspect) / width
        fit_h = fit_w * width / figure.aspect / height
        # The sums are limited to the box: rounding must not push a figure over the border.
        left, top = x0 + (x1 - x0 - fit_w) / 2, y0 + (y1 - y0 - fit_h) / 2
        fitted = (max(left, x0), max(top, y0), min(left + fit_w, x1), min(top + fit_h, y1))
        placements.append(Placement(token, fitted, figure.photo, figure.mirror, figure.rotation))

    def distance(placement: Placement) -> tuple[float, float]:
        x0, y0, x1, y1 = placement.xyxy
        return (depths or {}).get(placement.token, 0.0), (x1 - x0) * (y1 - y0)

    return Layout(size, tuple(sorted(placements, key=distance, reverse=True)))


def remarks(layout: Layout, tokens: Sequence[str]) -> list[str]:
    """Return sentences for the user about a layout of these subjects: who is hidden, and who is left out."""
    found = []
    for i, placement in enumerate(layout.placements):
        visible = visible_fraction(placement.xyxy, [above.xyxy for above in layout.placements[i + 1 :]])
        if visible < HIDDEN:
            found.append(f"Only {visible:.0%} of the box of '{placement.token}' is left uncovered.")
    placed = [placement.token for placement in layout.placements]
    found += [f"'{token}' has no box and is left out." for token in tokens if token not in placed]
    return found


def _check_number(figures: Sequence[Figure]) -> None:
    if not 1 <= len(figures) <= MAX_SUBJECTS:
        raise BadLayout(f"A picture holds 1 to {MAX_SUBJECTS} subjects, got {len(figures)}.")


def _cut(
    figures: Sequence[Figure], size: tuple[int, int], config: LayoutConfig, rows: int | None = None
) -> tuple[int, tuple[float, float]]:
    """Return the columns of a canvas divided into rows (None: the best number), and the largest sides of a figure."""
    if rows is None:
        rows = max(range(1, len(figures) + 1), key=lambda rows: _smallest_figure(figures, rows, size, config))
    columns = -(-len(figures) // rows)
    width, height = size
    return columns, (width / columns * min(1.0, 2 * config.width_fraction), height / rows * config.height_fraction)


def _sizes(
    figures: Sequence[Figure], limit: tuple[float, float], rng: random.Random, config: LayoutConfig
) -> list[tuple[int, int]]:
    """Return width and height in pixels of each figure within a limit: random, or from `relative_scale`."""
    tallest = [min(limit[1], limit[0] / figure.aspect) for figure in figures]
    if config.relative_scale is None:
        heights = [most * rng.uniform(*config.scale) for most in tallest]
    else:
        parts = [config.relative_scale.get(figure.token, 1.0) for figure in figures]
        unit = min(most / part for most, part in zip(tallest, parts, strict=True))
        heights = [unit * part for part in parts]
    return [(max(int(f.aspect * h), 1), max(int(h), 1)) for f, h in zip(figures, heights, strict=True)]


def _smallest_figure(figures: Sequence[Figure], rows: int, size: tuple[int, int], config: LayoutConfig) -> float:
    """Return the area of the smallest figure when the canvas is divided into this many rows."""
    columns = -(-len(figures) // rows)
    width, height = size[0] / columns, size[1] / rows * config.height_fraction
    return min(figure.aspect * min(height, width / figure.aspect) ** 2 for figure in figures)


def _cells(count: int, columns: int, size: tuple[int, int]) -> list[Box]:
    """Return the cells row by row; a last row with fewer cells has wider ones."""
    rows = -(-count // columns)
    cells: list[Box] = []
    for row in range(rows):
        in_row = min(columns, count - row * columns)
        top, bottom = row * size[1] / rows, (row + 1) * size[1] / rows
        cells += [(i * size[0] / in_row, top, (i + 1) * size[0] / in_row, bottom) for i in range(in_row)]
    return cells


def _around(cell: Box, side: tuple[int, int], rng: random.Random, size: tuple[int, int]) -> Box:
    """Return a box whose middle is anywhere in the cell, moved inside the canvas."""
    x0 = min(max(round(rng.uniform(cell[0], cell[2]) - side[0] / 2), 0), size[0] - side[0])
    y0 = min(max(round(rng.uniform(cell[1], cell[3]) - side[1] / 2), 0), size[1] - side[1])
    return x0, y0, x0 + side[0], y0 + side[1]


def _inside(cell: Box, side: tuple[int, int], rng: random.Random) -> Box:
    """Return a box anywhere inside the cell."""
    x0 = cell[0] + rng.random() * (cell[2] - cell[0] - side[0])
    y0 = cell[1] + rng.random() * (cell[3] - cell[1] - side[1])
    return x0, y0, x0 + side[0], y0 + side[1]


def _is_open(stack: Sequence[Box], config: LayoutConfig) -> bool:
    """Return whether boxes, back to front, respect `max_overlap` and `min_visible`."""
    for i, box in enumerate(stack):
        above = stack[i + 1 :]
        if any(overlap(box, other) > config.max_overlap for other in above):
            return False
        if visible_fraction(box, above) < config.min_visible:
            return False
    return True


def _layout(size: tuple[int, int], figures: Sequence[Figure], boxes: Sequence[Box]) -> Layout:
    width, height = size
    return Layout(
        size,
        tuple(
            Placement(
                f.token,
                (x0 / width, y0 / height, min(x1 / width, 1.0), min(y1 / height, 1.0)),
                f.photo,
                f.mirror,
                f.rotation,
            )
            for f, (x0, y0, x1, y1) in zip(figures, boxes, strict=True)
        ),
    )
