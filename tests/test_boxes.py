from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mudi_core import boxes

unit = st.integers(0, 20)
box = st.tuples(unit, unit, unit, unit).map(
    lambda n: (float(min(n[0], n[2])), float(min(n[1], n[3])), max(n[0], n[2]) + 1.0, max(n[1], n[3]) + 1.0)
)


def cells(*some: tuple[float, float, float, float]) -> set[tuple[int, int]]:
    """The unit squares that boxes with whole corners cover."""
    return {(x, y) for b in some for x in range(int(b[0]), int(b[2])) for y in range(int(b[1]), int(b[3]))}


@given(box, box)
def test_iou_counts_squares(a: boxes.Box, b: boxes.Box) -> None:
    expected = len(cells(a) & cells(b)) / len(cells(a, b))
    assert float(boxes.iou(torch.tensor([a]), torch.tensor([b]))) == pytest.approx(expected)


@given(box, box)
def test_overlap_counts_squares_of_the_smaller(a: boxes.Box, b: boxes.Box) -> None:
    expected = len(cells(a) & cells(b)) / min(len(cells(a)), len(cells(b)))
    assert boxes.overlap(a, b) == boxes.overlap(b, a) == pytest.approx(expected)


@given(box, st.lists(box, max_size=5))
def test_visible_fraction_counts_squares(below: boxes.Box, above: list[boxes.Box]) -> None:
    expected = len(cells(below) - cells(*above)) / len(cells(below))
    assert boxes.visible_fraction(below, above) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 2), (3, 0), (3, 2)])
def test_iou_of_none_is_empty(n: int, m: int) -> None:
    assert boxes.iou(torch.rand(n, 4), torch.rand(m, 4)).shape == (n, m)


def test_iou_of_empty_boxes_is_zero() -> None:
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert float(boxes.iou(point, point)) == 0


def test_an_inverted_box_has_no_area() -> None:
    assert boxes.area(torch.tensor([[4.0, 4.0, 1.0, 1.0], [0.0, 0.0, 2.0, 3.0]])).tolist() == [0, 6]


def test_clip_keeps_what_is_inside() -> None:
    given_boxes = torch.tensor([[-5.0, -5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0], [8.0, 8.0, 90.0, 90.0]])
    assert boxes.clip(given_boxes, (10, 20)).tolist() == [[0, 0, 5, 5], [1, 2, 3, 4], [8, 8, 10, 20]]


@given(box, st.tuples(st.integers(8, 2000), st.integers(8, 2000)))
def test_pixels_stay_inside_and_are_never_empty(some: boxes.Box, size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = boxes.to_pixels(tuple(n / 21 for n in some), size)  # type: ignore[arg-type]
    assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]


def test_pixels_come_back_from_fractions() -> None:
    for width in (1000, 1024, 1333):
        for x in range(0, width - 1, 7):
            assert boxes.to_pixels((x / width, 0.0, (x + 1) / width, 1.0), (width, 8))[::2] == (x, x + 1)
