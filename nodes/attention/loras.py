"""A LoRA taken apart: what acts in a region, what can only be merged, and what belongs to the text encoders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch

from ...mudi_core.attention.beside import layers_beside
from ...mudi_core.attention.lora import Change
from ...mudi_core.lora.change import BadLora
from ...mudi_core.lora.reading import lora_of
from ..denoiser.patches import PREFIX

_LAYERS = tuple(
    f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
)
_LINEAR = ("loha", "lokr")
"""Kinds whose change of a weight does not depend on the weight, unless a scale of it (DoRA) is trained."""


@dataclass(frozen=True, eq=False)
class TakenApart:
    """The parts of a LoRA, at the strengths that were asked for."""

    changes: dict[str, Change]
    """What can act in a region, by the layer's name in the network."""
    rest: dict[Any, Any]
    """ComfyUI's patches of all other layers of the network."""
    text: dict[Any, Any]
    """ComfyUI's patches of the text encoders."""


def take_apart(model: Any, clip: Any, path: Path, strength: float, blocks: Iterable[str]) -> TakenApart:
    """Read a LoRA of any kind that ComfyUI reads, for this MODEL and CLIP; ``strength`` is that of ``changes``.

    ``blocks``: the names of the blocks with attention. Raise `BadLora` where nothing in it is for the MODEL.
    """
    blocks = list(blocks)
    layers = {f"{block}{layer}" for block in blocks for layer in _LAYERS}
    layers |= {layer for block in blocks for layer in layers_beside(block)}
    changes: dict[str, Change] = {}
    rest, text = {}, {}
    for key, patch in _patches(model, clip, path).items():
        name = key.removeprefix(PREFIX).removesuffix(".weight") if isinstance(key, str) else ""
        if isinstance(key, str) and not key.startswith(PREFIX):
            text[key] = patch
        elif name in layers and (change := _change(patch, strength, key)) is not None:
            changes[name] = change
        else:
            rest[key] = patch
    if not changes and not rest:
        raise BadLora(
            f"{path.name} has nothing for this MODEL ({type(model.model.model_config).__name__}): it was made for "
            "another base model, or its layers have names that ComfyUI does not know. Choose a LoRA of this base model."
        )
    return TakenApart(changes, rest, text)


def _patches(model: Any, clip: Any, path: Path) -> dict[Any, Any]:
    """Return a LoRA file as ComfyUI's patches by the weight that each is for."""
    try:
        state = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:  # each format has its own
        raise BadLora(f"{path.name} cannot be read: {error}. Get the file anew, or choose another.") from error
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    found: dict[Any, Any] = comfy.lora.load_lora(comfy.lora_convert.convert_lora(state), names, log_missing=False)
    try:  # names of which ComfyUI knows none or only some, such as those that diffusers writes
        renamed = lora_of(state, {}, path.name).tensors()
    except BadLora:
        return found
    known = dict(comfy.lora.load_lora(renamed, names, log_missing=False))
    return max(found, known, key=len)


def _change(patch: Any, strength: float, key: str) -> Change | None:
    """Return a patch as a `Change`; None where it depends on the weight that it changes, or is none of a matrix."""
    kind, values = getattr(patch, "name", None), getattr(patch, "weights", None)
    if kind == "lora" and values is not None:
        up, down, alpha, mid, scale, shape = (*values, *[None] * 6)[:6]
        if mid is not None or scale is not None or shape is not None:
            return None
        factor = strength * (alpha / down.shape[0] if alpha is not None else 1.0)
        return Change(down.flatten(1).float(), up.flatten(1).float() * factor)
    if isinstance(patch, tuple) and patch[0] == "diff":
        return Change(patch[1][0].flatten(1).float() * strength)
    if kind in _LINEAR and values is not None and values[-1] is None:
        return _dense(patch, strength, key)
    return None


def _dense(patch: Any, strength: float, key: str) -> Change | None:
    """Return the whole change of a weight: added to nothing by ComfyUI's own arithmetic."""
    if patch.name == "loha":
        rows, columns = patch.weights[0].shape[0], patch.weights[1].shape[1]
    else:
        first, second = ((one if one is not None else (a, b)) for one, a, b in _kronecker(patch.weights))
        (rows, columns), (more, wide) = map(_shape, (first, second))
        rows, columns = rows * more, columns * wide
    with torch.inference_mode():
        change = comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], torch.zeros(rows, columns), key)
    return Change(change.clone())


def _kronecker(weights: Any) -> list[tuple[Any, Any, Any]]:
    w1, w2, _, w1_a, w1_b, w2_a, w2_b, *_ = weights
    return [(w1, w1_a, w1_b), (w2, w2_a, w2_b)]


def _shape(factor: Any) -> tuple[int, int]:
    """Return rows and columns of a factor, or of two whose product it is."""
    if isinstance(factor, tuple):
        return factor[0].shape[0], factor[1].shape[1]
    return factor.shape[0], factor.shape[1]
