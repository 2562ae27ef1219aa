"""A stopped run on disk: the LoRA, the optimizer and the losses so far, and where they came from."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..bases.promise import Denoiser
from ..lora.adapter import Adapter
from ..lora.file import RUN_PREFIX
from ..tensor_file import BadTensorFile, read_tensors, write_tensors
from ..types import MudiError
from .config import TrainConfig
from .optimizer import pack_state, unpack_state
from .plan import Plan

log = logging.getLogger(__name__)

_FORMAT = "mudi checkpoint 3"
"""3: noise by a sample's place in its step, DCO by the sample. A run that began otherwise would not go on as it was."""
_LOSSES = f"{RUN_PREFIX}losses"
_OPTIMIZER = f"{RUN_PREFIX}optimizer."
_VECTORS = f"{RUN_PREFIX}vectors."
_SHOWN = "shown"
_PARTS = {"unet": "the base model is another", "start": "the LoRA to start from is another"}
_SETTINGS = {
    "samples_per_step": "the number of images of a step (batch size x accumulation)",
    "segmix_prob": "the share of compositions",
    "layout": "the sizes and overlap in compositions",
    "lr_schedule": "schedule",
    "lr_warmup": "warm-up",
}
"""Settings by the words of nodes and options, where these are not the settings' own."""


class BadCheckpoint(MudiError):
    """A checkpoint that cannot be resumed from."""


def lora_fingerprint(lora: Mapping[str, Tensor] | None) -> str:
    """Tells one LoRA to start from from another; empty without one."""
    if lora is None:
        return ""
    digest = hashlib.sha256()
    for name in sorted(lora):
        digest.update(name.encode() + lora[name].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def origin_of(
    plan: Plan, denoiser: Denoiser, start: Mapping[str, Tensor] | None, config: TrainConfig
) -> dict[str, str]:
    """What a run is made of: a stopped one goes on where all of it is the same."""
    return {
        "plan": plan.plan_hash,
        "unet": denoiser.fingerprint(),
        "start": lora_fingerprint(start),
        "config": config.run_json(),
    }


def save_run(
    path: Path,
    origin: Mapping[str, str],
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
    shown: int,
) -> None:
    """Writes everything that the steps still to come depend on. ``losses``: one per step done, at least one.

    The LoRA has the names of a LoRA file, so that one can look at it, or start from it with other settings.
    ``origin``: of the run, by `origin_of`; ``shown``: the last step whose LoRA and preview of the way were given out.
    Raise `BadTensorFile`.
    """
    remembered, numbers = pack_state(optimizer)
    tensors = {f"{_OPTIMIZER}{name}": value for name, value in remembered.items()}
    tensors[_LOSSES] = torch.tensor(losses, dtype=torch.float64)
    if adapter.vectors is not None:
        tensors |= {f"{_VECTORS}{name}": value for name, value in adapter.vectors.state().items()}
    write_tensors(
        path, {**adapter.state(), **tensors}, {"format": _FORMAT, "optimizer": numbers, _SHOWN: str(shown), **origin}
    )
    log.info("wrote %s after step %d", path, len(losses))


def restore_run(
    path: Path, origin: Mapping[str, str], adapter: Adapter, optimizer: torch.optim.Optimizer
) -> tuple[list[float], int]:
    """Brings LoRA and optimizer to where the checkpoint left them; gives the losses of the steps done, and ``shown``.

    Earlier versions did not say what was shown: then the last step's is given out once more.

    Raise `BadCheckpoint` when the file is damaged, is no checkpoint, or comes from another run.
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
    shown = metadata.get(_SHOWN, "")
    return losses, min(int(shown), len(losses)) if re.fullmatch("[0-9]{1,9}", shown) else 0


def losses_so_far(path: Path) -> list[float]:
    """The losses of the steps that the checkpoint's run has done. Raise as `restore_run` does of a file."""
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
    if metadata.get("format") in ("mudi checkpoint 1", "mudi checkpoint 2"):
        raise BadCheckpoint(
            f"{path} was left by an earlier version, which drew the noise otherwise, so it cannot go on. Remove it and "
            "start anew; as a LoRA to start from it still serves."
        )
    if metadata.get("format") != _FORMAT or _LOSSES not in tensors or not all(part in metadata for part in parts):
        raise BadCheckpoint(f"{path} is not a checkpoint of this training. Give the file that a stopped run left.")
    return tensors, metadata


def _beginning(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _check_origin(path: Path, metadata: Mapping[str, str], origin: Mapping[str, str]) -> None:
    if reasons := _differences(metadata, origin):
        raise BadCheckpoint(f"{path} was made otherwise: {'; '.join(reasons)}. Use the same again, or start anew.")


def differences(path: Path, origin: Mapping[str, str]) -> list[str]:
    """What is not the same in a stopped run and in one of this origin, in words: "seed was 1, is 2".

    Raise as `restore_run` does of a file.
    """
    return _differences(_read(path)[1], origin)


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    settings = json.loads(now["config"])
    try:
        before = dict(json.loads(then["config"]))
    except (ValueError, TypeError, RecursionError):
        before = {}
    changed = [name for name in settings if before.get(name) != settings[name]]
    told = [f"{_SETTINGS.get(name, name)} was {before.get(name)!r}, is {settings[name]!r}" for name in changed]
    if len(then["unet"].split()) != len(now["unet"].split()):  # its photos may be counted in another way, too
        return [*told, "it was stopped by an earlier version of MuDI, which trained in another way"]
    if then["plan"] != now["plan"] and not changed:  # a setting changes the samples, too
        told.append("the photos, masks, captions or priors are others")
    return told + [words for part, words in _PARTS.items() if then[part] != now[part]]
