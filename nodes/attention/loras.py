"""A LoRA taken apart: what acts in a region, what can only be merged, and what belongs to the text encoders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...mudi_core.attention.beside import layers_beside
from ...mudi_core.attention.lora import Change
from ...mudi_core.lora.change import ALPHA, KINDS, BadLora
from ...mudi_core.lora.change import Change as OfFile
from ..denoiser.copies import weight_on
from ..denoiser.patches import PREFIX, added
from ..lora_patches import patches_of

_LAYERS = tuple(
    f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")
)


@dataclass(frozen=True, eq=False)
class TakenApart:
    """The parts of a LoRA, at the strengths that were asked for."""

    changes: dict[str, Change]
    """What can act in a region, by the layer's name in the network."""
    rest: dict[Any, Any]
    """ComfyUI's patches of all other layers of the network."""
    text: dict[Any, Any]
    """ComfyUI's patches of the text encoders."""
    left: tuple[str, ...] = ()
    """In words what does nothing."""


def take_apart(model: Any, clip: Any, path: Path, strength: float, blocks: Iterable[str]) -> TakenApart:
    """Read a LoRA of any kind that `patches_of` reads, for this MODEL and CLIP; ``strength`` is that of ``changes``.

    ``blocks``: the names of the blocks with attention. Raise `BadLora` where nothing in it is for the MODEL, or where
    its layers have other sizes.
    """
    blocks = list(blocks)
    layers = {f"{block}{layer}" for block in blocks for layer in _LAYERS}
    layers |= {layer for block in blocks for layer in layers_beside(block)}
    changes: dict[str, Change] = {}
    rest, found = {}, patches_of(model, clip, path)
    for key, patch in found.network.items():
        name = key.removeprefix(PREFIX).removesuffix(".weight") if isinstance(key, str) else ""
        if name in layers and (change := _change(model, name, patch, strength)) is not None:
            changes[name] = change
        else:
            rest[key] = patch
    if not changes and not rest and not found.text:
        raise BadLora(
            f"{path.name} has nothing for this MODEL ({type(model.model.model_config).__name__}) and CLIP: it was made "
            "for another base model, or its layers have names that nobody here knows. Choose a LoRA of this base model."
        )
    return TakenApart(changes, rest, dict(found.text), found.left)


def _change(model: Any, layer: str, patch: Any, strength: float) -> Change | None:
    """Return a patch of a layer as a `Change`; None where it gives the weight another shape."""
    kind, values = getattr(patch, "name", None), getattr(patch, "weights", None)
    if kind == "lora" and values is not None:
        up, down, alpha, mid, scale, shape = (*values, *[None] * 6)[:6]
        if shape is not None:
            return None
        if mid is None and scale is None:
            factor = strength * (alpha / down.shape[0] if alpha is not None else 1.0)
            return Change(down.flatten(1).float(), up.flatten(1).float() * factor)
    if isinstance(patch, tuple) and patch[0] == "diff":
        return Change(patch[1][0].flatten(1).float() * strength)
    weight = weight_on(model, layer)
    if kind == "glora" and values is not None and (factors := _glora(values, weight, layer)) is not None:
        return Change(factors[1], factors[0] * strength)
    # DoRA depends on the weight, as others may, and LoHa and LoKr are as large as it.
    more = added(patch, strength, weight, layer)
    return Change(more.flatten(1)) if more.shape == weight.shape else None


def _glora(values: Any, weight: Tensor, layer: str) -> tuple[Tensor, Tensor] | None:
    """Return up and down of a GLoRA's change of a weight; None where its rows are scaled (DoRA), or for no matrix."""
    *matrices, alpha, scale = values[:6]
    parts = dict(zip(KINDS["GLoRA"][0], matrices, strict=True))
    if alpha is not None:
        parts[ALPHA] = torch.tensor(alpha)
    change = None if scale is not None else OfFile.of(parts, layer)
    return None if change is None else change.factors(weight)
