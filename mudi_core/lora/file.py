"""The LoRA file that ComfyUI, diffusers and the web UIs read.

It has kohya's names: ``lora_unet_<path of the linear layer with _ for .>.lora_down.weight``, ``.lora_up.weight`` and an
explicit ``.alpha`` for every layer. Without the alphas some programs silently use another scale. SDXL's paths are those
of Stability's code (``input_blocks_4_1_...``) as in kohya's own files, since kohya's scripts find no others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..tensor_file import write_tensors
from .change import ALPHA, DOWN, MID, UP
from .change import BadLora as BadLora
from .names import TEXT, UNET, Style, styled
from .reading import Lora, read_lora

log = logging.getLogger(__name__)

LoraState = dict[str, Tensor]
"""The tensors of a LoRA file by kohya name."""

PARTS = tuple(f".{part}" for part in (DOWN, UP, ALPHA))
"""Endings of the three tensors of a layer: down ``[rank, in]``, up ``[out, rank]``, alpha ``[]``."""


def kohya_name(module: str) -> str:
    """Turn ``down_blocks.1.attentions.0...to_q`` into ``lora_unet_down_blocks_1_attentions_0_..._to_q``."""
    return UNET + module.replace(".", "_")


def save_lora(
    path: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
    style: Style = "diffusers",
) -> None:
    """Write the file, read it back, compare every key and value, and only then give it its name.

    ``style``: how the file names the layers, which have our names in ``state``.
    Raise `BadLora` when a value does not fit ``dtype`` and `BadTensorFile` when the file cannot be written.
    """
    stored = {key: value.float() if key.endswith(PARTS[2]) else value.to(dtype) for key, value in state.items()}
    for key, value in stored.items():
        if not value.isfinite().all():
            raise BadLora(
                f"{key} has values that {dtype} cannot hold. The training has diverged: lower the learning rate."
            )
    named = {}
    for key, value in stored.items():
        layer, part = key.split(".", 1)
        named[f"{styled(layer, style)}.{part}"] = value
    write_tensors(path, named, metadata)
    log.info("wrote %s: %d layers", path, len(stored) // len(PARTS))


def write_in_diffusers_form(path: Path, source: Path, layers: Mapping[str, str]) -> None:
    """Write a LoRA file once more, with the names that diffusers reads where it does not read kohya's.

    ``source``: the file with kohya's names; ``layers``: the paths of the network's layers by those names. A layer has
    ``diffusion_model.<path>.lora_A.weight`` and ``.lora_B.weight``, which alpha / rank is multiplied into, since
    diffusers refuses an alpha there. ComfyUI reads this form, too. Raise `BadLora` or `BadTensorFile`.
    """
    state, metadata = load_lora(source)
    stored = {}
    for name in (key.removesuffix(PARTS[0]) for key in state if key.endswith(PARTS[0])):
        if name not in layers:
            raise BadLora(f"{source.name} has a layer that this model does not have: {name}. Use the model it is for.")
        down, up, alpha = (state[name + part] for part in PARTS)
        stored[f"diffusion_model.{layers[name]}.lora_A.weight"] = down.half()
        stored[f"diffusion_model.{layers[name]}.lora_B.weight"] = (up * (alpha / len(down))).half()
    if not all(value.isfinite().all() for value in stored.values()):
        raise BadLora(f"{source.name} has values that are too large for {path.name}. Lower the learning rate.")
    write_tensors(path, stored, metadata)
    log.info("wrote %s: %d layers", path, len(stored) // 2)


def load_lora(path: Path) -> tuple[LoraState, dict[str, str]]:
    """Return the tensors (float32) and the metadata of a LoRA on linear layers of a network, from any program's file.

    For the file of a stopped run, return the LoRA so far. Raise `BadLora` or `BadTensorFile`.
    """
    lora = read_lora(path)
    return state_of(lora), dict(lora.about)


def state_of(lora: Lora) -> LoraState:
    """Return a LoRA on linear layers of a network as tensors by kohya name.

    Raise `BadLora` where it changes anything else, or in a way that is no product of two matrices.
    """
    if not is_linear(lora):
        kinds = ", ".join(f"{count} as {kind}" for kind, count in lora.kinds().items())
        text = sum(one.startswith(TEXT) for one in lora.changes)
        raise BadLora(
            f"{lora.name} changes more than linear layers of the network, or not by two matrices each ({kinds}; "
            f"{text} of them in the text encoders; {len(lora.unread)} other tensors). Load it in ComfyUI onto "
            "the model, and go on with that model."
        )
    state: LoraState = {}
    for name, change in lora.changes.items():
        factors = change.factors()
        assert factors is not None
        up, down = factors
        for part, value in zip(PARTS, (down, up, torch.tensor(float(down.shape[0]))), strict=True):
            state[name + part] = value.contiguous()
        if change.kind == "LoRA" and change.alpha is not None:  # the very numbers of the file
            state[name + PARTS[1]] = change.parts[UP].float().flatten(1)
            state[name + PARTS[2]] = torch.tensor(change.alpha)
    return state


def is_linear(lora: Lora) -> bool:
    """Return whether a LoRA changes nothing but linear layers of the network, each by the product of two matrices."""
    return not lora.unread and not any(
        name.startswith(TEXT)
        or change.factors() is None
        or any(change.parts[part].shape[2:].numel() > 1 for part in (DOWN, MID) if part in change.parts)
        for name, change in lora.changes.items()
    )
