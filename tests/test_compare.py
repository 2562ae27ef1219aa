from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from coloured import COLOURS, coloured
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mudi_core.score.compare import (
    References,
    best_first,
    compare,
    compare_all,
    compare_boxes,
    look_alike,
    score_matrices,
)
from mudi_core.score.vectors import NoNumbers
from mudi_core.score.verdicts import judge
from mudi_core.types import Comparison, Detections

RED, BLUE, ORANGE, BLACK = ((name, COLOURS[name]) for name in ("red", "blue", "orange", "black"))
WHITE = torch.ones(100, 200, 3)
BOXES = ((10.0, 10.0, 60.0, 80.0), (80.0, 20.0, 120.0, 90.0), (140.0, 5.0, 190.0, 95.0))


def embed(images: Sequence[Tensor]) -> Tensor:
    """By hue alone: the mean of what is neither white nor green, one axis a colour, and one for all things."""
    rows = []
    for image in images:
        pixels = image.reshape(-1, 3)
        white, green = (pixels > 0.99).all(-1), pixels[:, 1] > pixels[:, 0] + pixels[:, 2]
        pixels = pixels[~(white | green)]
        red, green_mean, blue = pixels.mean(0).tolist() if len(pixels) else (0.0, 0.0, 0.0)
        rows.append([red, green_mean, blue, 0.5])
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def detector_of(*boxes: tuple[float, float, float, float]):  # type: ignore[no-untyped-def]
    asked: list[tuple[list[str], float]] = []

    def detect(image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
        asked.append((list(queries), threshold))
        labels = tuple(queries[0] for _ in boxes)
        return Detections(torch.tensor(boxes).reshape(-1, 4), torch.linspace(0.9, 0.5, len(boxes)), labels, 0.9)

    detect.asked = asked  # type: ignore[attr-defined]
    return detect


def picture(*colours: tuple[float, float, float]) -> Tensor:
    image = WHITE.clone()
    for (x0, y0, x1, y1), colour in zip(BOXES, colours, strict=False):
        image[int(y0) : int(y1), int(x0) : int(x1)] = torch.tensor(colour)
    return image


def compared(*colours: tuple[float, float, float], tokens: tuple[str, ...] = ("red", "blue")) -> Comparison:
    references = References(coloured(*tokens), embed)
    return compare(picture(*colours), references, detector_of(*BOXES[: len(colours)]), embed)


def between(a: tuple[float, ...], b: tuple[float, ...], share: float) -> tuple[float, float, float]:
    mixed = [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def statuses(result: Comparison) -> dict[str, str]:
    return {verdict.token: verdict.status for verdict in result.verdicts}


def similarities(n: int, m: int, seed: int) -> tuple[Tensor, Tensor]:
    """Matrices of unit vectors: three photos for each of n subjects, and m boxes."""
    generator = torch.Generator().manual_seed(seed)
    photos = torch.nn.functional.normalize(torch.randn(n, 3, 16, generator=generator), dim=-1)
    boxes = torch.nn.functional.normalize(torch.randn(m, 16, generator=generator), dim=-1)
    means = photos.mean(1)
    return means @ means.T, boxes @ means.T


def test_a_perfect_picture_scores_one() -> None:
    result = compared(RED[1], BLUE[1])
    assert torch.allclose(result.s_dc, result.s_gt, atol=1e-6)
    assert result.score == pytest.approx(1) == result.score_spectral
    assert result.count_is_right and statuses(result) == {"red": "found", "blue": "found"}
    assert all(verdict.share == pytest.approx(1) for verdict in result.verdicts)


def test_the_reference_matrix_counts_every_pair_of_photos_a_photo_with_itself_too() -> None:
    subjects = coloured("red", "blue", photos=3)
    vectors = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    left = list(vectors.split(3))
    s_gt = References(subjects, lambda images: left.pop(0)).s_gt
    for i in range(2):
        for j in range(2):
            pairs = [float(vectors[3 * i + a] @ vectors[3 * j + b]) for a in range(3) for b in range(3)]
            assert float(s_gt[i, j]) == pytest.approx(sum(pairs) / 9, abs=1e-6)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_swapping_subjects_permutes_the_matrices(n: int, seed: int) -> None:
    s_gt, s_dc = similarities(n, n, seed)
    s_gt = torch.eye(n) + 0.1 * s_gt
    s_dc = s_gt + 0.1 * s_dc  # clear enough that every order of columns matches the same rows
    swap = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    before, after = score_matrices(s_gt, s_dc), score_matrices(s_gt[swap][:, swap], s_dc[:, swap])
    assert [before.order[i] for i in swap.tolist()] == list(after.order)
    assert after.score == pytest.approx(before.score, abs=1e-6)
    assert after.score_spectral == pytest.approx(before.score_spectral, abs=1e-6)


def test_swapping_subjects_permutes_the_verdicts() -> None:
    colours = (between(RED[1], BLUE[1], 0.6), ORANGE[1], ORANGE[1])
    expected = {(v.token, v.status, v.share) for v in compared(*colours, tokens=("red", "blue", "orange")).verdicts}
    for tokens in permutations(("red", "blue", "orange")):
        result = compared(*colours, tokens=tokens)
        assert [verdict.token for verdict in result.verdicts] == list(tokens)
        assert {(v.token, v.status, v.share) for v in result.verdicts} == expected


@given(st.integers(1, 6), st.integers(0, 1000))
def test_the_order_of_the_boxes_does_not_matter(n: int, seed: int) -> None:
    s_gt, s_dc = similarities(n, n, seed)
    shuffled = s_dc[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    assert score_matrices(s_gt, s_dc).score == pytest.approx(score_matrices(s_gt, shuffled).score, abs=1e-6)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_scores_follow_the_formulas(n: int, seed: int) -> None:
    s_gt, s_dc = similarities(n, n, seed)
    result = score_matrices(s_gt, s_dc)
    difference = (s_gt - s_dc[list(result.order)]).double()
    assert result.score == pytest.approx(1 - float((difference**2).sum()), abs=1e-6)
    largest = float(torch.linalg.eigvalsh(difference.T @ difference)[-1].clamp(min=0)) ** 0.5
    assert result.score_spectral == pytest.approx(1 - largest, abs=1e-6)
    assert 1 - result.score_spectral <= (1 - result.score) ** 0.5 + 1e-6


def test_matching_goes_column_by_column() -> None:
    """The first subject takes the row that is most like it, also where the second would have liked it more."""
    s_dc = torch.tensor([[0.6, 0.1], [0.7, 0.9]])
    assert score_matrices(torch.eye(2), s_dc).order == (1, 0)


@given(st.integers(2, 5), st.integers(0, 1000))
def test_no_order_scores_higher_than_the_optimal_one(n: int, seed: int) -> None:
    s_gt, s_dc = similarities(n, n, seed)
    best = score_matrices(s_gt, s_dc, "optimal")
    every = [1 - float((s_gt - s_dc[list(order)]).double().square().sum()) for order in permutations(range(n))]
    assert best.score == pytest.approx(max(every), abs=1e-6)
    assert best.score >= score_matrices(s_gt, s_dc).score - 1e-9
    swapped = list(reversed(range(n)))
    turned = score_matrices(s_gt[swapped][:, swapped], s_dc[:, swapped], "optimal")
    assert turned.score == pytest.approx(best.score, abs=1e-6)  # whoever is named first


def test_in_order_the_first_takes_what_the_second_needed() -> None:
    s_gt = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    s_dc = torch.tensor([[0.6, 0.9], [0.5, 0.1]])
    assert score_matrices(s_gt, s_dc).order == (0, 1)
    assert score_matrices(s_gt, s_dc, "optimal").order == (1, 0)


def test_mixing_lowers_the_score_and_the_share_step_by_step() -> None:
    results = [compared(between(RED[1], BLUE[1], s), BLUE[1]) for s in (1.0, 0.9, 0.8, 0.7, 0.6)]
    assert [r.score for r in results] == sorted((r.score for r in results), reverse=True)
    assert [r.score_spectral for r in results] == sorted((r.score_spectral for r in results), reverse=True)
    shares = [r.verdicts[0].share for r in results]
    assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0]
    assert statuses(results[-1]) == {"red": "mixed", "blue": "found"}
    assert "mixed with blue ball" in results[-1].verdicts[0].text
    assert f"{shares[-1]:.0%} its own" in results[-1].verdicts[0].text


def test_both_can_be_mixed_also_when_one_colour_leads() -> None:
    result = compared(between(RED[1], BLUE[1], 0.75), between(RED[1], BLUE[1], 0.52))
    assert statuses(result)["blue"] == "mixed"
    assert result.verdicts[1].share < 0.5
    assert statuses(compared(*[between(RED[1], BLUE[1], s) for s in (0.55, 0.45)])) == {"red": "mixed", "blue": "mixed"}


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ((), {"red": "missing", "blue": "missing"}),
        ((RED[1],), {"red": "found", "blue": "missing"}),
        ((BLUE[1],), {"red": "missing", "blue": "found"}),
        ((RED[1], RED[1]), {"red": "duplicated", "blue": "missing"}),
        ((RED[1], BLUE[1], RED[1]), {"red": "duplicated", "blue": "found"}),
        ((BLUE[1], BLUE[1], BLUE[1]), {"red": "missing", "blue": "duplicated"}),
        ((RED[1], BLUE[1], BLACK[1]), {"red": "found", "blue": "found"}),
        ((BLACK[1], BLACK[1]), {"red": "missing", "blue": "missing"}),
    ],
)
def test_every_count_gets_verdicts(colours: tuple[tuple[float, float, float], ...], expected: dict[str, str]) -> None:
    result = compared(*colours)
    assert statuses(result) == expected
    assert result.s_dc.shape == (len(colours), 2) and len(result.detections) == len(colours)
    assert all(0 <= verdict.share <= 1 and verdict.text for verdict in result.verdicts)
    if len(colours) != 2:
        assert result.score == result.score_spectral == 0 and not result.count_is_right
    else:
        assert result.score < 0.9


def test_one_subject_is_found_missing_or_duplicated() -> None:
    assert statuses(compared(RED[1], tokens=("red",))) == {"red": "found"}
    assert statuses(compared(tokens=("red",))) == {"red": "missing"}
    assert statuses(compared(RED[1], RED[1], tokens=("red",))) == {"red": "duplicated"}
    assert statuses(compared(BLACK[1], tokens=("red",))) == {"red": "missing"}


@given(st.integers(1, 6), st.integers(0, 7), st.integers(0, 1000))
def test_every_subject_gets_exactly_one_verdict(n: int, m: int, seed: int) -> None:
    tokens = ("red", "blue", "black", "orange")[: min(n, 4)]
    s_gt, s_dc = similarities(len(tokens), m, seed)
    verdicts = judge(coloured(*tokens, photos=1), s_gt, s_dc)
    assert tuple(verdict.token for verdict in verdicts) == tokens
    assert {verdict.status for verdict in verdicts} <= {"found", "unlike", "mixed", "missing", "duplicated"}


def test_rows_and_detections_stand_in_the_subjects_order() -> None:
    result = compared(BLUE[1], RED[1])
    assert torch.allclose(result.s_dc, result.s_gt, atol=1e-6)
    assert result.detections.xyxy.tolist() == [list(BOXES[1]), list(BOXES[0])]
    assert result.detections.confidence.tolist() == pytest.approx([0.5, 0.9])


def test_many_pictures_get_what_each_gets_alone_whatever_the_batch() -> None:
    colours = [(RED[1], BLUE[1]), (), (between(RED[1], BLUE[1], 0.6), BLUE[1]), (RED[1], BLUE[1], BLACK[1]), (BLUE[1],)]
    pictures = [picture(*some) for some in colours]
    pictures[2] = torch.cat([pictures[2], torch.ones(40, 200, 3)])  # pictures may differ in size
    references = References(coloured("red", "blue"), embed)

    def found(image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
        (number,) = [i for i, one in enumerate(pictures) if one.shape == image.shape and torch.equal(one, image)]
        return detector_of(*BOXES[: len(colours[number])])(image, queries, threshold)

    alone = [compare(one, references, found, embed) for one in pictures]
    assert len({one.score for one in alone}) == 3
    for batch in (1, 2, 5, 8):
        for one, other in zip(alone, compare_all(pictures, references, found, embed, batch=batch), strict=True):
            assert torch.allclose(one.s_dc, other.s_dc, atol=1e-6)
            assert one.score == pytest.approx(other.score, abs=1e-6)
            assert [v.status for v in one.verdicts] == [v.status for v in other.verdicts]


def test_only_a_batch_of_pictures_is_held() -> None:
    drawn: list[int] = []

    def pictures() -> Iterator[Tensor]:
        for number in range(6):
            drawn.append(number)
            yield picture(RED[1], BLUE[1])

    results = compare_all(
        pictures(), References(coloured("red", "blue"), embed), detector_of(*BOXES[:2]), embed, batch=2
    )
    next(results)
    assert drawn == [0, 1]
    assert len(list(results)) == 5


def test_boxes_can_come_from_anywhere() -> None:
    references = References(coloured("red", "blue"), embed)
    boxes = detector_of(*BOXES[:2])(WHITE, ["any"], 0.0)
    (result,) = compare_boxes([picture(RED[1], BLUE[1])], [boxes], references, embed)
    assert result.score == pytest.approx(1)


@pytest.mark.parametrize(
    ("colours", "words"),
    [
        ((), "Nothing was found for 'ball' (the detector's best guess was 90% sure), so the score is 0."),
        ((RED[1],), "1 figure, 2 expected, so the score is 0."),
        ((RED[1], BLUE[1], RED[1]), "3 figures, 2 expected"),
        ((RED[1], BLUE[1]), ""),
    ],
)
def test_a_score_of_zero_has_a_reason(colours: tuple[tuple[float, float, float], ...], words: str) -> None:
    reason = compared(*colours).reason
    assert words in reason and bool(reason) == bool(words)


def test_every_verdict_but_missing_has_its_percentage() -> None:
    """As they should be, mixed, doubled, gone, extra. There is no share of what is not there."""
    mixed = between(RED[1], BLUE[1], 0.6)
    for colours in ((RED[1], BLUE[1]), (mixed, mixed), (RED[1], RED[1]), (RED[1],), (RED[1], BLUE[1], RED[1])):
        for verdict in compared(*colours).verdicts:
            share = f"{verdict.share:.0%} its own" in verdict.text or f"{verdict.share:.0%} of it" in verdict.text
            assert share == (verdict.status != "missing"), verdict.text
            assert "% of what its own photos reach" in verdict.text


def said(*rows: list[float]) -> dict[str, str]:
    """By token, of figures that are so much like red and blue, whose own photos are 0.9 alike, 0.1 to each other's."""
    s_gt = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    found = judge(coloured("red", "blue"), s_gt, torch.tensor(rows).reshape(-1, 2), ["ball", "toy"])
    return {verdict.token: verdict.text for verdict in found}


def test_missing_says_what_was_seen_instead() -> None:
    assert set(said().values()) == {
        "red ball: missing, nothing was found for 'ball' or 'toy'.",
        "blue ball: missing, nothing was found for 'ball' or 'toy'.",
    }
    nobodys = said([0.3, 0.2], [0.41, 0.39])
    assert nobodys["red"] == (
        "red ball: missing. Figure 2 is nearest (0.41 alike, 46% of what its own photos reach; 0.45 needed)."
    )
    assert nobodys["blue"] == (
        "blue ball: missing. Figure 2 is nearest (0.39 alike, 43% of what its own photos reach), but more "
        "like red ball (0.41)."
    )
    assert said([0.9, 0.1])["blue"].endswith("11% of what its own photos reach), but more like red ball (0.90).")


def test_a_blob_that_is_like_nobody_else_is_not_found() -> None:
    """Its share is all its own, and still it is far from the subject's photos."""
    nearest = "Figure 1 is nearest ({} alike, {}% of what its own photos reach; 0.60 needed)."
    assert said([0.55, -0.4], [0.1, 0.9])["red"] == f"red ball: missing. {nearest.format(0.55, 61)}"
    alone = torch.tensor([[0.9]])
    (blob,) = judge(coloured("red"), alone, torch.tensor([[0.5]]))
    assert blob.status == "missing" and blob.text.endswith(nearest.format("0.50", 56))
    (itself,) = judge(coloured("red"), alone, torch.tensor([[0.7]]))
    assert itself.text == "red ball: found (figure 1: 0.70 alike, 78% of what its own photos reach)."


def test_a_figure_between_two_may_be_less_like_each() -> None:
    alike = "0.55 alike, 61% of what its own photos reach"
    assert said([0.55, 0.45])["red"] == (
        f"red ball: mixed with blue ball (figure 1: {alike}; 56% its own, 44% blue ball)."
    )


def test_found_says_how_much_alike_and_beside_whom() -> None:
    words = said([0.1, 0.88], [0.8, 0.2])["blue"]
    told = "figure 1: 0.88 alike, 98% of what its own photos reach; 99% its own, 1% red ball"
    assert words == f"blue ball: found ({told})."


def test_themselves_come_before_the_score() -> None:
    results = [compared(*some) for some in ((RED[1], RED[1]), (RED[1], BLUE[1]))]
    assert [result.themselves for result in results] == [0, 2]
    assert results[1].in_words == "2 of 2 themselves"
    higher = [replace(results[0], score=2.0), results[1]]
    assert best_first(higher) == [1, 0]


def test_of_as_many_themselves_the_right_count_is_better_whatever_it_scores() -> None:
    shown = ((RED[1],), (RED[1], RED[1]), (RED[1], BLUE[1]), (), (RED[1], BLUE[1], BLACK[1]))
    results = [compared(*some) for some in shown]
    assert [result.themselves for result in results] == [1, 0, 2, 0, 2]
    assert results[1].score < 0 == results[0].score == results[4].score
    assert best_first(results) == [2, 4, 0, 1, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_no_numbers_are_told(bad: float) -> None:
    def broken(images: Sequence[Tensor]) -> Tensor:
        return torch.full((len(images), 4), bad)

    with pytest.raises(NoNumbers, match="not numbers"):
        References(coloured("red", "blue"), broken)
    with pytest.raises(NoNumbers, match="not numbers"):
        compare(picture(RED[1]), References(coloured("red", "blue"), embed), detector_of(BOXES[0]), broken)


@pytest.mark.parametrize("factor", [0.01, 1.0, 1000.0])
def test_the_length_of_the_embeddings_does_not_matter(factor: float) -> None:
    def scaled(images: Sequence[Tensor]) -> Tensor:
        return embed(images) * factor

    image = picture(between(RED[1], BLUE[1], 0.7), BLUE[1])
    subjects, detector = coloured("red", "blue"), detector_of(*BOXES[:2])
    plain = compare(image, References(subjects, embed), detector, embed)
    result = compare(image, References(subjects, scaled), detector, scaled)
    assert torch.allclose(result.s_gt, plain.s_gt, atol=1e-6) and torch.allclose(result.s_dc, plain.s_dc, atol=1e-6)


def test_queries_are_the_class_nouns_once_or_what_is_asked() -> None:
    references, detector = References(coloured("red", "blue"), embed), detector_of()
    compare(WHITE, references, detector, embed)
    compare(WHITE, references, detector, embed, queries=["toy", "cat"], threshold=0.4)
    assert detector.asked == [(["ball"], 0.25), (["toy", "cat"], 0.4)]


def test_crops_are_centred_on_white_squares() -> None:
    seen: list[Tensor] = []

    def look(images: Sequence[Tensor]) -> Tensor:
        seen.extend(images)
        return torch.eye(4)[: len(images)]

    references = References(coloured("red", "blue"), embed)
    compare(torch.zeros(100, 200, 3), references, detector_of((10.4, 10.4, 60.4, 80.4)), look)
    (crop,) = seen
    assert crop.shape == (70, 70, 3)
    assert (crop[:, 10:60] == 0).all() and (crop[:, :10] == 1).all() and (crop[:, 60:] == 1).all()


def test_boxes_are_cut_at_the_border_and_dropped_outside() -> None:
    detector = detector_of((-20.0, -20.0, 50.0, 50.0), (300.0, 300.0, 400.0, 400.0), (5.0, 5.0, 5.0, 50.0))
    result = compare(picture(RED[1]), References(coloured("red"), embed), detector, embed)
    assert result.detections.xyxy.tolist() == [[0, 0, 50, 50]]


def test_references_are_whole_or_cut_out_on_white() -> None:
    seen: list[Tensor] = []

    def look(images: Sequence[Tensor]) -> Tensor:
        seen.extend(images)
        return embed(images)

    subjects = coloured("red")
    References(subjects, look)
    assert all(torch.equal(image, photo.image) for image, photo in zip(seen, subjects.subjects[0].photos, strict=True))
    seen.clear()
    References(subjects, look, cut_out=True)
    for image in seen:
        assert image.shape[0] == image.shape[1]
        colours = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
        assert colours == {COLOURS["red"], (1.0, 1.0, 1.0)}


def test_subjects_that_cannot_be_told_apart_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        References(coloured("red", "blue"), embed)
        assert not caplog.records
        references = References(coloured("red", "blue"), lambda images: torch.ones(len(images), 4))
    assert "'red ball' and 'blue ball' look alike" in caplog.text
    assert references.remarks == look_alike(["red ball", "blue ball"], torch.ones(2, 2)) != []
    assert look_alike(["red ball", "blue ball"], torch.eye(2)) == []
