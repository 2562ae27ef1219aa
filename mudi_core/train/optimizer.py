"""How gradients move the LoRA: the optimizers, the learning rate over the steps, and their state as plain tensors."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..types import MudiError
from .parts import Learning

_PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


class MissingOptimizer(MudiError):
    """An optimizer whose package is not installed or does not work here."""


def make_optimizer(
    learning: Learning, parameters: Sequence[nn.Parameter], vectors: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer of the settings; ``vectors``: those of tokens. Raise `MissingOptimizer`."""
    common: dict[str, Any] = {
        "lr": learning.learning_rate,
        "betas": learning.betas,
        "weight_decay": learning.weight_decay,
    }
    token_pace = learning.token_learning_rate / learning.learning_rate
    groups = [{"params": list(part), "pace": pace} for part, pace in ((parameters, 1.0), (vectors, token_pace)) if part]
    if learning.optimizer == "adamw":
        return torch.optim.AdamW(groups, **common)
    package = _PACKAGES[learning.optimizer]
    try:
        module = importlib.import_module(package)
        if learning.optimizer == "adamw8bit":
            kind: Any = module.optim.AdamW8bit
        else:
            kind = module.Prodigy
            common |= {"use_bias_correction": True, "safeguard_warmup": learning.lr_warmup > 0}
        optimizer: torch.optim.Optimizer = kind(groups, **common)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MissingOptimizer(
            f"Optimizer '{learning.optimizer}' needs the package {package}, which does not work here ({reason}). "
            f"Install it (pip install {package}), or use the optimizer 'adamw'."
        ) from error
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning: Learning, step: int, steps: int) -> None:
    """Set the learning rate for step ``step`` of ``steps``, counted from 0; token vectors have their own rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(learning, step, steps) * group["pace"]


def learning_rate(learning: Learning, step: int, steps: int) -> float:
    """Return the learning rate of step ``step`` of ``steps``, counted from 0.

    It rises over ``lr_warmup`` steps, then follows ``lr_schedule``. The last step always has an effect: "linear" and
    "cosine" reach 0 where the next step would be.
    """
    if step < learning.lr_warmup:
        return learning.learning_rate * ((step + 1) / learning.lr_warmup)
    if learning.lr_schedule == "constant":
        return learning.learning_rate
    progress = (step - learning.lr_warmup) / (steps - learning.lr_warmup)
    factor = 1 - progress if learning.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return learning.learning_rate * factor


def pack_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], str]:
    """Return the state of an optimizer: tensors by name, on the CPU, and its plain numbers as JSON."""
    state = optimizer.state_dict()
    remembered = {
        **{f"state.{i}": values for i, values in state["state"].items()},
        **{f"group.{i}": {k: v for k, v in group.items() if k != "params"} for i, group in _numbered(state)},
    }
    tensors, numbers = {}, {}
    for name, value in _leaves("", remembered):
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu()
        else:
            numbers[name] = value
    return tensors, json.dumps(numbers, sort_keys=True)


def unpack_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: str) -> None:
    """Restore a state from `pack_state` in an optimizer of the same kind and parameters."""
    new = optimizer.state_dict()
    groups = dict(_numbered(new))
    state: dict[int, dict[str, Any]] = {i: {} for group in groups.values() for i in group["params"]}
    for key, value in [*tensors.items(), *json.loads(numbers).items()]:
        kind, index, *path, name = key.split(".")
        place = state[int(index)] if kind == "state" else groups[int(index)]
        for step in path:
            place = place.setdefault(step, {})
        place[name] = tuple(value) if isinstance(place.get(name), tuple) else value  # JSON has only lists
    optimizer.load_state_dict({"state": state, "param_groups": list(groups.values())})


def _numbered(state: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(state["param_groups"]))


def _leaves(place: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield all values with their paths; 8-bit optimizers nest theirs."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{place}{name}.", value)
        else:
            yield f"{place}{name}", value
