"""What is reckoned of a training step's memory without a card is what a true training takes."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_train_loop import CONFIG, plan_for
from tiny_sdxl import tiny_unet

from benchmarks import train_memory
from benchmarks.train_memory import Ledger, reckon
from mudi_core.bases.quantize import quantize
from mudi_core.train.config import TrainConfig
from mudi_core.train.memory import MARGIN, MEMORY
from mudi_core.train.plan import Plan


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny U-Net in the place of SDXL's."""

    def unet(config: TrainConfig) -> Any:
        made = tiny_unet().to(torch.bfloat16).requires_grad_(False)
        quantize(made, config.learning.base_weights)
        return made.to("meta")

    def plan(config: TrainConfig, side: int) -> Plan:
        latents, masks = torch.zeros(6, 4, side, side), torch.ones(6, 1, side, side)
        return replace(plan_for(config), latents=tuple(latents), masks=tuple(masks))

    monkeypatch.setattr(train_memory, "sdxl_unet", unet)
    monkeypatch.setattr(train_memory, "some_plan", plan)


def preset(gigabytes: int) -> TrainConfig:
    settings = {name: value for name, value in MEMORY[gigabytes].items() if name != "optimizer"}
    return CONFIG.but(**settings, steps=2, resolution=256, dco_beta=10.0)


@pytest.mark.parametrize("gigabytes", [24, 12, 6])
def test_what_is_reckoned_and_what_is_estimated_is_what_a_true_training_takes(gigabytes: int) -> None:
    config = preset(gigabytes)
    true, reckoned = train_memory.really(config)["peak"], reckon(config, card=False)
    assert reckoned["peak"] == pytest.approx(true, rel=0.02)
    assert reckoned["expected"] == pytest.approx(true, rel=MARGIN)


def test_a_card_normalizes_in_float32() -> None:
    config = preset(24)
    assert reckon(config)["peak"] > 1.02 * reckon(config, card=False)["peak"]


def test_a_ledger_knows_what_is_still_there() -> None:
    ledger = Ledger()
    kept: list[torch.Tensor] = []

    def work() -> None:
        first = torch.zeros(1024)
        second = first * 2
        del first
        kept.append(second.reshape(32, 32).T)  # the same numbers

    assert ledger.peak_of(work) == 2 * 4096 and ledger.now == 4096
    assert ledger.peak_of(kept.clear) == 4096 and ledger.now == 0
    ledger.enter(torch.zeros(1))
    gc.collect()
    assert ledger.peak == 4096 and ledger.now == 0
