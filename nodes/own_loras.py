"""LoRAs of single subjects: which of several subjects each was taught, and a MODEL that wears them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..mudi_core.types import MudiError, SubjectSet, listed
from .lora_patches import patches_of
from .sockets import SubjectLora


class NobodysLora(MudiError):
    """LoRAs that cannot each be given a subject."""


def subjects_of(loras: Sequence[SubjectLora], names: Sequence[tuple[str, ...]]) -> list[int]:
    """Return the number of each LoRA's subject among several.

    ``names``: for each subject its name, token and class noun; nothing where nobody knows. Raise `NobodysLora`, also
    for a file that names somebody else than the subject whose turn it is, where this one has a LoRA of its own.
    """
    named = [_named(one, names) for one in loras]
    whose = list(named)
    for number, place in enumerate(named):
        if place is not None:
            continue
        if number >= len(names):
            raise NobodysLora(
                f"There are {len(loras)} LoRAs for {len(names)} subjects: {loras[number].path.name} has none. Say "
                "in LoRA Subject whom it was taught, or take it out."
            )
        one = loras[number]
        acts = one.strength or one.text_strength
        if acts and number in named and (doubt := doubts(one, names[number])):
            own = loras[named.index(number)].path.name
            raise NobodysLora(f"{doubt} But {names[number][0]} has {own}. Say in LoRA Subject whom each was taught.")
        whose[number] = number
    return [place for place in whose if place is not None]


def owners(people: SubjectSet, worn: Sequence[Sequence[SubjectLora]]) -> list[str]:
    """Return whose LoRAs are used, in a line for each subject that has any, and whose files name somebody else."""
    pairs = list(zip(people, worn, strict=True))
    lines = [f"{one.name}: {listed([lora.path.name for lora in own])}" for one, own in pairs if own]
    doubtful = (doubts(lora, (one.name, one.token, one.class_noun)) for one, own in pairs for lora in own)
    return lines + list(filter(None, doubtful))


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
    taught = _taught(one.path)
    whom = [place for place, some in enumerate(names) if _is_among(some, taught)]
    return whom[0] if len(whom) == 1 else None


def doubts(one: SubjectLora, names: tuple[str, ...]) -> str:
    """Return in a sentence whom a LoRA's file names instead of its subject; "" where it names it, or nobody.

    ``names``: the subject's name, token and class noun; nothing where nobody knows.
    """
    taught = _taught(one.path, sure=True)
    if not names or not taught or _is_among(names, taught):
        return ""
    why = "LoRA Subject says" if one.subject else "the order has it"
    whom = listed([f"'{' '.join(some).strip()}'" for some in taught])
    return f"{one.path.name} says that it was taught {whom}; it is used for {names[0]}, as {why}."


def _is_among(names: tuple[str, ...], taught: Sequence[tuple[str, str]]) -> bool:
    """Return whether the token of a subject is one of those in a file; text encoders read no capital letters."""
    return names[1].casefold() in (token.casefold() for token, _ in taught)


def _taught(path: Path, sure: bool = False) -> list[tuple[str, str]]:
    """Return the trigger words and class nouns that a file names, as Fuse LoRAs reads them: they are only data.

    ``sure``: without what only a folder of one word says, since that may be called anything: "10_img".
    """
    from ..mudi_core.lora.metadata import UnknownLora, read_about
    from ..mudi_core.lora.triggers import trigger_words

    try:
        about = read_about(path)
        named = sure and "modelspec.trigger_phrase" not in about
        return [some for some in trigger_words(about) if some[1] or not named]
    except UnknownLora:
        return []


def wearing(model: Any, clip: Any, *loras: SubjectLora) -> tuple[Any, Any, list[str]]:
    """Return MODEL and CLIP with LoRAs on them, as Load LoRA does it, and a sentence for each of what it changes.

    Raise `BadLora` where nothing of one fits, or where its layers have other sizes.
    """
    from ..mudi_core.lora.change import BadLora

    told = []
    for one in loras:
        if not (one.strength or one.text_strength):
            told.append(f"{one.path.name}: its strength is 0, so nothing is changed.")
            continue
        found = patches_of(model, clip, one.path)
        if not found.network and not found.text:
            raise BadLora(
                f"Nothing that {one.path.name} changes is in the model: it was trained on {found.kind}. Use it "
                "with the kind of base model that it was trained on."
            )
        found = replace(
            found, network=found.network if one.strength else {}, text=found.text if one.text_strength else {}
        )
        model, clip = model.clone(), clip.clone()
        model.add_patches(found.network, one.strength)
        clip.add_patches(found.text, one.text_strength)
        told.append(found.told())
    return model, clip, told
