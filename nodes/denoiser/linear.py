"""The linear layers of a MODEL, so that a gradient flows through each without a copy of its weight being kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..convert import BadModel

_OFFLOADS = "offloadable" in inspect.signature(comfy.ops.cast_bias_weight).parameters
"""Newer ComfyUI lends a weight and must get it back after use."""
_ROUNDED = 0.3
"""How far a layer's own answer may be from the product with its weight, as a share of it: some round their input."""
ERRORS = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, NotImplementedError)
"""What networks raise that cannot compute: with such weights, on this device, from these conditions."""


def is_linear(module: Any) -> bool:
    """Return whether a module multiplies with a matrix: ComfyUI's quantized layers are no ``nn.Linear``."""
    return all(hasattr(module, part) for part in ("in_features", "out_features", "weight"))


def is_in_few_bits(layer: Any) -> bool:
    """Return whether ComfyUI or a loader keeps a layer's weight in few bits, in a way that only itself reads."""
    return type(layer.weight) not in (Tensor, nn.Parameter) or hasattr(layer, "cast_bias_weight")


def unscaled(layer: Any, weight: Tensor) -> Tensor:
    """Return what a layer must store to multiply with this ``weight``: layers in scaled fp8 multiply it by a scale."""
    scale = getattr(layer, "scale_weight", None)
    return weight if scale is None or not hasattr(layer, "convert_weight") else weight / scale.to(weight)


@contextmanager
def weight_of(layer: Any, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Give a layer's weight ``[out, in]`` and bias ``[out]`` for the length of the block, as ComfyUI uses them now.

    They are cast, dequantized, on the device, and have the patches that are applied at use.
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
    smoothing = getattr(layer, "pre_quant_scale", None)
    if smoothing is not None:  # of AWQ: the layer multiplies its input with it
        plain = plain * smoothing.to(plain)
    try:
        yield plain, bias
    finally:
        if lent is not None:
            comfy.ops.uncast_bias_weight(layer, weight, bias, lent)


def check_layers(layers: Mapping[str, nn.Module], dtype: torch.dtype, device: torch.device) -> None:
    """Compare the answer of one layer of each kind with the product by its `weight_of`. Raise `BadModel`.

    Loaders of quantized checkpoints bring layers of their own, whose weights may be stored in any way. ``dtype``: in
    which the layers compute in sampling.
    """
    kinds: dict[object, list[str]] = {}
    for name, layer in layers.items():
        weight: Any = layer.weight
        kind = type(layer), type(weight), weight.dtype, getattr(layer, "layout_type", None)
        kinds.setdefault(kind, []).append(name)
    for names in kinds.values():
        first: Any = layers[names[0]]
        x = torch.randn(4, first.in_features, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        try:
            own = first(x).float()
        except ERRORS as error:
            if isinstance(error, comfy.model_management.OOM_EXCEPTION):
                raise
            raise BadModel(
                f"ComfyUI cannot compute on this device ({device}) with {len(names)} of this MODEL's {len(layers)} "
                f"layers ({_kept_as(first)}, such as {names[0]}): {reason(error)}. Load the same checkpoint in fp16, "
                "bf16 or fp8."
            ) from error
        if not _is_readable(first, x, own):
            raise BadModel(
                f"This MODEL keeps the weights of {len(names)} of its {len(layers)} layers in a way that training "
                f"cannot read ({type(first).__name__}, such as {names[0]}). Load the same checkpoint in fp16, bf16 or "
                "fp8 with ComfyUI's own loader."
            )


def _is_readable(layer: Any, x: Tensor, own: Tensor) -> bool:
    """Whether a layer's ``own`` answer to ``x`` is that of its `weight_of`."""
    try:
        with weight_of(layer, x.dtype, x.device) as (weight, bias):
            product = linear(x, weight, bias).float()
    except ERRORS:
        return False
    return own.shape == product.shape and float((own - product).norm()) <= _ROUNDED * float(own.norm())


def _kept_as(layer: Any) -> str:
    """How a layer's weight is stored, in ComfyUI's words where it has one, such as "nvfp4"."""
    return getattr(layer, "quant_format", None) or type(layer).__name__


def reason(error: Exception) -> str:
    """Return the first line of an error, for a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class _Product(torch.autograd.Function):
    """``x W^T + b``: it asks for the layer's weight again in the backward pass and keeps none in between."""

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
    """A ``forward`` of this layer that keeps no cast, moved or dequantized weight for the backward pass."""

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
    """Keep, within the block, no weight that was cast, moved or dequantized for a linear layer."""
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
    """Let layers cast their weights to ``dtype`` at use within the block, as ComfyUI's own do on some cards."""
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
