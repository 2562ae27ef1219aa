"""What a MODEL is and what other nodes have put on it: its kind, its patches, and what tells it from any other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import comfy.lora
import torch
from torch import Tensor

from ...mudi_core.bases.network import weights_fingerprint
from ..convert import BadModel

if TYPE_CHECKING:
    from ...mudi_core.lora.change import Change

PREFIX = "diffusion_model."
"""Begins the name of every weight of a MODEL's network."""


def name_of(model: Any) -> str:
    """Return what ComfyUI calls a MODEL's kind, such as "SDXL"."""
    return type(model.model.model_config).__name__


def foreign_patches(model: Any) -> list[str]:
    """Return the patches of other nodes that training does not see, by their names in the MODEL's options."""
    options = model.model_options
    found = [name for name in options if name not in ("transformer_options", "sampler_cfg_function")]
    found += [name for name in options.get("transformer_options", {}) if name.startswith(("patches", "wrappers"))]
    found += [name for name in getattr(model, "object_patches", {}) if name != "model_sampling"]
    return sorted(set(found))


def added(patch: Any, strength: float, weight: Tensor, key: str) -> Tensor:
    """Return what ComfyUI adds to a ``weight`` of float32 for one of its patches of any kind."""
    with torch.no_grad():
        new: Tensor = comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], weight.clone(), key)
        return new - weight


def delta_of(change: Change, weight: Tensor) -> Tensor:
    """Return what ComfyUI's loaders add to a ``weight`` of float32 for a change of a LoRA file."""
    patches = comfy.lora.load_lora(change.tensors("layer"), {"layer": "layer.weight"})
    return added(patches["layer.weight"], 1.0, weight, "layer.weight")


def check_bare(model: Any) -> None:
    """Raise `BadModel` for a MODEL with a LoRA in bypass mode or the like, which training would not see."""
    if getattr(model, "injections", None):
        raise BadModel(
            f"This MODEL wears something that training cannot see ({', '.join(model.injections)}), such as a LoRA in "
            "bypass mode. Load the LoRA without bypass, or take it off."
        )


def fingerprint(model: Any) -> str:
    """Return what tells a MODEL, with the LoRAs on it, from any other. It is the same whether it is loaded or not."""
    digest = hashlib.sha256()
    for key, patches in sorted(model.patches.items()):
        digest.update(key.encode())
        for strength, patch, *_ in patches:
            digest.update(repr(strength).encode())
            for tensor in _tensors(patch):
                digest.update(tensor.detach().reshape(-1)[:8].float().cpu().numpy().tobytes())
    unpatched = {key.removeprefix(PREFIX): backup.weight for key, backup in model.backup.items()}
    return f"model {weights_fingerprint(model.model.diffusion_model, unpatched)} {digest.hexdigest()}"


def _tensors(patch: Any) -> Iterator[Tensor]:
    """Yield all tensors of a patch of ComfyUI: a tuple, a list, or an adapter with weights."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, tuple | list):
        for part in patch:
            yield from _tensors(part)
    elif hasattr(patch, "weights"):
        yield from _tensors(patch.weights)
