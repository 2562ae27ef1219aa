"""The verdict "themselves" against rendered truth: right pictures pass, mixes do not; with looser limits they do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.verdicts import HANDS, Drawn, compared, pairs_of, shares
from mudi_core.eyes.embedded import VERDICT_LIMITS, load_embedder
from mudi_core.score.compare import References
from mudi_core.score.verdicts import LAX, judge
from mudi_core.types import VerdictLimits


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    kinds = ("right", "all clothes: swapped", "neckwear: swapped", "body colour: borrowed")
    return compared(pairs_of("others", 0)[:4], 2, kinds, HANDS[:2])


def holds(passed: dict[str, float]) -> bool:
    right, *mixes = passed.values()
    return right >= 0.95 and max(mixes) <= 1 / 16  # one picture of a kind


def test_right_pictures_pass_and_mixes_do_not(drawn: list[Drawn]) -> None:
    assert holds(shares(drawn, VERDICT_LIMITS))


@pytest.mark.parametrize("looser", [LAX, VerdictLimits(2 / 3, 0.75), VerdictLimits(0.75, 2 / 3)])
def test_looser_limits_let_mixes_pass(drawn: list[Drawn], looser: VerdictLimits) -> None:
    assert not holds(shares(drawn, looser))


def test_right_pictures_of_the_model_can_pass_and_its_mixes_do_not() -> None:
    """What it paints is softer, and some looks are lost in it."""
    pairs = pairs_of("others", 0)[:4]
    passed = shares(compared(pairs, 2, ("right", "all clothes: swapped"), HANDS[2:]), VERDICT_LIMITS)
    assert passed["right"] >= 0.25 and passed["all clothes: swapped"] == 0


def test_limits_come_with_the_embedder_that_they_were_chosen_for(drawn: list[Drawn]) -> None:
    subjects = drawn[0].subjects
    embedded = load_embedder()
    assert References(subjects, embedded).limits == VERDICT_LIMITS
    assert References(subjects, lambda images: embedded(images)).limits == LAX


def test_a_figure_below_the_limits_is_told_with_what_it_needed(drawn: list[Drawn]) -> None:
    s_gt = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    s_dc = torch.tensor([[0.62, 0.0], [0.1, 0.8]])
    first, second = judge(drawn[0].subjects, s_gt, s_dc, limits=VERDICT_LIMITS)
    assert (first.status, second.status) == ("unlike", "found")
    assert (
        "figure 1 is nobody else, but not alike enough (0.62 alike, 77% of what its own photos reach; 0.69 needed)"
        in first.text
    )
    compared = replace(drawn[0].compared, verdicts=(first, second), tokens=drawn[0].subjects.tokens)
    assert compared.in_words == "1 of 2 themselves, 1 near"
    far = torch.tensor([[0.5, 0.0], [0.1, 0.8]])
    assert judge(drawn[0].subjects, s_gt, far, limits=VERDICT_LIMITS)[0].status == "missing"
    assert "found" in judge(drawn[0].subjects, s_gt, s_dc)[0].text
