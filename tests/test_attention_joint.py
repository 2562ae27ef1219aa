"""The mask of regions' prompts in a joint attention: what an attention under it is equal to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mudi_core.attention.joint import NEVER, Tokens, regional_mask

PROMPT, REGIONS, PICTURE, WIDE = 5, (3, 4), 6, 8


def parts(seed: int = 0, *lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, length, WIDE, generator=generator) for length in lengths or (PROMPT, *REGIONS, PICTURE)]


def seen(tokens: list[Tensor], mask: Tensor | None = None) -> Tensor:
    x = torch.cat(tokens, 1)
    return scaled_dot_product_attention(x, x, x, attn_mask=mask)


def sides() -> Tensor:
    """Two regions: the first three positions and the others."""
    weights = torch.zeros(1, PICTURE, 2)
    weights[:, :3, 0] = weights[:, 3:, 1] = 1
    return weights


def test_who_sees_whom() -> None:
    mask = regional_mask(0.5 * sides(), 0.5, Tokens(PROMPT, REGIONS, PICTURE))[0]
    prompt, first, second, left, right = slice(5), slice(5, 8), slice(8, 12), slice(12, 15), slice(15, 18)
    wanted = [
        (prompt, prompt, 0), (prompt, first, NEVER), (prompt, second, NEVER), (prompt, left, 0), (prompt, right, 0),
        (first, prompt, NEVER), (first, first, 0), (first, second, NEVER), (first, left, math.log(0.5)),
        (first, right, NEVER), (second, first, NEVER), (second, second, 0), (second, right, math.log(0.5)),
        (left, prompt, math.log(0.75)), (left, first, math.log(0.25)), (left, second, NEVER), (left, left, 0),
        (left, right, 0), (right, prompt, math.log(0.75)), (right, first, NEVER), (right, second, math.log(0.25)),
    ]  # fmt: skip
    for rows, columns, value in wanted:
        found = mask[rows, columns]
        assert torch.allclose(found, torch.full_like(found, value)), (rows, columns)


def test_at_strength_1_a_position_sees_its_regions_prompt_in_the_place_of_the_pictures() -> None:
    prompt, one, other, picture = parts()
    got = seen([prompt, one, other, picture], regional_mask(sides(), 1.0, Tokens(PROMPT, REGIONS, PICTURE)))[:, -6:]
    for text, place in ((one, slice(3)), (other, slice(3, 6))):
        assert torch.allclose(got[:, place], seen([text, picture])[:, -6:][:, place], atol=1e-6)
    assert (got - seen([prompt, picture])[:, -6:]).abs().max() > 0.05


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_regions_of_the_pictures_own_prompt_change_nothing(strength: float) -> None:
    prompt, picture = parts(0, PROMPT, PICTURE)
    weights = torch.rand(1, PICTURE, 2, generator=torch.Generator().manual_seed(1))  # soft, and some overlap
    tokens = Tokens(PROMPT, (PROMPT, PROMPT), PICTURE)
    got = seen([prompt, prompt, prompt, picture], regional_mask(weights, strength, tokens))
    plain = seen([prompt, picture])
    assert torch.allclose(got[:, -6:], plain[:, -6:], atol=1e-6)
    assert torch.allclose(got[:, :PROMPT], plain[:, :PROMPT], atol=1e-6)


def test_without_regions_nothing_sees_their_prompts() -> None:
    prompt, one, other, picture = parts()
    got = seen([prompt, one, other, picture], regional_mask(0 * sides(), 1.0, Tokens(PROMPT, REGIONS, PICTURE)))
    plain = seen([prompt, picture])
    assert torch.allclose(torch.cat([got[:, :5], got[:, -6:]], 1), plain, atol=1e-6)
    assert torch.allclose(got[:, 5:8], seen([one]), atol=1e-6)  # which see themselves


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_finite_in_every_type(dtype: torch.dtype) -> None:
    mask = regional_mask(sides(), 1.0, Tokens(PROMPT, REGIONS, PICTURE), dtype, torch.full((1, 11, 11), NEVER))
    assert mask.dtype == dtype and mask.isfinite().all()
    assert torch.tensor(NEVER, dtype=dtype).exp() == 0
    assert mask.shape == (1, 18, 18) and mask.stride(1) % 16 == mask.stride(0) % 16 == 0  # PyTorch copies others


def test_a_mask_that_was_there_is_kept() -> None:
    """As one that hides the last two tokens of the prompt from all others."""
    prompt, one, other, picture = parts()
    before = torch.zeros(1, 11, 11)
    before[:, :, 3:5] = -math.inf
    before[:, 3:5, 3:5] = 0
    mask = regional_mask(sides(), 0.4, Tokens(PROMPT, REGIONS, PICTURE), before=before)
    got = seen([prompt, one, other, picture], mask)
    wanted = seen([prompt[:, :3], one, other, picture], regional_mask(sides(), 0.4, Tokens(3, REGIONS, PICTURE)))
    assert torch.allclose(got[:, :3], wanted[:, :3], atol=1e-6) and torch.allclose(got[:, 5:], wanted[:, 3:], atol=1e-6)
    rows = regional_mask(sides(), 0.4, Tokens(PROMPT, REGIONS, PICTURE), before=torch.stack([before[0], 0 * before[0]]))
    assert torch.equal(rows[:1], mask) and not torch.equal(rows[1], rows[0])


def test_references_see_a_prompt_by_its_share_of_the_picture() -> None:
    prompt, one, other, picture, reference = parts(0, PROMPT, *REGIONS, PICTURE, 4)
    tokens = Tokens(PROMPT, REGIONS, PICTURE, 4)
    whole = torch.zeros(1, PICTURE, 2)
    whole[..., 0] = 1
    got = seen([prompt, one, other, picture, reference], regional_mask(whole, 1.0, tokens))
    wanted = seen([one, picture, reference])
    assert torch.allclose(got[:, -10:], wanted[:, -10:], atol=1e-6) and torch.allclose(got[:, 5:8], wanted[:, :3])
    halves = regional_mask(sides(), 1.0, tokens)
    assert torch.allclose(halves[:, -4:, 5:12], torch.tensor(math.log(0.5))) and halves[:, -4:, :5].max() == NEVER
