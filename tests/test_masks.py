from __future__ import annotations

import pytest
import torch

from mudi_core.masks import coverage, mask_box, resize


def test_an_empty_mask_has_no_box() -> None:
    assert mask_box(torch.zeros(4, 6)) is None


@pytest.mark.parametrize("box", [(0, 0, 6, 4), (2, 1, 3, 2), (5, 0, 6, 4), (1, 3, 4, 4)])
def test_the_box_of_a_rectangle_is_the_rectangle(box: tuple[int, int, int, int]) -> None:
    mask = torch.zeros(4, 6)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    assert mask_box(mask) == box


def test_a_low_threshold_takes_the_soft_edge_in() -> None:
    mask = torch.tensor([[0.0, 0.2, 1.0, 0.2, 0.0]])
    assert mask_box(mask) == (2, 0, 3, 1)
    assert mask_box(mask, 0.1) == (1, 0, 4, 1)


def test_coverage_is_the_mean() -> None:
    assert coverage(torch.tensor([[0.0, 1.0], [0.5, 0.5]])) == 0.5


@pytest.mark.parametrize("shape", [(64, 64), (3, 64, 64), (2, 3, 64, 64)])
def test_resize_keeps_the_mean_and_the_leading_sides(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    small = resize(mask, (8, 16))
    assert small.shape == (*shape[:-2], 16, 8)
    assert torch.allclose(small.mean((-1, -2)), mask.mean((-1, -2)), atol=1e-6)
    assert resize(torch.ones(shape), (5, 7)).unique().tolist() == [1]
