"""LoRAs of single subjects: which of several subjects each was taught, and a MODEL that wears them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils

from ..mudi_core.types import MudiError, SubjectSet, listed
from .sockets import SubjectLora


class NobodysLora(MudiError):
    """LoRAs that cannot each be given a subject."""


def subjects_of(loras: Sequence[SubjectLora], names: Sequence[tuple[str, ...]]) -> list[int]:
    """Return the number of each LoRA's subject among several.

    ``names``: for each subject its name, token and class noun; nothing where nobody knows. Raise `NobodysLora`.
    """
    whose = [_named(one, names) for one in loras]
    for number, place in enumerate(whose):
        if place is not None:
            continue
        if number >= len(names):
            raise NobodysLora(
                f"There are {len(loras)} LoRAs for {len(names)} subjects: {loras[number].path.name} has none. Say "
                "in LoRA Subject whom it was taught, or take it out."
            )
        whose[number] = number
    return [place for place in whose if place is not None]


def owners(people: SubjectSet, worn: Sequence[Sequence[SubjectLora]]) -> list[str]:
    """Return whose LoRAs are used, in a line for each subject that has any."""
    pairs = zip(people, worn, strict=True)
    return [f"{one.name}: {listed([lora.path.name for lora in own])}" for one, own in pairs if own]


def _named(one: SubjectLora, names: Sequence[tuple[str, ...]]) -> int | None:
    """Return the place of the subject that the user or the file names; None where nobody does."""
    if not any(names):
        return None
    if one.subject:
        whom = [place for place, some in enumerate(names) if one.subject in some]
        if len(whom) != 1:
            raise NobodysLora(
                f"LoRA Subject gives {one.path.name} to '{one.subject}', and {'several' if whom else 'no'} subjects "
                f"have this name. There are: {', '.join(some[0] for some in names)}."
            )
        return whom[0]
    tokens = _taught(one.path)
    whom = [place for place, some in enumerate(names) if some[1] in tokens]
    return whom[0] if len(whom) == 1 else None


def _taught(path: Path) -> tuple[str, ...]:
    from ..mudi_core.lora.metadata import UnknownLora, read_lora_subjects

    try:
        return read_lora_subjects(path).tokens
    except UnknownLora:
        return ()


def wearing(model: Any, clip: Any, *loras: SubjectLora) -> tuple[Any, Any]:
    """Return MODEL and CLIP with LoRAs on them, as Load LoRA does it. Raise `BadLora` where nothing of one fits."""
    from ..mudi_core.lora.change import BadLora
    from ..mudi_core.lora.reading import kind_of, read_lora

    for one in loras:
        lora, tensors = read_lora(one.path), comfy.utils.load_torch_file(str(one.path), safe_load=True)
        worn, reads = comfy.sd.load_lora_for_models(model, clip, tensors, one.strength, one.text_strength)
        if _patches(worn, reads.patcher) == _patches(model, clip.patcher):
            raise BadLora(
                f"Nothing that {one.path.name} changes is in the model: it was trained on {kind_of(lora)}. Use it "
                "with the kind of base model that it was trained on."
            )
        model, clip = worn, reads
    return model, clip


def _patches(*patchers: Any) -> int:
    return sum(len(those) for patcher in patchers for those in patcher.patches.values())
