"""Gradient checkpointing: less is kept, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_train_loop import CONFIG, plan_for
from tiny_sdxl import denoiser, tiny_unet, train

from benchmarks.train_memory import Ledger
from mudi_core.bases.quantize import BaseWeights, quantize
from mudi_core.lora.adapter import Adapter
from mudi_core.train import recompute
from mudi_core.train.parts import GradientCheckpointing, Precision
from mudi_core.train.recompute import checkpointing, multiplications
from mudi_core.train.step import Trainee, batch_loss

WAYS: tuple[GradientCheckpointing, ...] = ("off", "selective", "full")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("base_weights", ["full", "fp8", "int8", "nf4"])
def test_the_result_is_the_same_to_the_bit(
    base_weights: BaseWeights, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recompute, "DEAR", 64)  # the tiny U-Net's layers are cheap
    config = CONFIG.but(steps=3, dco_beta=10.0, precision=precision, base_weights=base_weights)
    results = []
    for way in WAYS:
        unet = tiny_unet()
        quantize(unet, base_weights)
        results.append(train(unet, plan_for(config), config.but(gradient_checkpointing=way)))
    for other in results[1:]:
        assert other.losses == results[0].losses
        assert all(torch.equal(value, results[0].state[key]) for key, value in other.state.items())


def test_selective_keeps_less_than_all_and_more_than_what_goes_into_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "DEAR", 64)

    def kept(way: GradientCheckpointing) -> int:
        ledger, asked = Ledger(), denoiser(tiny_unet())
        adapter = Adapter.new(asked, 4, 4.0, CONFIG.learning.target_modules)
        with asked.ready(bf16=False), adapter, checkpointing(asked, way):
            adapter.start(0)
            with ledger:
                loss, _ = batch_loss(Trainee(asked, adapter, plan_for(CONFIG), CONFIG), 0)
            assert loss.requires_grad
            return ledger.now

    off, selective, full = map(kept, WAYS)
    assert full < 0.8 * selective and selective < 0.8 * off


def test_what_is_dear() -> None:
    aten = torch.ops.aten
    a, b = torch.zeros(6, 5), torch.zeros(5, 7)
    assert multiplications(aten.mm.default, (a, b)) == multiplications(aten.addmm.default, (b[0], a, b)) == 5
    assert multiplications(aten.bmm.default, (a[None], b[None])) == 5
    assert multiplications(aten.convolution.default, (torch.zeros(1, 4, 8, 8), torch.zeros(9, 4, 3, 3))) == 36
    queries, keys = torch.zeros(1, 2, 10, 8), torch.zeros(1, 2, 77, 8)
    assert multiplications(aten._scaled_dot_product_flash_attention.default, (queries, keys, keys)) == 154
    assert multiplications(aten.native_group_norm.default, (a,)) == 0


def test_an_error_leaves_the_unet_as_it_was() -> None:
    unet = tiny_unet()
    for way in WAYS:
        with pytest.raises(KeyError), checkpointing(denoiser(unet), way):
            raise KeyError
        assert not any("forward" in vars(module) for module in unet.modules())


def test_an_old_torch_computes_all_again_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.delattr(torch.utils.checkpoint, "create_selective_checkpoint_contexts")
    asked = denoiser(tiny_unet())
    with checkpointing(asked, "selective"):
        twice = [module for module in asked.network.modules() if "forward" in vars(module)]
    assert twice == asked.blocks() and caplog.text.count("needs torch 2.4 or newer") == 1
