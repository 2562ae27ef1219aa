"""What nodes draw: where losses, their running mean and previews are in the picture, and what a score's card says."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from comfyui import Comfy
from test_nodes_compare import SUBJECTS, blobs, mean_colour, scene
from torch import Tensor

from mudi_core.jobs.previews import MUDI, PLAIN, Preview
from mudi_core.report.statistics import running_mean
from mudi_core.score.compare import ANCHORS, References, compare_boxes

LINE, DOT = (0, 114, 178), (201, 214, 234)
LEFT, RIGHT, TOP, BOTTOM = 64, 640 - 24, 16, 320 - 40
"""Of the axes, in pixels."""


@pytest.fixture(scope="module")
def drawing(comfy: Comfy) -> Any:
    return comfy.module("drawing")


def places(picture: Tensor, colour: tuple[int, int, int]) -> Any:
    """Whether each pixel has a colour, ``[h, w]``."""
    return ((picture * 255).round().to(int) == torch.tensor(colour)).all(-1).numpy()


def noisy(count: int) -> list[float]:
    """Losses that fall from 0.6 to 0.2, with noise."""
    rng = random.Random(0)
    return [0.2 + 0.4 * (1 - i / 200) + rng.uniform(-0.15, 0.15) for i in range(count)]


def heights(picture: Tensor, column: int) -> list[int]:
    """Where the line is in a column of pixels."""
    return np.flatnonzero(places(picture, LINE)[:, column]).tolist()  # type: ignore[no-any-return]


def test_a_running_mean_is_of_the_last_values_and_of_fewer_at_first() -> None:
    assert running_mean([4.0, 2.0, 0.0, 6.0, 6.0], 3) == pytest.approx([4, 3, 2, 8 / 3, 4])
    assert running_mean([1.0, 5.0], 1) == [1.0, 5.0]
    assert running_mean([1.0, 5.0], 9) == [1.0, 3.0]
    assert running_mean([], 3) == []


@pytest.mark.parametrize("done", [200, 120, 11])
def test_the_line_is_the_running_mean_over_the_last_twentieth(drawing: Any, done: int) -> None:
    losses = noisy(done)
    picture = drawing.loss_curve(losses, 200)
    means = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(done)]
    usual = sorted(losses)[int(0.97 * (done - 1))]
    high = 1.1 * max(means[-1], usual)
    for i in range(9, done - 1, 10):
        x = round(LEFT + (i + 0.5) / 200 * (RIGHT - LEFT))
        y = TOP + (high - means[i]) / high * (BOTTOM - TOP)
        assert any(abs(seen - y) <= 3 for seen in heights(picture, x)), (i, y, heights(picture, x))
    last = np.flatnonzero(places(picture, LINE).any(0)).max()
    assert abs(last - (LEFT + (done - 0.5) / 200 * (RIGHT - LEFT))) <= 5, "nothing is drawn of steps to come"


def test_single_losses_are_pale_dots(drawing: Any) -> None:
    """Alternating losses are two rows of dots, and a flat line between them."""
    picture = drawing.loss_curve([0.1, 0.5] * 50, 100)
    dots, high = places(picture, DOT), 0.55
    for i in range(0, 100, 7):
        x = round(LEFT + (i + 0.5) / 100 * (RIGHT - LEFT))
        y = round(TOP + (high - (0.1, 0.5)[i % 2]) / high * (BOTTOM - TOP))
        assert dots[y - 1 : y + 2, x - 1 : x + 2].any(), i
    middle = TOP + (high - 0.3) / high * (BOTTOM - TOP)
    rows = np.flatnonzero(places(picture, LINE)[:, 200:400].any(1))
    assert abs(rows.min() - middle) < 25 and abs(rows.max() - middle) < 25


def test_one_wild_step_does_not_press_the_rest_flat(drawing: Any) -> None:
    for wild in (0, 150):
        losses = [0.3] * 200
        losses[wild] = 50.0
        seen = heights(drawing.loss_curve(losses, 200), RIGHT - 20)
        assert min(seen) < BOTTOM - 20, "0.3 is well above the axis of 0"


def test_losses_below_zero_stay_in_the_picture(drawing: Any) -> None:
    picture = drawing.loss_curve([-0.5 + 0.001 * i for i in range(100)], 100)
    rows = np.flatnonzero(places(picture, LINE).any(1))
    assert rows.min() >= TOP - 4 and rows.max() <= BOTTOM + 4


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0, 0.0], [0.4] * 3])
def test_the_first_steps_are_drawn_too(drawing: Any, losses: list[float]) -> None:
    picture = drawing.loss_curve(losses, 60)
    assert picture.shape == (320, 640, 3) and places(picture, LINE).any()


def test_a_preview_has_a_row_for_each_start_and_a_column_for_each_seed(drawing: Any) -> None:
    colours = {PLAIN: [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)], MUDI: [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0)]}
    pictures = {
        start: tuple(torch.tensor(colour).expand(48, 64, 3) for colour in some) for start, some in colours.items()
    }
    sheet = drawing.preview_sheet(Preview(pictures, {PLAIN: (0.25, 0.5), MUDI: (0.75, 1.0)}), "step 40")
    label, gap, head = 32, 4, 32  # under each picture, between two, and above all
    for row, start in enumerate((PLAIN, MUDI)):
        for column, colour in enumerate(colours[start]):
            top, left = head + row * (48 + label + gap), column * (64 + gap)
            assert (sheet[top : top + 48, left : left + 64] == torch.tensor(colour)).all()
            words = sheet[top + 48 : top + 48 + label, left : left + 64]
            assert (words == 1).any() and (words < 0.5).any(), "a score in black on white"
    assert (sheet[:head] < 0.5).any() and (sheet[:head] == 1).float().mean() > 0.5


@pytest.fixture
def said(drawing: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is written into pictures, with its colour, in its order."""
    words: list[tuple[str, str]] = []
    text = drawing.ImageDraw.ImageDraw.text

    def hears(self: Any, place: Any, written: str, colour: str, *more: Any, **named: Any) -> None:
        words.append((written, colour))
        text(self, place, written, colour, *more, **named)

    monkeypatch.setattr(drawing.ImageDraw.ImageDraw, "text", hears)
    return words


def test_the_scores_and_the_step_are_on_the_preview(drawing: Any, said: list[tuple[str, str]]) -> None:
    pictures = {start: (torch.zeros(64, 64, 3),) * 2 for start in (PLAIN, MUDI)}
    drawing.preview_sheet(Preview(pictures, {PLAIN: (0.25, 0.5), MUDI: (0.75, 1.0)}), "step 40")
    assert [words for words, _ in said] == [
        *("plain start, 0.25", "0.50", "MuDI's start, 0.75", "1.00"),
        "step 40: plain start 0.38, MuDI's start 0.88",
    ]


def test_the_curve_says_of_how_many_steps_its_mean_is(drawing: Any, said: list[tuple[str, str]]) -> None:
    drawing.loss_curve(noisy(120), 200)
    words = [one for one, _ in said]
    assert words[-1] == "loss (mean of the last 10 steps): 0.367" and {"0", "100", "200"} <= set(words)
    drawing.loss_curve([0.5, 0.25], 8)
    assert said[-1][0] == "loss (mean of the last 5 steps): 0.375"


def card(drawing: Any, comfy: Comfy, look: Any, *colours: str) -> Tensor:
    """The card of D&C Score for balls of these colours, with an embedder."""
    picture = scene(*colours)
    (result,) = compare_boxes([picture], [blobs(picture, ["ball"], 0.25)], References(SUBJECTS, look), look, ["ball"])
    (drawn,) = comfy.module("compare").ranking([picture], [result], ["picture 1"])[1]
    assert drawn.shape[1] < 1100 and (drawn[-8:] == 1).all() and (drawn[:, -8:] == 1).all(), "nothing is cut off"
    return drawn


def lines(said: list[tuple[str, str]]) -> str:
    """All that is written on a card, after its matrices."""
    return " ".join(words for words, _ in said)


def test_a_card_says_what_its_score_means(comfy: Comfy, drawing: Any, said: list[tuple[str, str]]) -> None:
    """Themselves first, likeness in words and percent, then the paper's number with its anchors."""
    card(drawing, comfy, mean_colour, "red", "blue")
    words = lines(said)
    order = ["picture 1: 2 of 2 themselves", "red ball: found", "% of what its own photos reach", "Score 0.", ANCHORS]
    assert [words.index(one) for one in order] == sorted(words.index(one) for one in order)
    assert "The score is 1 when" in words and "0 when the number" in words and "below 0 the figures" in words


@pytest.mark.parametrize(
    ("colours", "told"),
    [
        (("red",), "1 figure, 2 expected, so the score is 0."),
        (("red",), "of what its own photos reach), but more like red ball (0.89)."),
        ((), "red ball: missing, nothing was found for 'ball'."),
        ((), "no figure was found"),
    ],
)
def test_a_card_says_what_is_missing(
    comfy: Comfy, drawing: Any, said: list[tuple[str, str]], colours: tuple[str, ...], told: str
) -> None:
    card(drawing, comfy, mean_colour, *colours)
    assert told in lines(said)


def test_a_card_warns_where_the_references_look_alike(comfy: Comfy, drawing: Any, said: list[tuple[str, str]]) -> None:
    warning = "The photos of 'red ball' and 'blue ball' look alike to this embedder, so verdicts on them mean little."
    card(drawing, comfy, mean_colour, "red", "blue")
    assert "look alike" not in lines(said)
    said.clear()
    card(drawing, comfy, lambda images: torch.ones(len(images), 4), "red", "blue")
    words = lines(said)
    assert words.index(warning) < words.index("red ball: mixed"), "before what it makes doubtful"
    assert ("black", True) in {(colour, words.startswith("The photos of 'red ball'")) for words, colour in said}
