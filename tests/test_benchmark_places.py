"""What `benchmarks/places.py` counts, and the plot that it draws of it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from benchmarks.places import ASKED, CAST, GAMMAS, on_its_side, plot
from mudi_core.types import Comparison, Detections

TOKENS = ("olis", "hta")
LEFT, RIGHT = [10.0, 0.0, 50.0, 90.0], [110.0, 0.0, 150.0, 90.0]


def compared(boxes: list[list[float]], likeness: list[list[float]]) -> Comparison:
    """A picture of 192 px with figures in these boxes, each so much like olis and hta."""
    detections = Detections(torch.tensor(boxes).reshape(-1, 4), torch.ones(len(boxes)), ("cat",) * len(boxes), 1.0)
    s_dc = torch.tensor(likeness).reshape(-1, 2)
    return Comparison(TOKENS, 0.0, 0.0, torch.eye(2), s_dc, detections, ())


@pytest.mark.parametrize(
    ("boxes", "likeness", "expected"),
    [
        ([LEFT, RIGHT], [[0.9, 0.1], [0.2, 0.8]], (True, False, False, True)),
        ([LEFT, RIGHT], [[0.1, 0.9], [0.8, 0.2]], (False, True, True, False)),
        ([LEFT, RIGHT], [[0.9, 0.1], [0.8, 0.2]], (True, True, False, False)),
        ([RIGHT], [[0.1, 0.9]], (False, False, False, True)),
        ([], [], (False, False, False, False)),
    ],
)
def test_a_subject_is_where_the_figure_is_that_is_most_like_it(
    boxes: list[list[float]], likeness: list[list[float]], expected: tuple[bool, ...]
) -> None:
    comparison = compared(boxes, likeness)
    assert tuple(on_its_side(comparison, token, left, 192) for token in TOKENS for left in (True, False)) == expected


def test_the_cast_has_a_token_each() -> None:
    assert len({spec.token for spec in CAST}) == max(ASKED)


def test_the_plot_says_the_numbers() -> None:
    by_gamma = {f"{gamma:g}": {"pictures": 10, "subjects": 2 * (5 + i), "both": 5} for i, gamma in enumerate(GAMMAS)}
    asked = {
        str(count): {"start": {"pictures": 4, "found": 4 * count}, "noise": {"pictures": 4, "found": 2 * count}}
        for count in ASKED
    }
    drawn = ElementTree.fromstring(plot([{"gammas": by_gamma}, {"asked": asked}]))
    words = {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"50%", "90%", "5.0", "1.0"} <= words
    points = next(line.get("points", "") for line in drawn.iter("{http://www.w3.org/2000/svg}polyline"))
    assert points and "nan" not in points
