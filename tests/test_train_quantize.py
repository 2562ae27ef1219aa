"""Frozen weights in few bits: close to the full ones, small, and with the right gradient for what lies before them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_train_loop import CONFIG, plan_for
from tiny_sdxl import predict, tiny_unet, train

from mudi_core.bases.quantize import BaseWeights, Fp8Linear, Int8Linear, Nf4Linear, quantize, stored_as
from mudi_core.train.loop import BadRun

BITS: dict[str, float] = {"fp8": 8, "int8": 8, "nf4": 4}


def layer(rows: int = 24, columns: int = 40) -> torch.nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Linear(columns, rows)


def test_int8_is_off_by_half_a_step_of_its_row_at_most() -> None:
    full = layer()
    with torch.no_grad():
        full.weight[3] *= 100  # one loud row must not coarsen the others
    error = (Int8Linear(full).full() - full.weight).abs().amax(dim=1)
    assert (error <= full.weight.abs().amax(dim=1) / 127 / 2 * 1.001).all() and error.max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_loses_nothing_of_a_model_that_came_in_it_and_little_of_others(dtype: torch.dtype) -> None:
    full = layer()
    with torch.no_grad():
        full.weight[3] *= 1000
        full.weight[4] = 0
    first = Fp8Linear(full).full()
    normal = full.weight.abs() > full.weight.abs().amax(dim=1, keepdim=True) / 1000
    assert ((first - full.weight).abs()[normal] <= full.weight.abs()[normal] / 16).all() and first.isfinite().all()
    came = full.weight.detach().to(torch.float8_e4m3fn).to(dtype)
    with torch.no_grad():
        full.weight.data = came
    assert torch.equal(Fp8Linear(full).full(), came)


@pytest.mark.parametrize("rows, columns", [(24, 40), (3, 7)])
def test_nf4_takes_the_nearest_of_its_16_levels_times_the_largest_of_64(rows: int, columns: int) -> None:
    full = layer(rows, columns)
    quantized = Nf4Linear(full)
    levels = quantized.get_buffer("pairs")[:16, 1]
    flat, got = full.weight.detach().reshape(-1), quantized.full().reshape(-1)
    for first in range(0, flat.numel(), 64):
        block = flat[first : first + 64]
        scaled = block.abs().max() * levels
        nearest = scaled[(block[:, None] - scaled).abs().argmin(dim=1)]
        torch.testing.assert_close(got[first : first + 64], nearest)


def test_the_levels_of_nf4_are_quantiles_of_a_normal_distribution() -> None:
    """QLoRA, appendix E: 8 levels above and 7 below 0, in equal shares of probability, scaled to end at 1."""
    normal = torch.distributions.Normal(0.0, 1.0)
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    expected = torch.cat([above, torch.zeros(1), below]).sort().values
    levels = Nf4Linear(layer()).get_buffer("pairs")[:16, 1]
    torch.testing.assert_close(levels, expected / expected.max(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", [Fp8Linear, Int8Linear, Nf4Linear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_multiplies_and_passes_gradients_on_like_a_layer_with_its_full_weight(kind: Any, dtype: torch.dtype) -> None:
    quantized = kind(layer().to(dtype))
    x = torch.randn(5, 2, 40, generator=torch.Generator().manual_seed(1))
    answers = []
    for function in (quantized, lambda x: torch.nn.functional.linear(x.to(dtype), quantized.full(), quantized.bias)):
        given = x.clone().requires_grad_()
        answer = function(given)
        answers.append((answer, *torch.autograd.grad(answer.float().square().sum(), given)))
    assert answers[0][0].dtype == dtype and answers[0][1].dtype == torch.float32
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_nothing_of_full_size_is_kept_for_the_backward_pass() -> None:
    quantized = Int8Linear(layer())
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        quantized(torch.randn(2, 40, requires_grad=True))
    assert torch.Size((24, 40)) not in kept


@pytest.mark.parametrize("base_weights, far", [("fp8", 0.06), ("int8", 0.02), ("nf4", 0.2)])
def test_a_unet_in_few_bits_answers_nearly_the_same_and_shares_nothing(base_weights: BaseWeights, far: float) -> None:
    unet = tiny_unet()
    before = predict(unet)
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    smaller = tiny_unet()
    smaller.load_state_dict(unet.state_dict(), assign=True)
    quantize(smaller, base_weights)
    assert stored_as(smaller) == base_weights and stored_as(unet) == "full"
    error = (predict(smaller) - before).abs().mean() / before.abs().mean()
    assert 0 < error < far
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())

    def size(model: Any) -> int:
        linear = [m for n, m in model.named_modules() if "transformer_blocks" in n and isinstance(m, torch.nn.Linear)]
        return sum(m.weight.numel() * m.weight.element_size() for m in linear)

    assert size(smaller) == pytest.approx(size(unet) * BITS[base_weights] / 32, rel=0.02)


@pytest.mark.parametrize("base_weights", ["fp8", "int8", "nf4"])
def test_a_lora_is_trained_on_it_with_checkpointing_in_bf16(base_weights: BaseWeights) -> None:
    unet = tiny_unet().to(torch.bfloat16)
    quantize(unet, base_weights)
    config = CONFIG.but(base_weights=base_weights, precision="bf16", gradient_checkpointing="full", dco_beta=10.0)
    result = train(unet, plan_for(config), config)
    plain = train(tiny_unet(), plan_for(config), CONFIG.but(dco_beta=10.0))
    assert result.losses == pytest.approx(plain.losses, rel=0.1)
    assert {value.dtype for value in result.state.values()} == {torch.float32}
    assert any(value.abs().max() > 0 for key, value in result.state.items() if "lora_up" in key)


def test_weights_that_are_not_as_the_settings_say_are_refused() -> None:
    config = CONFIG.but(base_weights="nf4")
    with pytest.raises(BadRun, match="stored as 'full', but the settings say 'nf4'"):
        train(tiny_unet(), plan_for(config), config)
