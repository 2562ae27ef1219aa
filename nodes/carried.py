"""Whether a MODEL has a LoRA of a file on it, so that what is trained on top of it can name it and join it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.sd
import comfy.utils
import torch

from ..mudi_core.types import MudiError
from . import host

if TYPE_CHECKING:
    from ..mudi_core.lora.reading import Lora


class NotOnModel(MudiError):
    """A LoRA that the MODEL was said to have on it, and that it does not have."""


def carried(model: Any, name: str) -> Lora | None:
    """Return the LoRA of this name that the MODEL has on it at strength 1; None for no name. Raise `NotOnModel`."""
    from ..mudi_core.lora.reading import read_lora

    path = host.lora(name.strip() or None)
    if path is None:
        return None
    bare = model.clone()
    bare.patches = {}
    wanted, _ = comfy.sd.load_lora_for_models(bare, None, _tensors(path), 1.0, 0.0)
    if not wanted.patches or not all(
        any(_same(one, other) for other in model.patches.get(key, [])) for key, (one, *_) in wanted.patches.items()
    ):
        raise NotOnModel(
            f"The model does not have {path.name} on it at strength 1. Connect the model of Fuse LoRAs, or load that "
            "LoRA before Train LoRA; or leave on_lora empty."
        )
    return read_lora(path)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = comfy.utils.load_torch_file(str(path), safe_load=True)
    return state


def _same(one: Any, other: Any) -> bool:
    """Whether two patches do the same: their strength, that of what was there, the place in the weight, the values."""
    if (one[0], one[2], one[3]) != (other[0], other[2], other[3]):
        return False
    return _equal(getattr(one[1], "weights", one[1]), getattr(other[1], "weights", other[1]))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool((one.cpu() == other.cpu()).all())
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(type(one) is type(other) and one == other)
