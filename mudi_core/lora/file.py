"""The LoRA file that ComfyUI, diffusers and the web UIs read.

It has kohya's names: ``lora_unet_<path of the linear layer with _ for .>.lora_down.weight``, ``.lora_up.weight`` and an
explicit ``.alpha`` for every layer. Without the alphas some programs silently use another scale.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..tensor_file import read_tensors, write_tensors
from ..types import MudiError

log = logging.getLogger(__name__)

LoraState = dict[str, Tensor]
"""The tensors of a LoRA file by kohya name."""

RUN_PREFIX = "run."
"""The prefix of everything but the LoRA in the file of a stopped run."""
PREFIX = "lora_unet_"
PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")
"""Endings of the three tensors of a layer: down ``[rank, in]``, up ``[out, rank]``, alpha ``[]``."""
_WAYS = {"input": "down", "output": "up"}


class BadLora(MudiError):
    """A LoRA file that cannot be written or read, or that does not fit the model."""


def kohya_name(module: str) -> str:
    """Turn ``down_blocks.1.attentions.0...to_q`` into ``lora_unet_down_blocks_1_attentions_0_..._to_q``."""
    return PREFIX + module.replace(".", "_")


_STABILITY_BLOCK = re.compile(r"lora_unet_(input|middle|output)_blocks?_(?:(\d+)_)?(\d)_")
"""The start of a layer's name as kohya's SDXL tools write it: ``lora_unet_input_blocks_4_1_...``."""


def _our_name(key: str) -> str:
    """Translate Stability's names of SDXL's blocks, as kohya's SDXL tools write them; return other names unchanged.

    SDXL (and SD) has two residual blocks and a downsampler (three residual blocks on the way up) per level, each with
    its attention at place 1. The way down starts with a convolution that belongs to no level.
    """
    match = _STABILITY_BLOCK.match(key)
    if match is None or match[3] != "1":
        return key
    way, number = match[1], int(match[2] or 0)
    level, place = divmod(number - 1 if way == "input" else number, 3)
    block = "mid_block_attentions_0" if way == "middle" else f"{_WAYS[way]}_blocks_{level}_attentions_{place}"
    return f"{PREFIX}{block}_{key[match.end() :]}"


def save_lora(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Write the file, read it back, compare every key and value, and only then give it its name.

    Raise `BadLora` when a value does not fit ``dtype`` and `BadTensorFile` when the file cannot be written.
    """
    stored = {key: value.float() if key.endswith(PARTS[2]) else value.to(dtype) for key, value in state.items()}
    for key, value in stored.items():
        if not value.isfinite().all():
            raise BadLora(
                f"{key} has values that {dtype} cannot hold. The training has diverged: lower the learning rate."
            )
    write_tensors(path, stored, metadata)
    log.info("wrote %s: %d layers", path, len(stored) // len(PARTS))


def load_lora(path: Path) -> tuple[LoraState, dict[str, str]]:
    """Return the tensors (float32) and the metadata of a LoRA file with kohya's names.

    For the file of a stopped run, return the LoRA so far. Raise `BadLora` or `BadTensorFile`.
    """
    tensors, metadata = read_tensors(path)
    state = {_our_name(key): value.float() for key, value in tensors.items() if not key.startswith(RUN_PREFIX)}
    names = {key[: -len(part)] for key in state for part in PARTS if key.endswith(part)}
    strange = [key for key in state if not key.startswith(PREFIX) or not key.endswith(PARTS)]
    missing = [name + part for name in sorted(names) for part in PARTS if name + part not in state]
    if strange or missing or not state:
        example = f"it has '{strange[0]}'" if strange else f"'{missing[0]}' is missing" if missing else "it is empty"
        raise BadLora(
            f"{Path(path).name} is not a LoRA of a U-Net with kohya's names: {example}. "
            "Use a file that this project's train command wrote."
        )
    for name in names:
        down, up, alpha = (state[name + part] for part in PARTS)
        if down.ndim != 2 or up.ndim != 2 or alpha.numel() != 1 or down.shape[0] != up.shape[1] or not down.numel():
            raise BadLora(
                f"{Path(path).name} is damaged or no LoRA of linear layers: the matrices of {name} are "
                f"{list(down.shape)} and {list(up.shape)}. Use a file that this project's train command wrote."
            )
    return state, metadata
