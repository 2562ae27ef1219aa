"""A stopped run on disk: the LoRA, the optimizer and the losses so far, and where they came from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..types import MudiError
from .tensor_file import read_tensors, write_tensors

log = logging.getLogger(__name__)

_FORMAT = "mudi checkpoint 1"


class BadCheckpoint(MudiError):
    """A checkpoint that cannot be resumed from."""


def fingerprint(unet: Any) -> str:
    """Tells one U-Net from another by the names, shapes, types and first values of its weights."""
    digest = hashlib.sha256()
    for name, parameter in unet.named_parameters():
        first = parameter.detach().reshape(-1)[:8].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + first)
    return digest.hexdigest()


def save_run(
    path: Path,
    origin: Mapping[str, str],
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
) -> None:
    """Writes everything that the steps still to come depend on. ``losses``: one per step done, at least one.

    ``origin``: what the run is made of, by the names "plan", "unet" and "config" (JSON). Raises `BadTensorFile`.
    """
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for i, parameter in enumerate(parameters):
        values: dict[str, Tensor] = {"value": parameter.detach(), **optimizer.state[parameter]}
        tensors.update({f"{i}.{name}": value.cpu() for name, value in values.items()})
    write_tensors(path, tensors, {"format": _FORMAT, **origin})
    log.info("wrote %s after step %d", path, len(losses))


def restore_run(
    path: Path,
    origin: Mapping[str, str],
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> list[float]:
    """Brings parameters and optimizer to where the checkpoint left them; gives the losses of the steps done.

    Raises `BadCheckpoint` when the file is no checkpoint or comes from another run, `BadTensorFile` when it is damaged.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise BadCheckpoint(f"{path} is not a checkpoint of this training. Give the file that a stopped run left.")
    _check_origin(path, metadata, origin)
    losses: list[float] = tensors.pop("losses").tolist()
    state: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(parameters))}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state[int(index)][name] = value
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(state[i].pop("value"))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return losses


def _check_origin(path: Path, metadata: Mapping[str, str], origin: Mapping[str, str]) -> None:
    if metadata["config"] != origin["config"]:
        now, then = json.loads(origin["config"]), json.loads(metadata["config"])
        changed = [f"{name} was {then.get(name)!r}, is {now[name]!r}" for name in now if then.get(name) != now[name]]
        raise BadCheckpoint(f"{path} was made with other settings: {'; '.join(changed)}. Use the same, or start anew.")
    for key, what in (("plan", "with other photos, masks or captions"), ("unet", "on another base model")):
        if metadata[key] != origin[key]:
            raise BadCheckpoint(f"{path} was made {what}, so it cannot go on here. Use the same ones, or start anew.")
