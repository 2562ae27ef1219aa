"""The second judge: it reads the looks of figures, and tells what is right from what leaked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mudi_core.toy.world import PAIRS
from workshop.figures import held_out, pixels
from workshop.looks import load, read, seen
from workshop.train.data import VALUES, looks

A, B = (spec.character for spec in PAIRS[0])


def test_what_is_right_and_what_leaked_is_counted_in_the_best_order() -> None:
    whole = seen([looks(B), looks(A)], [A, B])
    assert (whole.right, whole.leaked) == (1, 0)
    differing = sum(a != b for a, b in zip(looks(A), looks(B), strict=True))
    twice = seen([looks(A), looks(A)], [A, B])
    assert twice.right == pytest.approx(1 - differing / (2 * len(VALUES))) and twice.leaked == 0.5
    missing = seen([looks(A)], [A, B])
    assert (missing.right, missing.leaked) == (0.5, 0) and seen([], [A, B]).right == 0
    scarf = list(looks(B))
    neckwear = list(VALUES).index("neckwear")
    scarf[neckwear] = looks(A)[neckwear]
    borrowed = seen([looks(A), scarf], [A, B])
    assert borrowed.right == 1 - 1 / 16 and borrowed.leaked == pytest.approx(1 / (2 * differing))


def test_the_reader_reads_characters_that_it_never_saw() -> None:
    reader, right = load(), []
    for drawn in held_out(40):
        figures = read(reader, pixels(drawn), torch.tensor(np.array(drawn.boxes)).float())
        wanted = [looks(actor.character) for actor in drawn.scene.actors]
        right += [[a == b for a, b in zip(*both, strict=True)] for both in zip(figures, wanted, strict=True)]
    assert read(reader, pixels(held_out(1)[0]), torch.zeros(0, 4)) == []
    for look, share in zip(VALUES, np.mean(right, 0), strict=True):
        assert share >= (0.7 if look == "pattern" else 0.9), look
