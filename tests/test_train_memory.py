"""The memory presets, and the estimate before the first step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_train_loop import CONFIG, plan_for
from tiny_sdxl import denoiser, tiny_unet
from torch.utils.checkpoint import noop_context_fn

from mudi_core.lora.adapter import Adapter
from mudi_core.train.config import PRESETS, TrainConfig
from mudi_core.train.memory import MEMORY, OutOfMemory, advice, estimate, memory_settings, preflight
from mudi_core.train.step import Trainee

ALWAYS = 5_000_000
PER_CELL = {"off": 4_000, "selective": 3_000, "full": 2_000}
"""Bytes: what a stand-in card has in use before a step, and what it takes for each of a batch's latents."""


def twice(unet: Any) -> list[Any]:
    """The blocks that are computed twice."""
    return [m for m in unet.modules() if "forward" in vars(m) and not isinstance(m, torch.nn.Linear)]


class Card:
    """A card whose use grows with what the U-Net sees, and that has so many bytes."""

    def __init__(self, unet: Any, room: int, needs: int | None = None) -> None:
        """``needs``: so many bytes does a step need before it is refused; None: it is not."""
        self.unet, self.bytes, self.needs, self.seen = unet, room, needs, dict[str, int]()

    def peak_of(self, work: Callable[[], None]) -> int:
        cells: list[int] = []
        hook = self.unet.register_forward_pre_hook(
            lambda _, args, kwargs: cells.append(kwargs["sample"][:, 0].numel()), with_kwargs=True
        )
        work()
        hook.remove()
        kept = {vars(block)["forward"].keywords["context_fn"] for block in twice(self.unet)}
        way = "off" if not kept else "full" if kept == {noop_context_fn} else "selective"
        self.seen[way] = max(cells)
        peak = ALWAYS + PER_CELL[way] * max(cells)
        if self.needs is not None and peak > self.needs:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return peak

    def room(self) -> int:
        return self.bytes


@contextmanager
def about_to_train(config: TrainConfig, side: int = 64) -> Iterator[Trainee]:
    """What is asked before a run whose largest sample is of so many latents."""
    unet = tiny_unet()
    plan = plan_for(config)
    plan = replace(plan, latents=(*plan.latents[:5], torch.zeros(4, side, side)))
    asked = denoiser(unet)
    with (
        Adapter.new(asked, config.learning.rank, config.learning.lora_alpha, config.learning.target_modules) as adapter,
        asked.ready(bf16=False),
    ):
        adapter.start(0)
        yield Trainee(asked, adapter, plan, config)
        assert all(parameter.grad is None for parameter in adapter.parameters())
        assert not twice(unet)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_estimate_is_inferred_from_smaller_steps(batch_size: int) -> None:
    with about_to_train(CONFIG.but(batch_size=batch_size)) as asked:
        card = Card(asked.denoiser.network, 10**12)
        needed = estimate(asked, card)
        moments = 8 * sum(parameter.numel() for parameter in asked.adapter.parameters())
    assert needed == ALWAYS + PER_CELL["off"] * batch_size * 64 * 64 + moments
    assert card.seen["off"] < batch_size * 64 * 64 * 0.6


def test_too_little_memory_is_told_before_the_first_step_with_the_preset_to_take(caplog: Any) -> None:
    with about_to_train(CONFIG.but(gradient_checkpointing="off")) as asked:
        with pytest.raises(OutOfMemory, match=r"will need about 0\.0 GB.*memory preset of 24 GB"):
            preflight(asked, Card(asked.denoiser.network, 10_000_000))
        with pytest.raises(OutOfMemory, match="Not even a small step fits.*memory preset of 24 GB"):
            preflight(asked, Card(asked.denoiser.network, 10_000_000, needs=ALWAYS))
        assert not caplog.text
        preflight(asked, Card(asked.denoiser.network, 38_000_000))
        assert "If it does not fit: Use the memory preset of 24 GB" in caplog.text


@pytest.mark.parametrize(
    ("room", "way"), [(50_000_000, "off"), (38_000_000, "selective"), (30_000_000, "full"), (22_000_000, "full")]
)
@pytest.mark.parametrize("refuses", [False, True])
def test_as_little_is_computed_twice_as_the_card_allows(room: int, way: str, refuses: bool) -> None:
    assert CONFIG.fit.gradient_checkpointing == "auto"
    with about_to_train(CONFIG) as asked:
        card = Card(asked.denoiser.network, room, needs=room if refuses else None)
        assert preflight(asked, card).fit.gradient_checkpointing == way
        assert list(card.seen)[-1] == way


def test_a_cpu_is_not_measured() -> None:
    with about_to_train(CONFIG) as asked:
        assert preflight(asked) == CONFIG.but(gradient_checkpointing="off")
        full = CONFIG.but(gradient_checkpointing="full")
        assert preflight(replace(asked, config=full)) == full


def test_every_preset_is_a_configuration_and_needs_less_than_the_one_above() -> None:
    assert list(MEMORY) == [24, 16, 12, 8, 6]
    config, told = TrainConfig(), []
    for settings in MEMORY.values():
        told.append(advice(config))
        config = config.but(**settings)
        assert config.samples.samples_per_step == 2
    assert told == [f"Use the memory preset of {size} GB, or a smaller resolution." for size in MEMORY]
    assert advice(config) == "Use a smaller resolution or rank."
    for settings in PRESETS.values():
        TrainConfig.of(**settings)


@pytest.mark.parametrize("installed", [False, True])
def test_without_the_8_bit_optimizer_the_plain_one_is_taken_and_said(
    installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert memory_settings(6).get("optimizer", "adamw") == ("adamw8bit" if installed else "adamw")
    assert ("bitsandbytes is not installed" in caplog.text) == (not installed)
    assert MEMORY[6]["optimizer"] == "adamw8bit"
