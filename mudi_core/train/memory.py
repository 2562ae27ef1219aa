"""What a step needs of a graphics card: presets by its size, an estimate before the first step, what to do if too much.

The presets and the estimate's margin are reckoned for SDXL at 1024 px, not yet measured on a card.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch

from ..types import MudiError
from .config import TrainConfig
from .lora import Adapter
from .loss import NoiseSchedule
from .plan import Plan
from .quantize import BASE_WEIGHTS
from .step import batch_loss, device_of

log = logging.getLogger(__name__)

_LESS = {"precision": "bf16", "gradient_checkpointing": True}
_ALONE = {**_LESS, "batch_size": 1, "accumulation": 2}
MEMORY: dict[int, dict[str, Any]] = {
    24: {"precision": "bf16"},
    16: _LESS,
    12: _ALONE,
    8: {**_ALONE, "base_weights": "int8"},
    6: {**_ALONE, "base_weights": "nf4", "optimizer": "adamw8bit"},
}
"""Settings by gigabytes of a card. Each takes the samples of a step two by two at most, as the paper does."""

MARGIN = 0.15
"""How far the estimate may be from the truth, as a share of it."""
_PROBES = (24, 40)
"""Sides, in latents, of the small steps from which the size of the real one is inferred."""


class OutOfMemory(MudiError):
    """A step needs more memory than there is."""


class Meter(Protocol):
    """Measures a card's memory, in bytes."""

    def peak_of(self, work: Callable[[], None]) -> int:
        """The most that was in use at once while ``work`` ran."""

    def room(self) -> int:
        """All that this process can have, what it already holds included."""


class CudaMeter:
    """The `Meter` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def peak_of(self, work: Callable[[], None]) -> int:
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device)

    def room(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device)


def memory_settings(gigabytes: int) -> dict[str, Any]:
    """The settings of a `MEMORY` preset, with the plain optimizer where that in 8 bits is not installed."""
    settings = dict(MEMORY[gigabytes])
    if settings.get("optimizer") == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        log.warning(
            "The package bitsandbytes is not installed, so the optimizer's state is kept in 32 bits: some 0.3 GB more."
        )
        del settings["optimizer"]
    return settings


def advice(config: TrainConfig) -> str:
    """The largest memory preset that needs less than these settings, in a sentence."""

    def at_most(name: str, value: Any) -> bool:
        have = getattr(config, name)
        if name == "base_weights":
            return BASE_WEIGHTS.index(have) >= BASE_WEIGHTS.index(value)
        return bool(have <= value if name == "batch_size" else name == "accumulation" or have == value)

    for gigabytes, settings in MEMORY.items():
        if not all(at_most(name, value) for name, value in settings.items()):
            return f"Use the memory preset of {gigabytes} GB, or a smaller resolution."
    return "Use a smaller resolution or rank."


def preflight(
    unet: Any, adapter: Adapter, plan: Plan, config: TrainConfig, schedule: NoiseSchedule, meter: Meter | None = None
) -> int | None:
    """The bytes that the largest step of a run will need at its peak, inferred from two small ones; None on a CPU.

    What a step keeps grows with its pixels and stands on what is always there (weights, LoRA, gradients); the
    optimizer's state is added. Raises `OutOfMemory` when that is more than there is by over `MARGIN`, and warns when it
    is close.
    """
    device = device_of(unet)
    if meter is None:
        if device.type != "cuda":
            return None
        meter = CudaMeter(device)
    largest = max(latent[0].numel() for latent in plan.latents)
    sizes = [side * side for side in _PROBES]
    try:
        peaks = [meter.peak_of(partial(_try, unet, adapter, plan, config, schedule, side)) for side in _PROBES]
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"Not even a small step fits into this card's memory. {advice(config)}") from error
    slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    state = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}[config.optimizer]
    moments = state * sum(parameter.numel() for parameter in adapter.parameters())
    needed = max(peaks[1], round(peaks[1] + slope * (largest - sizes[1]))) + moments
    room = meter.room()
    words = f"A step will need about {needed / 2**30:.1f} GB of the card's memory; {room / 2**30:.1f} GB can be had."
    if needed > room * (1 + MARGIN):
        raise OutOfMemory(f"{words} {advice(config)}")
    if needed > room * (1 - MARGIN):
        log.warning("%s If it does not fit: %s", words, advice(config))
    return needed


def _try(unet: Any, adapter: Adapter, plan: Plan, config: TrainConfig, schedule: NoiseSchedule, side: int) -> None:
    """The forward and backward pass of the first batch, in ``side`` x ``side`` latents; its gradients are dropped."""
    channels = plan.latents[0].shape[0]
    count = len(plan.latents)
    small = replace(
        plan,
        latents=(torch.zeros(channels, side, side),) * count,
        masks=(torch.ones(1, side, side),) * count,
    )
    loss, _ = batch_loss(unet, adapter, small, config, schedule, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter in adapter.parameters():
        parameter.grad = None
