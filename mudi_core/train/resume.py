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
from .lora import RUN_PREFIX, Adapter
from .optimizer import pack_state, unpack_state
from .tensor_file import BadTensorFile, read_tensors, write_tensors

log = logging.getLogger(__name__)

_FORMAT = "mudi checkpoint 2"
_LOSSES = f"{RUN_PREFIX}losses"
_OPTIMIZER = f"{RUN_PREFIX}optimizer."
_VECTORS = f"{RUN_PREFIX}vectors."
_START = "from another LoRA to start with"


class BadCheckpoint(MudiError):
    """A checkpoint that cannot be resumed from."""


def fingerprint(unet: Any) -> str:
    """Tells one U-Net from another by the names, shapes, types and first values of its weights."""
    digest = hashlib.sha256()
    for name, parameter in unet.named_parameters():
        first = parameter.detach().reshape(-1)[:8].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + first)
    return digest.hexdigest()


def lora_fingerprint(lora: Mapping[str, Tensor] | None) -> str:
    """Tells one LoRA to start from from another; empty without one."""
    if lora is None:
        return ""
    digest = hashlib.sha256()
    for name in sorted(lora):
        digest.update(name.encode() + lora[name].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_run(
    path: Path, origin: Mapping[str, str], adapter: Adapter, optimizer: torch.optim.Optimizer, losses: Sequence[float]
) -> None:
    """Writes everything that the steps still to come depend on. ``losses``: one per step done, at least one.

    The LoRA has the names of a LoRA file, so that one can look at it, or start from it with other settings.
    ``origin``: what the run is made of, by the names "plan", "unet", "start" and "config" (JSON). Raises
    `BadTensorFile`.
    """
    remembered, numbers = pack_state(optimizer)
    tensors = {f"{_OPTIMIZER}{name}": value for name, value in remembered.items()}
    tensors[_LOSSES] = torch.tensor(losses, dtype=torch.float64)
    if adapter.vectors is not None:
        tensors |= {f"{_VECTORS}{name}": value for name, value in adapter.vectors.state().items()}
    write_tensors(path, {**adapter.state(), **tensors}, {"format": _FORMAT, "optimizer": numbers, **origin})
    log.info("wrote %s after step %d", path, len(losses))


def restore_run(
    path: Path, origin: Mapping[str, str], adapter: Adapter, optimizer: torch.optim.Optimizer
) -> list[float]:
    """Brings LoRA and optimizer to where the checkpoint left them; gives the losses of the steps done.

    Raises `BadCheckpoint` when the file is damaged, is no checkpoint, or comes from another run.
    """
    tensors, metadata = _read(path)
    _check_origin(path, metadata, origin)
    try:
        adapter.load(tensors)
        if adapter.vectors is not None:
            adapter.vectors.load(_beginning(tensors, _VECTORS))
        unpack_state(optimizer, _beginning(tensors, _OPTIMIZER), metadata["optimizer"])
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise BadCheckpoint(f"{path} is damaged: {type(error).__name__} {error}. Start anew without it.") from error
    losses: list[float] = tensors[_LOSSES].tolist()
    return losses


def losses_so_far(path: Path) -> list[float]:
    """The losses of the steps that the checkpoint's run has done. Raises as `restore_run` does of a file."""
    losses: list[float] = _read(path)[0][_LOSSES].tolist()
    return losses


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a checkpoint."""
    try:
        tensors, metadata = read_tensors(path)
    except BadTensorFile as error:
        raise BadCheckpoint(
            f"The stopped run cannot go on: {error} Where there is no whole copy, remove it and start anew."
        ) from error
    parts = ("optimizer", "plan", "unet", "start", "config")
    if metadata.get("format") != _FORMAT or _LOSSES not in tensors or not all(part in metadata for part in parts):
        raise BadCheckpoint(f"{path} is not a checkpoint of this training. Give the file that a stopped run left.")
    return tensors, metadata


def _beginning(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _check_origin(path: Path, metadata: Mapping[str, str], origin: Mapping[str, str]) -> None:
    if metadata["config"] != origin["config"]:
        now = json.loads(origin["config"])
        try:
            then = dict(json.loads(metadata["config"]))
        except (ValueError, TypeError, RecursionError):
            then = {}
        changed = [f"{name} was {then.get(name)!r}, is {now[name]!r}" for name in now if then.get(name) != now[name]]
        raise BadCheckpoint(f"{path} was made with other settings: {'; '.join(changed)}. Use the same, or start anew.")
    reasons = {"plan": "with other photos, masks or captions", "unet": "on another base model", "start": _START}
    for key, what in reasons.items():
        if metadata[key] != origin[key]:
            raise BadCheckpoint(f"{path} was made {what}, so it cannot go on here. Use the same ones, or start anew.")
