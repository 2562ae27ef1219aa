"""The Detect-and-Compare score knows good pictures from bad ones: a sample of `benchmarks/auroc.py`."""

from __future__ import annotations

import random

import pytest

from benchmarks.auroc import KINDS, auroc, aurocs, cast, draw, interval, judged
from mudi_core.toy.world import DEV_PAIRS, PAIRS


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [([2, 3], [0, 1], 1.0), ([0, 1], [2, 3], 0.0), ([1, 1], [1], 0.5), ([0, 2], [1, 1], 0.5), ([1, 2], [0, 2], 0.625)],
)
def test_auroc_is_the_share_of_pairs_in_order(good: list[float], bad: list[float], expected: float) -> None:
    assert auroc(good, bad) == expected


@pytest.mark.parametrize("pair", PAIRS + DEV_PAIRS)
def test_every_kind_shows_what_it_says(pair: object) -> None:
    a, b = (spec.character for spec in pair)  # type: ignore[attr-defined]
    who = {kind: cast(pair, kind, random.Random(0)) for kind in KINDS}  # type: ignore[arg-type]
    assert who["right"] == [a, b]
    assert [one.color for one in who["mixed"]] == [a.color, b.color] and not {a, b} & set(who["mixed"])
    assert [one.headwear for one in who["mixed"]] == [b.headwear, a.headwear]
    assert len(set(who["duplicate"])) == 1 and len(who["duplicate"]) == 2 and len(who["missing"]) == 1
    assert {who["duplicate"][0], who["missing"][0]} <= {a, b}
    assert who["extra"][:2] == [a, b] and who["extra"][2] not in (a, b)
    assert not {a, b} & set(who["strangers"]) and {one.species for one in who["strangers"]} == {a.species}
    for kind in KINDS:
        drawn = draw(who[kind], random.Random(1))
        assert drawn.masks.any((1, 2)).all() and len(drawn.masks) == len(who[kind])


def test_the_score_separates_good_from_bad_and_plain_similarity_does_not(mini_weights: None) -> None:
    results = judged(PAIRS[:3], 2, 0.25, cut_out=True)
    assert len(results) == 3 * len(KINDS) * 2
    score, similarity = aurocs(results, "score"), aurocs(results, "picture")
    assert score["all"] >= 0.9 and score["all"] - similarity["all"] > 0.2
    low, high = interval(results, "score", draws=50)
    assert low <= score["all"] <= high
