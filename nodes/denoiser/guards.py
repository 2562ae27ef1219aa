"""What makes ComfyUI's networks safe to differentiate through, each for as long as a ``with`` block lasts.

ComfyUI's networks are written for sampling: their weights are tensors of inference mode, they change activations in
place, and some of their kernels have no derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Make every weight of a model one that autograd may meet, within the block; none is trained, none is copied.

    Weights that were loaded in inference mode are replaced by others on the same memory.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    with torch.inference_mode(False):
        for module in model.modules():
            stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for store in stores:
                for name, value in list(store.items()):
                    if value is not None and (value.is_inference() or value.requires_grad):
                        kept.append((store, name, value))
                        store[name] = outside_inference_mode(value, parameter=store is module._parameters)
    try:
        yield
    finally:
        for store, name, value in kept:
            store[name] = value


def outside_inference_mode(value: Tensor, parameter: bool) -> Tensor:
    """Return a tensor on the same memory that autograd may keep."""
    if type(value) not in (Tensor, nn.Parameter):
        return value.detach()  # a quantized weight, which `linear` does not keep
    if value.is_inference():
        place = value.untyped_storage(), value.storage_offset(), value.shape, value.stride()
        alias = torch.empty(0, dtype=value.dtype, device=value.device).set_(*place)
    else:
        alias = value.detach()
    return nn.Parameter(alias, requires_grad=False) if parameter else alias


class NormsKeepCopies(TorchFunctionMode):
    """Give normalizations a copy of their input, within the block: ComfyUI's blocks add to it in place afterwards."""

    _NORMS = {
        getattr(place, name)
        for place in (torch, torch.nn.functional)
        for name in ("layer_norm", "rms_norm", "group_norm")
        if hasattr(place, name)
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        if func in self._NORMS and any(isinstance(one, Tensor) and one.requires_grad for one in given):
            args = (args[0].clone(), *args[1:])
        return func(*args, **(kwargs or {}))


def on_copies(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a block's ``forward`` as one that leaves its arguments as they are, so that it may be computed twice."""

    def own(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value

    def copied(*args: Any, **kwargs: Any) -> Any:
        with NormsKeepCopies():  # again, since the backward pass is outside of any other
            return forward(*map(own, args), **{name: own(value) for name, value in kwargs.items()})

    return copied


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Replace comfy_kitchen's fused operators by its plain torch ones, which have a derivative, within the block.

    They are attributes of a module, so only one training can run at a time.
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


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of an object for the length of the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
