"""What makes ComfyUI's networks safe to differentiate through, each for as long as a ``with`` block lasts.

ComfyUI's networks are written for sampling: weights are cast at every use and are tensors of inference mode,
activations are changed in place, and some kernels have no derivative.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from ..mudi_core.bases.quantize import BaseWeights, FrozenLinear, quantized

_OFFLOADS = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters
"""Newer ComfyUI lends a weight and wants it back after use."""


def is_linear(module: Any) -> bool:
    """Whether a module multiplies with a matrix: ComfyUI's quantized layers are no ``nn.Linear``."""
    return all(hasattr(module, part) for part in ("in_features", "out_features", "weight"))


@contextmanager
def weight_of(layer: Any, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Within the block: weight ``[out, in]`` and bias ``[out]`` as a layer of ComfyUI multiplies with them now.

    They are cast, dequantized, brought to the device, and have the patches that are applied at use.
    """
    lent = None
    if hasattr(layer, "cast_bias_weight"):  # layers of GGUF loaders
        weight, bias = layer.cast_bias_weight(dtype=dtype, device=device)
    elif not hasattr(layer, "weight_function"):  # a plain layer of torch
        weight, bias = layer.weight.to(device, dtype), None if layer.bias is None else layer.bias.to(device, dtype)
    elif _OFFLOADS:
        weight, bias, lent = comfy.ops.cast_bias_weight(
            layer, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True
        )
    else:
        weight, bias = comfy.ops.cast_bias_weight(layer, dtype=dtype, device=device, bias_dtype=dtype)
    plain = weight
    if type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize"):
        plain = weight.dequantize().to(dtype)
    elif hasattr(layer, "convert_weight"):  # scaled fp8
        plain = layer.convert_weight(weight, inplace=False)
    try:
        yield plain, bias
    finally:
        if lent is not None:
            comfy.ops.uncast_bias_weight(layer, weight, bias, lent)


class _Product(torch.autograd.Function):
    """``x W^T + b`` that asks for the layer's weight again in the backward pass and keeps none in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.like = layer, (x.dtype, x.device)
        with weight_of(layer, *ctx.like) as (weight, bias):
            return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        with weight_of(ctx.layer, *ctx.like) as (weight, _):
            return gradient @ weight, None


def _multiplied(layer: Any) -> Callable[..., Tensor]:
    """A layer's ``forward`` that keeps no weight for the backward pass but its own."""

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = layer.weight
        as_it_is = type(weight) in (Tensor, nn.Parameter) and (weight.dtype, weight.device) == (x.dtype, x.device)
        if as_it_is and not getattr(layer, "weight_function", ()) and not hasattr(layer, "convert_weight"):
            return linear(x, weight, layer.bias)
        # As rows, so that what comes out is no view inside of the product: blocks add to it in place.
        product: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), layer)  # type: ignore[no-untyped-call]
        return product.reshape(*x.shape[:-1], -1)

    return forward


@contextmanager
def weights_asked_again(network: nn.Module) -> Iterator[None]:
    """Within the block no linear layer keeps a weight that was cast, moved or dequantized for it."""
    layers = [module for module in network.modules() if is_linear(module) and "forward" not in module.__dict__]
    for layer in layers:
        layer.__dict__["forward"] = _multiplied(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


@contextmanager
def cast_to(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block layers whose weights are of another type cast them at use, as ComfyUI's own do on some cards."""
    changed: list[tuple[nn.Module, Any]] = []
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "comfy_cast_weights") and weight is not None and weight.dtype != dtype:
            changed.append((module, module.__dict__.get("comfy_cast_weights")))
            module.__dict__["comfy_cast_weights"] = True
    try:
        yield
    finally:
        for module, before in changed:
            del module.__dict__["comfy_cast_weights"]
            if before is not None:
                module.__dict__["comfy_cast_weights"] = before


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no weight of a model is to be trained, nor a tensor of inference mode; no memory is copied."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    with torch.inference_mode(False):
        for module in model.modules():
            stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for store in stores:
                for name, value in list(store.items()):
                    if value is not None and (value.is_inference() or value.requires_grad):
                        kept.append((store, name, value))
                        store[name] = _outside_inference_mode(value, parameter=store is module._parameters)
    try:
        yield
    finally:
        for store, name, value in kept:
            store[name] = value


def _outside_inference_mode(value: Tensor, parameter: bool) -> Tensor:
    """The same memory as a tensor that autograd may keep."""
    if type(value) not in (Tensor, nn.Parameter):
        return value.detach()  # a quantized weight, which no product keeps
    if value.is_inference():
        place = value.untyped_storage(), value.storage_offset(), value.shape, value.stride()
        alias = torch.empty(0, dtype=value.dtype, device=value.device).set_(*place)
    else:
        alias = value.detach()
    return nn.Parameter(alias, requires_grad=False) if parameter else alias


class NormsKeepCopies(TorchFunctionMode):
    """Within it normalizations keep a copy of what they are given: ComfyUI's blocks add to it in place afterwards."""

    _NORMS = {
        getattr(place, name)
        for place in (torch, torch.nn.functional)
        for name in ("layer_norm", "rms_norm", "group_norm")
        if hasattr(place, name)
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._NORMS and args and args[0].requires_grad:
            args = (args[0].clone(), *args[1:])
        return func(*args, **(kwargs or {}))


def on_copies(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's ``forward`` that leaves its arguments as they are, so that it may be computed twice."""

    def own(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value

    def copied(*args: Any, **kwargs: Any) -> Any:
        with NormsKeepCopies():  # again, since the backward pass is outside of any other
            return forward(*map(own, args), **{name: own(value) for name, value in kwargs.items()})

    return copied


@dataclass(frozen=True, eq=False)
class Copies:
    """A network's weights on another device: its blocks' linear layers in few bits, all others as they are."""

    layers: dict[str, FrozenLinear]
    others: dict[str, Tensor]
    """By their names, parameters and buffers."""


def copies_in(
    base_weights: BaseWeights, patcher: Any, linear: Sequence[str], dtype: torch.dtype, device: torch.device
) -> Copies:
    """Copies of a MODEL's weights, LoRAs on it included, that compute in ``dtype``; it stays where it is.

    ``linear``: names of the layers that are to be in few bits.
    """
    prefix, network = "diffusion_model.", patcher.model.diffusion_model
    known = patcher.get_key_patches(prefix)

    def value(name: str) -> Tensor:
        weight, convert = known[prefix + name][0]  # as it is without any patch
        if prefix + name in patcher.patches:
            weight = convert(weight.to(torch.float32, copy=True), inplace=True)
            weight = comfy.lora.calculate_weight(patcher.patches[prefix + name], weight, prefix + name)
        else:
            weight = convert(weight, inplace=False)
        with torch.inference_mode(False):
            return _outside_inference_mode(weight.detach(), parameter=False)

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
    """Within the block a network computes with copies of its weights."""
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


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Within the block comfy_kitchen's fused operators are its plain torch ones, which have a derivative.

    They are attributes of a module, so only one training runs at a time.
    """
    kitchen = getattr(getattr(comfy, "quant_ops", None), "ck", None)
    kept: dict[str, Any] = {}
    try:
        if kitchen is not None:
            from comfy_kitchen.backends.eager import adaln, rope

            for module in (rope, adaln):
                for name, function in vars(module).items():
                    own = callable(function) and getattr(function, "__module__", None) == module.__name__
                    if own and hasattr(kitchen, name):
                        kept[name] = getattr(kitchen, name)
                        setattr(kitchen, name, function)
        yield
    finally:
        for name, function in kept.items():
            setattr(kitchen, name, function)
