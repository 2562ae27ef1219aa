"""Several LoRAs as one that is their exact sum, such as a fusion and what was trained on it; and their parents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

from .change import DOWN, UP, BadLora, Change
from .file import LoraState
from .metadata import plain_base
from .reading import Lora

ON = "mudi_on"
"""The key of what a LoRA was trained on top of, and without which it means nothing."""
PARENTS = "mudi_parents"
"""The key of what a LoRA was made of."""


def together(loras: Sequence[Lora]) -> LoraState:
    """Return the tensors of one LoRA that changes a model as all of these together, each at strength 1.

    Exact: the ranks of a layer stand beside each other. Raise `BadLora` where a layer has no such form.
    """
    changes: dict[str, list[Change]] = {}
    for lora in loras:
        for name, change in lora.changes.items():
            changes.setdefault(name, []).append(change)
    state: LoraState = {}
    for name, own in changes.items():
        one = own[0] if len(own) == 1 else _beside(own)
        if one is None:
            names = " and ".join(lora.name for lora in loras)
            raise BadLora(
                f"{names} cannot be one file: the layer {name} is changed by something else than a product of two "
                "matrices. Load them one after the other."
            )
        state |= one.tensors(name)
    return state


def _beside(changes: Sequence[Change]) -> Change | None:
    """Return the sum of changes of one layer; None where one of them has no small factors, or another kernel."""
    factors = [change.factors() for change in changes]
    shapes = {tuple(change.parts[DOWN].shape[1:]) for change in changes if change.kind == "LoRA"}
    if None in factors or len(shapes) > 1 or any(change.kind != "LoRA" and shapes for change in changes):
        return None
    up = torch.cat([pair[0] for pair in factors if pair is not None], 1)
    down = torch.cat([pair[1] for pair in factors if pair is not None], 0)
    if shapes and len(shape := next(iter(shapes))) > 1:
        up, down = up.reshape(*up.shape, *[1] * (len(shape) - 1)), down.reshape(len(down), *shape)
    return Change("LoRA", {UP: up.contiguous(), DOWN: down.contiguous()}, float(len(down)))


def parent(lora: Lora, subjects: str, strength: float = 1.0) -> dict[str, object]:
    """Return what a LoRA file says of one that it was made of or trained on; ``subjects``: its names in words."""
    return {"file": plain_base(lora.name), "sha256": lora.fingerprint(), "strength": strength, "subjects": subjects}


def whole_metadata(part: Lora, parents: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Return the metadata of `together`: those of its last part, and what it was made of."""
    return {**{key: value for key, value in part.about.items() if key != ON}, PARENTS: json.dumps(list(parents))}
