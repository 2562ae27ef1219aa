"""Copies of a MODEL's weights in few bits, for a card that the MODEL itself does not fit on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import comfy.lora
import torch
from torch import Tensor, nn

from ...mudi_core.bases.quantize import BaseWeights, FrozenLinear, quantized
from ..convert import BadModel
from .guards import outside_inference_mode
from .linear import is_in_few_bits, unscaled, weight_of
from .patches import PREFIX, name_of


@dataclass(frozen=True, eq=False)
class Copies:
    """A network's weights on another device: the linear layers of its blocks in few bits, the others as they are."""

    layers: dict[str, FrozenLinear]
    others: dict[str, Tensor]
    """Parameters and buffers by name."""


def copies_in(
    base_weights: BaseWeights, patcher: Any, linear: Sequence[str], dtype: torch.dtype, device: torch.device
) -> Copies:
    """Copy the weights of a MODEL, LoRAs on it included, to a device. The MODEL itself stays where it is.

    ``linear``: names of the layers that are to be in few bits; ``dtype``: what they compute in. Layers that are in few
    bits already are copied as they are. Raise `BadModel` for a LoRA on weights that cannot be told from it.
    """
    network = patcher.model.diffusion_model
    stay, layers = stay_as_they_are(patcher, linear), {}
    with torch.inference_mode(False), torch.no_grad():
        for name in (one for one in linear if one not in stay):
            layer = network.get_submodule(name)
            weight = _full(patcher, f"{name}.weight").to(dtype)
            if (smoothing := getattr(layer, "pre_quant_scale", None)) is not None:
                weight = weight * smoothing.to(weight)
            bias = None if layer.bias is None else _full(patcher, f"{name}.bias").to(dtype)
            layers[name] = quantized(weight, bias, base_weights).to(device)
        inside = {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
        named = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
        others = {name: _stored(patcher, name).to(device, copy=True) for name, _ in named if name not in inside}
    return Copies(layers, others)


def stay_as_they_are(patcher: Any, linear: Sequence[str]) -> set[str]:
    """Return those of a MODEL's linear layers that it keeps in few bits already, and that no LoRA changes."""
    network = patcher.model.diffusion_model
    few = {name for name in linear if is_in_few_bits(network.get_submodule(name))}
    return {name for name in few if not {f"{PREFIX}{name}.weight", f"{PREFIX}{name}.bias"} & patcher.patches.keys()}


def weight_on(patcher: Any, layer: str) -> Tensor:
    """Return the weight of a MODEL's layer in float32, dequantized, LoRAs on it included. Raise `BadModel`."""
    if stay_as_they_are(patcher, [layer]):
        module = patcher.model.diffusion_model.get_submodule(layer)
        with torch.no_grad(), weight_of(module, torch.float32, module.weight.device) as (weight, _):
            return weight.clone()
    return _full(patcher, f"{layer}.weight")


def _beneath(patcher: Any, name: str) -> Tensor:
    """A weight as it is stored beneath every patch."""
    key = PREFIX + name
    place, _, leaf = name.rpartition(".")
    beneath: Any = getattr(patcher.model.diffusion_model.get_submodule(place), leaf)
    if key in patcher.backup:
        beneath = patcher.backup[key].weight
    if key in patcher.hook_backup:
        beneath = patcher.hook_backup[key][0]
    return outside_inference_mode(beneath.detach(), parameter=False)


def _full(patcher: Any, name: str) -> Tensor:
    """A weight in float32, dequantized, with the patches of the MODEL."""
    place, _, leaf = name.rpartition(".")
    layer = patcher.model.diffusion_model.get_submodule(place)
    if hasattr(layer, "cast_bias_weight"):
        raise BadModel(
            f"This MODEL ({name_of(patcher)}) has a LoRA on layers that its loader keeps in few bits, such as {place}. "
            "Take the LoRA off, or choose the weights 'full'."
        )
    weight = _beneath(patcher, name).to(torch.float32, copy=True)
    if leaf == "weight" and hasattr(layer, "convert_weight"):
        weight = layer.convert_weight(weight, inplace=False)
    if (key := PREFIX + name) in patcher.patches:
        weight = comfy.lora.calculate_weight(patcher.patches[key], weight, key)
    return outside_inference_mode(weight.detach(), parameter=False)


def _stored(patcher: Any, name: str) -> Tensor:
    """A weight as its layer stores it, and in float32 as far as the MODEL has patches on it."""
    if PREFIX + name not in patcher.patches:
        return _beneath(patcher, name)
    place, _, leaf = name.rpartition(".")
    full = _full(patcher, name)
    return unscaled(patcher.model.diffusion_model.get_submodule(place), full) if leaf == "weight" else full


@contextmanager
def in_place_of(network: nn.Module, copies: Copies) -> Iterator[None]:
    """Let a network compute with copies of its weights within the block."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, value in copies.others.items():
            place, _, leaf = name.rpartition(".")
            module = network.get_submodule(place)
            store: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            kept.append((store, leaf, store[leaf]))
            store[leaf] = nn.Parameter(value, requires_grad=False) if store is module._parameters else value
        for name, layer in copies.layers.items():
            network.get_submodule(name).__dict__["forward"] = layer.forward
        yield
    finally:
        for name in copies.layers:
            network.get_submodule(name).__dict__.pop("forward", None)
        for store, leaf, value in kept:
            store[leaf] = value
