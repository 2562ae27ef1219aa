from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mudi_core.boxes import overlap, to_pixels, visible_fraction
from mudi_core.stage.layout import Figure, NoRoom, given_layout, ordered_layout, pair_layout, random_layout, remarks
from mudi_core.stage.layout_config import BadLayoutConfig, BadRelativeScale, LayoutConfig, parse_relative_scale
from mudi_core.types import BadLayout, Layout

A, B = Figure("a", 0.5), Figure("b", 0.9, photo=3, mirror=True)
sizes = st.sampled_from([(1024, 1024), (256, 256), (832, 1216), (640, 360), (64, 64)])
aspects = st.floats(0.1, 8)
seeds = st.integers(0, 2**32)


def pixels(layout: Layout) -> dict[str, tuple[int, int, int, int]]:
    return {placement.token: to_pixels(placement.xyxy, layout.size) for placement in layout.placements}


def is_true_to(aspect: float, box: tuple[int, int, int, int]) -> bool:
    """Whether a box has an aspect up to a pixel of either side."""
    w, h = box[2] - box[0], box[3] - box[1]
    return (w - 1) / (h + 1) <= aspect <= (w + 1) / max(h - 1, 1e-9)


@given(aspects, aspects, seeds)
def test_a_pair_stands_as_in_the_official_code(a: float, b: float, seed: int) -> None:
    """Fitted into 480 x 992 of 1024 px at 3/4 or more, 1 to 256 px from its border, nowhere outside."""
    boxes = pixels(pair_layout(Figure("a", a), Figure("b", b), random.Random(seed)))
    assert any(1 <= p[0] <= 256 and 1 <= 1024 - q[2] <= 256 for p, q in permutations(boxes.values(), 2))
    for aspect, (x0, y0, x1, y1) in ((a, boxes["a"]), (b, boxes["b"])):
        largest = min(480 / aspect, 992)
        assert 0.75 * largest - 1 <= y1 - y0 <= largest
        assert is_true_to(aspect, (x0, y0, x1, y1))
        assert 0 <= y0 and y1 <= 1024


def test_all_coins_are_fair_and_all_margins_come_up() -> None:
    lefts, tops, margins = 0, 0, set()
    for seed in range(600):
        layout = pair_layout(Figure("a", 0.2), Figure("b", 0.2), random.Random(seed))
        boxes = pixels(layout)
        lefts += boxes["a"][0] < boxes["b"][0]
        tops += layout.placements[-1].token == "a"
        margins.add(min(box[0] for box in boxes.values()))
    assert 240 < lefts < 360 and 240 < tops < 360
    assert min(margins) <= 8 and 248 <= max(margins) <= 256


def test_a_layout_is_replayed_by_its_seed_and_carries_the_figures() -> None:
    first = pair_layout(A, B, random.Random(5))
    assert first == pair_layout(A, B, random.Random(5)) != pair_layout(A, B, random.Random(6))
    (b,) = [placement for placement in first.placements if placement.token == "b"]
    assert (b.photo, b.mirror) == (3, True)


@given(aspects, aspects, st.floats(0, 1), seeds)
def test_a_pair_overlaps_by_no_more_than_allowed(a: float, b: float, most: float, seed: int) -> None:
    layout = pair_layout(Figure("a", a), Figure("b", b), random.Random(seed), config=LayoutConfig(max_overlap=most))
    assert overlap(*(placement.xyxy for placement in layout.placements)) <= most + 1e-9


def test_overlap_that_cannot_be_kept_says_so() -> None:
    wide = LayoutConfig(width_fraction=0.9, max_overlap=0)
    with pytest.raises(NoRoom, match="a and b overlap.*max_overlap"):
        pair_layout(Figure("a", 1.5), Figure("b", 1.5), random.Random(0), config=wide)


def test_prior_pairs_share_their_height() -> None:
    for seed in range(20):
        a, b = pixels(pair_layout(A, B, random.Random(seed), config=LayoutConfig(shared_y=True))).values()
        assert a[1] == b[1]


@given(st.lists(aspects, min_size=2, max_size=11), st.floats(0.3, 3), sizes, seeds)
def test_relative_scale_is_the_ratio_of_heights(
    figures: list[float], ratio: float, size: tuple[int, int], seed: int
) -> None:
    named = [Figure(f"t{i}", aspect) for i, aspect in enumerate(figures)]
    config = LayoutConfig(relative_scale={"t1": ratio})
    boxes = pixels(random_layout(named, random.Random(seed), size, config))
    heights = [boxes[f"t{i}"][3] - boxes[f"t{i}"][1] for i in range(len(figures))]
    assert (heights[1] - 2) / (heights[0] + 2) <= ratio <= (heights[1] + 2) / max(heights[0] - 2, 1e-9)


@settings(deadline=None)
@given(st.lists(aspects, min_size=1, max_size=11), sizes, seeds, st.floats(0, 1), st.floats(0, 1))
def test_random_layouts_show_everyone(
    figures: list[float], size: tuple[int, int], seed: int, most: float, least: float
) -> None:
    named = [Figure(f"t{i}", aspect) for i, aspect in enumerate(figures)]
    config = LayoutConfig(max_overlap=most, min_visible=least)
    layout = random_layout(named, random.Random(seed), size, config)
    boxes = [placement.xyxy for placement in layout.placements]
    assert sorted(placement.token for placement in layout.placements) == sorted(figure.token for figure in named)
    for i, box in enumerate(boxes):
        assert visible_fraction(box, boxes[i + 1 :]) >= least - 1e-9
        assert all(overlap(box, other) <= most + 1e-9 for other in boxes[i + 1 :])
        assert is_true_to(named[int(layout.placements[i].token[1:])].aspect, to_pixels(box, size))


@pytest.mark.parametrize("count", [0, 12])
def test_a_picture_holds_one_to_eleven(count: int) -> None:
    with pytest.raises(BadLayout, match=f"1 to 11 subjects, got {count}"):
        random_layout([Figure(f"t{i}", 1) for i in range(count)], random.Random(0))


@given(aspects, st.tuples(st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.55, 1), st.floats(0.55, 1)), sizes)
def test_given_boxes_hold_their_figure_unstretched(
    aspect: float, box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    (placement,) = given_layout({"a": box}, [Figure("a", aspect), B], size).placements
    x0, y0, x1, y1 = placement.xyxy
    assert box[0] <= x0 < x1 <= box[2] and box[1] <= y0 < y1 <= box[3]
    assert (x1 - x0) * size[0] / ((y1 - y0) * size[1]) == pytest.approx(aspect)
    assert x1 - x0 == pytest.approx(box[2] - box[0]) or y1 - y0 == pytest.approx(box[3] - box[1])


def test_smaller_figures_stand_in_front() -> None:
    layout = given_layout({"a": (0.4, 0.4, 0.6, 0.6), "b": (0.0, 0.0, 1.0, 1.0)}, [A, B])
    assert [placement.token for placement in layout.placements] == ["b", "a"]


def test_depth_goes_before_size() -> None:
    boxes = {"a": (0.4, 0.4, 0.6, 0.6), "b": (0.0, 0.0, 1.0, 1.0)}
    assert [p.token for p in given_layout(boxes, [A, B], depths={"a": 1}).placements] == ["a", "b"]
    assert [p.token for p in given_layout(boxes, [A, B], depths={"a": 1, "b": 1}).placements] == ["b", "a"]


def test_who_is_hidden_or_left_out_is_told() -> None:
    square = [Figure("a", 1), Figure("b", 1)]
    same = {"a": (0.1, 0.1, 0.9, 0.9), "b": (0.1, 0.1, 0.9, 0.9)}
    assert remarks(given_layout(same, square), ["a", "b"]) == ["Only 0% of the box of 'a' is left uncovered."]
    assert remarks(given_layout({"b": (0, 0, 1, 1)}, square), ["a", "b"]) == ["'a' has no box and is left out."]
    apart = {"a": (0, 0, 0.5, 1), "b": (0.5, 0, 1, 1)}
    assert remarks(given_layout(apart, square), ["a", "b"]) == []


@given(st.lists(aspects, min_size=1, max_size=11), sizes, st.one_of(st.none(), st.just(1)))
def test_rows_keep_the_order_and_cover_nobody(figures: list[float], size: tuple[int, int], rows: int | None) -> None:
    named = [Figure(f"t{i}", aspect, photo=i, rotation=5.0) for i, aspect in enumerate(figures)]
    layout = ordered_layout(named, size, rows=rows)
    assert [(p.token, p.photo, p.rotation) for p in layout.placements] == [(f.token, f.photo, 5.0) for f in named]
    boxes = [placement.xyxy for placement in layout.placements]
    for i, box in enumerate(boxes):
        assert all(overlap(box, other) < 1e-9 for other in boxes[i + 1 :])
        assert is_true_to(figures[i], to_pixels(box, size))
    for before, after in zip(boxes, boxes[1:], strict=False):
        assert before[2] <= after[0] + 1e-9 or (before[3] <= after[1] + 1e-9 and rows is None)
    if rows == 1:
        assert len({round(box[3], 6) for box in boxes}) == 1  # on one ground


def test_a_row_has_the_heights_asked_for() -> None:
    a, b = ordered_layout([A, B], config=LayoutConfig(relative_scale={"b": 2}), rows=1).placements
    assert (b.xyxy[3] - b.xyxy[1]) / (a.xyxy[3] - a.xyxy[1]) == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({}, "There are no boxes"),
        ({"zzz": (0, 0, 1, 1)}, "'zzz', but the subjects are: a, b"),
        ({"a": (0, 0, 2, 1)}, "inside 0..1"),
        ({"a": (0.5, 0, 0.5, 1)}, "inside 0..1"),
    ],
)
def test_boxes_that_cannot_be_used_say_why(boxes: Any, message: str) -> None:
    with pytest.raises(BadLayout, match=message):
        given_layout(boxes, [A, B])


@pytest.mark.parametrize(
    "wrong",
    [
        {"width_fraction": 0},
        {"height_fraction": 1.5},
        {"scale": (0.9, 0.5)},
        {"scale": (0, 1)},
        {"margin": (-0.1, 0.2)},
        {"max_overlap": 2},
        {"min_visible": -1},
        {"relative_scale": {"a": 0}},
        {"relative_scale": {"a": float("nan")}},
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadLayoutConfig, match=next(iter(wrong))):
        LayoutConfig(**wrong)


def test_relative_heights_are_read_from_text() -> None:
    assert parse_relative_scale("olis:hta=1:2") == {"olis": 1, "hta": 2}
    assert parse_relative_scale("monster toy : can = 1 : 2") == {"monster toy": 1, "can": 2}
    assert parse_relative_scale("olis : hta = 1 : 0.5") == {"olis": 1, "hta": 0.5}


@pytest.mark.parametrize("text", ["", "olis", "olis:hta", "olis:hta=1", "a:a=1:2", ":b=1:2", "a:b=1:-2", "a:b=1:inf"])
def test_relative_heights_that_cannot_be_read_are_told(text: str) -> None:
    with pytest.raises(BadRelativeScale, match="olis:hta=1:2"):
        parse_relative_scale(text)
