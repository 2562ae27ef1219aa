"""Copies of a MODEL's weights in few bits, for a card that the MODEL itself does not fit on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from torch import Tensor, nn

from ...mudi_core.bases.quantize import BaseWeights, FrozenLinear, quantized
from .guards import outside_inference_mode
from .patches import PREFIX


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

    ``linear``: names of the layers that are to be in few bits; ``dtype``: what they compute in.
    """
    network = patcher.model.diffusion_model
    known = patcher.get_key_patches(PREFIX)

    def value(name: str) -> Tensor:
        weight, convert = known[PREFIX + name][0]  # as it is without any patch
        if PREFIX + name in patcher.patches:
            weight = convert(weight.to(torch.float32, copy=True), inplace=True)
            weight = comfy.lora.calculate_weight(patcher.patches[PREFIX + name], weight, PREFIX + name)
        else:
            weight = convert(weight, inplace=False)
        with torch.inference_mode(False):
            return outside_inference_mode(weight.detach(), parameter=False)

    layers = {}
    with torch.inference_mode(False), torch.no_grad():
        for name in linear:
            biased = network.get_submodule(name).bias is not None
            bias = value(f"{name}.bias").to(dtype) if biased else None
            layers[name] = quantized(value(f"{name}.weight").to(dtype), bias, base_weights).to(device)
        inside = {f"{name}.{part}" for name in linear for part in ("weight", "bias")}
        others = {name: value(name).to(device, copy=True) for name in network.state_dict() if name not in inside}
    return Copies(layers, others)


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
