"""The memory of a graphics card that a step needs: presets by card size, an estimate before the first step, advice.

The presets are calculated for SDXL at 1024 px, operator by operator (`benchmarks/train_memory.py`), and not yet
measured on a card.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, get_args

import torch

from ..bases.quantize import BASE_WEIGHTS
from ..types import MudiError
from .config import TrainConfig
from .parts import GradientCheckpointing
from .recompute import checkpointing
from .step import Trainee, batch_loss

log = logging.getLogger(__name__)

_ALONE = {"precision": "bf16", "batch_size": 1, "accumulation": 2}
_SMALL = {**_ALONE, "gradient_checkpointing": "full"}
MEMORY: dict[int, dict[str, Any]] = {
    24: {"precision": "bf16", "gradient_checkpointing": "off"},
    16: {"precision": "bf16", "gradient_checkpointing": "selective"},
    12: {**_ALONE, "gradient_checkpointing": "selective"},
    8: {**_SMALL, "base_weights": "int8"},
    6: {**_SMALL, "base_weights": "nf4", "optimizer": "adamw8bit"},
}
"""Settings by gigabytes of a card. Each has at most two samples per batch, as in the paper."""

MARGIN = 0.15
"""Largest expected error of the estimate, as a share of it."""
_PROBES = (1 / 2, 3 / 4)
"""Sides of the small steps from which the memory of the real one is calculated, as shares of its side. In much smaller
steps the peak is at another moment."""


class OutOfMemory(MudiError):
    """A step needs more memory than there is."""


class UnknownMemory(MudiError):
    """A card size without a preset."""


class Meter(Protocol):
    """Measures the memory of a card, in bytes."""

    def peak_of(self, work: Callable[[], None]) -> int:
        """Run ``work`` and return the most bytes in use at once meanwhile."""

    def room(self) -> int:
        """Return all bytes that this process can have, including those it already has."""


class CudaMeter:
    """The `Meter` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def peak_of(self, work: Callable[[], None]) -> int:
        """Run ``work`` and return the most bytes in use at once meanwhile."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device)

    def room(self) -> int:
        """Return all bytes that this process can have, including those it already has."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device)


def check_card(gigabytes: object) -> None:
    """Raise `UnknownMemory` unless there is a preset for a card of this size."""
    if type(gigabytes) is not int or gigabytes not in MEMORY:
        sizes = ", ".join(str(size) for size in sorted(MEMORY))
        raise UnknownMemory(
            f"There is no memory preset for a card of {gigabytes!r} GB; there are: {sizes}. Use the largest that fits "
            "your card."
        )


def memory_settings(gigabytes: int) -> dict[str, Any]:
    """Return the settings of a `MEMORY` preset, with the plain optimizer when the 8-bit one is not installed.

    Raise `UnknownMemory`.
    """
    check_card(gigabytes)
    settings = dict(MEMORY[gigabytes])
    if settings.get("optimizer") == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        log.warning(
            "The package bitsandbytes is not installed, so the optimizer's state stays in 32 bits: about 0.3 GB more."
        )
        del settings["optimizer"]
    return settings


def advice(config: TrainConfig) -> str:
    """Return a sentence with the largest memory preset that needs less than these settings."""
    have = _sizes(config)
    for gigabytes, settings in MEMORY.items():
        wants = _sizes(config.but(**settings))
        if wants != have and all(want <= size for want, size in zip(wants, have, strict=True)):
            return f"Use the memory preset of {gigabytes} GB, or a smaller resolution."
    return "Use a smaller resolution or rank."


def _sizes(config: TrainConfig) -> list[int]:
    """Return how much memory each setting needs that a preset changes, as its place among its choices."""
    from_largest = [
        (("fp32", "bf16"), config.learning.precision),
        (BASE_WEIGHTS, config.learning.base_weights),
        (get_args(GradientCheckpointing), config.fit.gradient_checkpointing),
        (("prodigy", "adamw", "adamw8bit"), config.learning.optimizer),
    ]
    return [config.fit.batch_size, *(-choices.index(choice) for choices, choice in from_largest)]


def preflight(trainee: Trainee, meter: Meter | None = None) -> TrainConfig:
    """Return the settings with which the largest step of a run fits into the memory of the card.

    When gradient checkpointing is "auto", choose the fastest kind that fits. Raise `OutOfMemory` when the `estimate` is
    over the available memory by more than `MARGIN`, and warn when it is close. A CPU is not measured.
    """
    config, device = trainee.config, trainee.denoiser.device
    ways: tuple[GradientCheckpointing, ...] = (config.fit.gradient_checkpointing,)
    if config.fit.gradient_checkpointing == "auto":
        ways = ("off", "selective", "full")
    if meter is None:
        if device.type != "cuda":
            return config.but(gradient_checkpointing=ways[0])
        meter = CudaMeter(device)
    room = meter.room()
    for way in ways:
        config = config.but(gradient_checkpointing=way)
        with checkpointing(trainee.denoiser, way):
            needed = estimate(replace(trainee, config=config), meter)
        if needed is not None and needed <= room * (1 - MARGIN):
            words = "A step will need about %.1f GB of the card's memory, with gradient checkpointing '%s'."
            log.info(words, needed / 2**30, way)
            return config
    if needed is None:
        raise OutOfMemory(f"Not even a small step fits into this card's memory. {advice(config)}")
    words = f"A step will need about {needed / 2**30:.1f} GB of the card's memory; {room / 2**30:.1f} GB are available."
    if needed > room * (1 + MARGIN):
        raise OutOfMemory(f"{words} {advice(config)}")
    log.warning("%s If it does not fit: %s", words, advice(config))
    return config


def estimate(trainee: Trainee, meter: Meter) -> int | None:
    """Return the bytes that the largest step of a run needs at its peak; None when not even a smaller step fits.

    The memory of a step grows with its pixels, on top of what is always there (weights, LoRA, gradients): two smaller
    steps are measured to calculate it. The state of the optimizer is added.
    """
    adapter = trainee.adapter
    largest = max(math.prod(latent.shape[-2:]) for latent in trainee.plan.latents)
    sides = [max(8 * number, int(share * largest**0.5) // 8 * 8) for number, share in enumerate(_PROBES, 1)]
    sizes = [side * side for side in sides]
    try:
        peaks = [meter.peak_of(partial(_try, trainee, side)) for side in sides]
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        for parameter in adapter.parameters():
            parameter.grad = None
    slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    state = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}[trainee.config.learning.optimizer]
    moments = state * sum(parameter.numel() for parameter in adapter.parameters())
    return max(peaks[1], round(peaks[1] + slope * (largest - sizes[1]))) + moments


def _try(trainee: Trainee, side: int) -> None:
    """Run the forward and backward pass of the first batch, with ``side`` x ``side`` latents."""
    plan = trainee.plan
    inner, count = plan.latents[0].shape[:-2], len(plan.latents)
    small = replace(
        plan,
        latents=(torch.zeros(*inner, side, side),) * count,
        masks=(torch.ones(1, side, side),) * count,
    )
    for parameter in trainee.adapter.parameters():  # gradients of an earlier batch may be there
        parameter.grad = torch.zeros_like(parameter) if trainee.config.accumulation > 1 else None
    loss, _ = batch_loss(replace(trainee, plan=small), 0)
    loss.backward()  # type: ignore[no-untyped-call]
