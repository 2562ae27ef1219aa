"""Pictures and masks in 8 bits, as files hold them: float tensors to all other code, in a quarter of the memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_ROWS = 256
"""Rows of a picture that become bytes at a time, so that no second picture in floats is made."""


class Levels(Tensor):
    """A float32 tensor of values 0..1 in steps of 1/255 that stores bytes and becomes floats only for a computation.

    Ten photos of 24 megapixels take 0.7 GB instead of 2.9 GB between the places that use them; only one at a time is
    large. In every other way it is a tensor: ``numpy()``, pickle and other nodes see float32, results are plain
    tensors, and a part of it (``image[0]``) is again a `Levels` that shares the bytes. After a write into it, it keeps
    the floats.
    """

    _levels: Tensor | Callable[[], Tensor]
    _written: Tensor | None
    finite = True

    @staticmethod
    def __new__(cls, levels: Tensor) -> Levels:
        """Make one from ``levels``, uint8 of any shape. Nobody may write into ``levels`` after this."""
        return cls._made(levels, levels.shape, levels.device)

    @classmethod
    def later(cls, shape: Sequence[int], unpack: Callable[[], Tensor]) -> Levels:
        """Make one that calls ``unpack`` for its levels, uint8 of this shape, each time they are needed."""
        return cls._made(unpack, shape, torch.device("cpu"))

    @classmethod
    def compressed(cls, levels: Tensor) -> Levels:
        """Make one that keeps ``levels``, uint8 of any shape, compressed: for masks, which are mostly 0 or 255."""
        shape, data = levels.shape, zlib.compress(levels.contiguous().numpy().data, 1)
        return cls.later(shape, lambda: _decompressed(data).reshape(shape))

    @classmethod
    def _made(cls, levels: Tensor | Callable[[], Tensor], shape: Sequence[int], device: torch.device) -> Levels:
        made: Levels = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, dtype=torch.float32, device=device
        )
        made._levels, made._written = levels, None
        return made

    @property
    def bytes(self) -> Tensor | None:
        """The uint8 tensor behind it; None after somebody wrote into it."""
        with torch._C.DisableTorchFunctionSubclass():
            if self._written is not None:
                return None
            return self._levels if isinstance(self._levels, Tensor) else self._levels()

    def plain(self) -> Tensor:
        """Return the same values as a plain float32 tensor."""
        levels = self.bytes
        if levels is None:
            assert self._written is not None
            return self._written
        with torch.inference_mode(False):  # autograd may keep the result, and writes into it are counted
            return levels.to(torch.float32).div_(255)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__ and isinstance(args[0], Levels) and args[0].bytes is not None:
            part = args[0].bytes[_plain(args[1], [])]
            return cls(part)
        if func is torch.equal and all(isinstance(one, Levels) and one.bytes is not None for one in args):
            return torch.equal(*(one.bytes for one in args))
        return _computed(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _computed(func, args, kwargs)


_ABOUT = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_leaf")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "grad", "is_sparse", "is_quantized")),
    *(getattr(Tensor, name) for name in ("size", "dim", "numel", "nelement", "element_size", "is_floating_point")),
    *(getattr(Tensor, name) for name in ("is_inference", "is_complex", "__len__", "__hash__")),
    torch.is_floating_point,
    torch.numel,
}
"""Questions about a tensor that need none of its values."""


def _decompressed(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(zlib.decompress(data)), dtype=torch.uint8)


def _computed(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Any:
    """Return the result of a function on the floats; where the function wrote into them, keep the floats."""
    conversions: list[tuple[Levels, Tensor, int]] = []
    result = func(*_plain(args, conversions), **_plain(dict(kwargs or {}), conversions))
    for levels, floats, version in conversions:
        if floats._version != version:
            levels._written = floats
    return result


def _plain(value: Any, conversions: list[tuple[Levels, Tensor, int]]) -> Any:
    if isinstance(value, Levels):
        for levels, floats, _ in conversions:
            if levels is value:
                return floats
        floats = value.plain()
        conversions.append((value, floats, floats._version))
        return floats
    if type(value) in (list, tuple):
        return type(value)(_plain(one, conversions) for one in value)
    if type(value) is dict:
        return {key: _plain(one, conversions) for key, one in value.items()}
    return value


def unpacked(values: Tensor) -> Tensor:
    """Return the same values with their bytes in memory, for use in several places; other tensors as they are."""
    levels = values.bytes if isinstance(values, Levels) else None
    return values if levels is None else Levels(levels)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one shape along a new first dimension.

    The result stays in bytes when all of them are bytes. A single tensor is not copied.
    """
    if len(parts) == 1:
        return parts[0][None]
    levels = [part.bytes for part in parts if isinstance(part, Levels)]
    held = [one for one in levels if one is not None]
    return Levels(torch.stack(held)) if len(held) == len(parts) else torch.stack([part.float() for part in parts])


def to_bytes(values: Tensor) -> NDArray[Any]:
    """Turn values 0..1 into uint8, 0..255, of the same shape, in new memory."""
    if isinstance(values, Levels) and values.bytes is not None:
        return values.bytes.cpu().clone(memory_format=torch.contiguous_format).numpy()
    levels = torch.empty(values.shape, dtype=torch.uint8)
    for rows, into in zip(torch.split(values.detach(), _ROWS), torch.split(levels, _ROWS), strict=True):
        into.copy_((rows.float().cpu() * 255).round().clamp(0, 255))
    return levels.numpy()
