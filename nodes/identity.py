"""What tells a value of a graph from any other: its content, whichever nodes made it, and in whichever process."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..mudi_core.bases.network import weights_fingerprint
from .denoiser.patches import fingerprint

_PLAIN = (bool, int, float, complex, str, bytes, Path, torch.dtype, torch.device, type(None))


def identity(*values: Any) -> str:
    """Return a hash of values of any kind, such as a MODEL with all that nodes have put on it, or a CONDITIONING.

    Tensors count to the bit, of networks the first weights of each layer, of functions what they hold. Of an object
    that shows nothing of its content only the class counts.
    """
    digest = hashlib.sha256()
    seen: dict[int, tuple[int, Any]] = {}
    waiting: list[Any] = list(reversed(values))
    while waiting:
        value = waiting.pop()
        digest.update(f"{type(value).__module__}.{type(value).__qualname__} ".encode())
        if isinstance(value, _PLAIN):
            digest.update(f"{value!r} ".encode())
        elif isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)} ".encode() + _bytes(value))
        elif id(value) in seen:
            digest.update(f"as {seen[id(value)][0]} ".encode())
        else:
            seen[id(value)] = len(seen), value  # held, so that no other object gets its id
            parts = list(_parts(value))
            digest.update(f"{len(parts)} ".encode())
            waiting.extend(reversed(parts))
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    """Yield what an object is made of."""
    if isinstance(value, nn.Module):
        yield weights_fingerprint(value)
    elif hasattr(value, "get_model_object"):  # a MODEL or the like, which looks otherwise while it is loaded
        yield fingerprint(value) if hasattr(value.model, "diffusion_model") else (value.model, value.patches)
        for what in ("model_options", "object_patches", "wrappers", "injections", "additional_models", "attachments"):
            yield getattr(value, what, None)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from (key, value[key])
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, set | frozenset):
        yield from sorted(value, key=repr)
    elif isinstance(value, FunctionType):
        yield from (value.__module__, value.__qualname__, value.__defaults__, value.__kwdefaults__)
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_set(cell))
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, type | ModuleType | BuiltinFunctionType):
        yield value.__name__
    else:
        yield getattr(value, "__dict__", None)


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _bytes(value: Tensor) -> bytes:
    plain = value.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()
