"""The memory presets, and the estimate before the first step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_train_loop import CONFIG, SCHEDULE, plan_for
from tiny_sdxl import tiny_unet

from mudi_core.train.config import PRESETS, TrainConfig
from mudi_core.train.lora import Adapter
from mudi_core.train.memory import MEMORY, OutOfMemory, advice, memory_settings, preflight

ALWAYS, PER_CELL = 5_000_000, 3_000
"""Bytes: what a stand-in card has in use before a step, and what it takes for each of a batch's latents."""


class Card:
    """A card whose use grows with what the U-Net sees, and that has so many bytes."""

    def __init__(self, unet: Any, room: int) -> None:
        self.unet, self.bytes, self.largest = unet, room, 0

    def peak_of(self, work: Callable[[], None]) -> int:
        cells: list[int] = []
        hook = self.unet.register_forward_pre_hook(
            lambda _, args, kwargs: cells.append(kwargs["sample"][:, 0].numel()), with_kwargs=True
        )
        work()
        hook.remove()
        self.largest = max(self.largest, *cells)
        return ALWAYS + PER_CELL * max(cells)

    def room(self) -> int:
        return self.bytes


def estimate(config: TrainConfig, room: int, side: int = 64) -> tuple[int | None, Card]:
    unet = tiny_unet()
    plan = plan_for(config)
    plan = replace(plan, latents=(*plan.latents[:5], torch.zeros(4, side, side)))
    with Adapter(unet, config.rank, config.lora_alpha, config.target_modules) as adapter:
        adapter.start(0)
        card = Card(unet, room)
        needed = preflight(unet, adapter, plan, config, SCHEDULE, card)
        assert all(parameter.grad is None for parameter in adapter.parameters())
        moments = 8 * sum(parameter.numel() for parameter in adapter.parameters())
        assert needed == ALWAYS + PER_CELL * config.batch_size * side * side + moments
    return needed, card


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_estimate_is_inferred_from_smaller_steps(batch_size: int) -> None:
    config = replace(CONFIG, batch_size=batch_size)
    _, card = estimate(config, 10**12)
    assert card.largest < batch_size * 64 * 64 * 0.6


def test_too_little_memory_is_told_before_the_first_step_with_the_preset_to_take(caplog: Any) -> None:
    with pytest.raises(OutOfMemory, match=r"will need about 0\.0 GB.*memory preset of 24 GB"):
        estimate(CONFIG, 10_000_000)
    assert not caplog.text
    estimate(CONFIG, 30_000_000)
    assert "If it does not fit: Use the memory preset of 24 GB" in caplog.text


def test_a_cpu_is_not_measured() -> None:
    unet = tiny_unet()
    with Adapter(unet, 4, 4.0, CONFIG.target_modules) as adapter:
        assert preflight(unet, adapter, plan_for(CONFIG), CONFIG, SCHEDULE) is None


def test_every_preset_is_a_configuration_and_needs_less_than_the_one_above() -> None:
    assert list(MEMORY) == [24, 16, 12, 8, 6]
    config, told = TrainConfig(), []
    for settings in MEMORY.values():
        told.append(advice(config))
        config = replace(config, **settings)
        assert config.samples_per_step == 2
    assert told == [f"Use the memory preset of {size} GB, or a smaller resolution." for size in MEMORY]
    assert advice(config) == "Use a smaller resolution or rank."
    for settings in PRESETS.values():
        TrainConfig(**settings)


@pytest.mark.parametrize("installed", [False, True])
def test_without_the_8_bit_optimizer_the_plain_one_is_taken_and_said(
    installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert memory_settings(6).get("optimizer", "adamw") == ("adamw8bit" if installed else "adamw")
    assert ("bitsandbytes is not installed" in caplog.text) == (not installed)
    assert MEMORY[6]["optimizer"] == "adamw8bit"
