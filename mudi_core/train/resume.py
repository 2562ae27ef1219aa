"""A stopped run on disk: the LoRA, the optimizer, the losses so far, and what the run was made from."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..bases.promise import Denoiser
from ..lora.adapter import Adapter
from ..lora.reading import RUN_PREFIX
from ..lora.start_from import StartLora, fingerprint_of
from ..tensor_file import BadTensorFile, read_tensors, write_tensors
from ..types import MudiError
from .config import TrainConfig
from .optimizer import pack_state, unpack_state
from .parts import CAME_LATER
from .plan import Plan

log = logging.getLogger(__name__)

_FORMAT = "mudi checkpoint 3"
"""3: the noise depends on the place of a sample in its step, DCO on the sample. Older runs would go on differently."""
_LOSSES = f"{RUN_PREFIX}losses"
_OPTIMIZER = f"{RUN_PREFIX}optimizer."
_VECTORS = f"{RUN_PREFIX}vectors."
_SHOWN = "shown"
_PARTS = {"unet": "the base model is different", "start": "the LoRA to start from is different"}
_SETTINGS = {
    "samples_per_step": "the number of images of a step (batch size x accumulation)",
    "segmix_prob": "the share of compositions",
    "layout": "the sizes and overlap in compositions",
    "captions": "the style of the captions",
    "caption_template": "the template of the captions",
    "black_canvas": "the share of black canvases",
    "lr_schedule": "schedule",
    "lr_warmup": "warm-up",
}
"""The words for settings in nodes and options, when they differ from the names."""


class BadCheckpoint(MudiError):
    """A checkpoint that cannot be resumed."""


def origin_of(plan: Plan, denoiser: Denoiser, start: StartLora | None, config: TrainConfig) -> dict[str, str]:
    """Return what a run is made from: a stopped run can be resumed only when all of it is the same."""
    return {
        "plan": plan.plan_hash,
        "unet": denoiser.fingerprint(),
        "start": fingerprint_of(start),
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
    """Write everything that the remaining steps depend on. ``losses``: one per step done, at least one.

    The LoRA has the names of a LoRA file, so that it can be tried, or be the start of another training. ``origin``:
    from `origin_of`; ``shown``: the last step whose LoRA and preview were handed out. Raise `BadTensorFile`.
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
    """Restore LoRA and optimizer from the checkpoint; return the losses of the steps done, and ``shown``.

    Earlier versions did not save ``shown``: then the LoRA of the last step is handed out once more. Raise
    `BadCheckpoint` when the file is damaged, is not a checkpoint, or comes from another run.
    """
    tensors, metadata = _read(path)
    _check_origin(path, metadata, origin)
    try:
        adapter.load(tensors)
        if adapter.vectors is not None:
            adapter.vectors.load(_beginning(tensors, _VECTORS))
        unpack_state(optimizer, _beginning(tensors, _OPTIMIZER), metadata["optimizer"])
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise BadCheckpoint(f"{path} is damaged: {type(error).__name__} {error}. Start again without it.") from error
    losses: list[float] = tensors[_LOSSES].tolist()
    shown = metadata.get(_SHOWN, "")
    return losses, min(int(shown), len(losses)) if re.fullmatch("[0-9]{1,9}", shown) else 0


def losses_so_far(path: Path) -> list[float]:
    """Return the losses of the steps that the checkpoint's run has done. Raise as `restore_run` does for a file."""
    losses: list[float] = _read(path)[0][_LOSSES].tolist()
    return losses


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a checkpoint."""
    try:
        tensors, metadata = read_tensors(path)
    except BadTensorFile as error:
        raise BadCheckpoint(
            f"The stopped run cannot be resumed: {error} Without an intact copy, remove it and start again."
        ) from error
    parts = ("optimizer", "plan", "unet", "start", "config")
    if metadata.get("format") in ("mudi checkpoint 1", "mudi checkpoint 2"):
        raise BadCheckpoint(
            f"{path} is from an earlier version, which drew the noise differently, so it cannot be resumed. Remove it "
            "and start again; you can still use it as a LoRA to start from."
        )
    if metadata.get("format") != _FORMAT or _LOSSES not in tensors or not all(part in metadata for part in parts):
        raise BadCheckpoint(f"{path} is not a checkpoint of this training. Use the file that a stopped run left.")
    return tensors, metadata


def _beginning(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _check_origin(path: Path, metadata: Mapping[str, str], origin: Mapping[str, str]) -> None:
    if reasons := _differences(metadata, origin):
        raise BadCheckpoint(
            f"{path} is from a different run: {'; '.join(reasons)}. Use the same settings, or start again."
        )


def differences(path: Path, origin: Mapping[str, str]) -> list[str]:
    """Return the differences between a stopped run and a run of this origin, in words: "seed was 1, is 2".

    Raise as `restore_run` does for a file.
    """
    return _differences(_read(path)[1], origin)


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    settings = {**CAME_LATER, **json.loads(now["config"])}
    try:
        before = {**CAME_LATER, **json.loads(then["config"])}
    except (ValueError, TypeError, RecursionError):
        before = {}
    changed = [name for name in settings if before.get(name) != settings[name]]
    found = [f"{_SETTINGS.get(name, name)} was {before.get(name)!r}, is {settings[name]!r}" for name in changed]
    if len(then["unet"].split()) != len(now["unet"].split()):  # its plan may count photos in another way, too
        return [*found, "it was stopped in an earlier version of MuDI, which trained differently"]
    if then["plan"] != now["plan"] and not changed:  # a changed setting also changes the samples
        found.append("the photos, masks, captions or priors are different")
    return found + [words for part, words in _PARTS.items() if then[part] != now[part]]
