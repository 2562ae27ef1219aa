"""The words that a LoRA was trained on, as its file names them: a stranger's text, which is only ever data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ..types import LONGEST_NOUN, LONGEST_TOKEN, MAX_SUBJECTS, misread_in_prompts

_LONGEST = 2**20
"""Most letters of metadata that are read: lists of tags grow with the photos."""
_FOLDER = re.compile(r"(?:\d+_)?(.+)", re.DOTALL)


def trigger_words(about: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return token and class noun of each subject of a LoRA; the noun is "" where the file names none.

    In order of trust: this project's own names, ``modelspec.trigger_phrase``, and the most frequent folder of kohya's
    ``ss_tag_frequency``, such as "10_ohwx woman". Empty where the file says nothing that can stand in a prompt.
    """
    own = _ours(about)
    if own:
        return own
    phrase = about.get("modelspec.trigger_phrase", "").split(",")[0]
    return [found] if (found := _words(phrase) or _words(_folder(about))) else []


def _ours(about: Mapping[str, str]) -> list[tuple[str, str]]:
    tokens, nouns = (_json(about.get(key, "")) for key in ("mudi_tokens", "mudi_class_nouns"))
    if not (isinstance(tokens, list) and isinstance(nouns, list) and 0 < len(tokens) == len(nouns) <= MAX_SUBJECTS):
        return []
    pairs = [_words(f"{token} {noun}") for token, noun in zip(tokens, nouns, strict=True) if isinstance(token, str)]
    return [pair for pair in pairs if pair is not None] if all(pairs) and len(pairs) == len(tokens) else []


def _folder(about: Mapping[str, str]) -> str:
    """Return the name of the training folder with the most tags, without the number of its repeats."""
    folders = _json(about.get("ss_tag_frequency", ""))
    if not isinstance(folders, dict):
        return ""
    weights = {
        name: sum(count for count in tags.values() if isinstance(count, int))
        for name, tags in folders.items()
        if isinstance(name, str) and isinstance(tags, dict)
    }
    match = _FOLDER.fullmatch(max(weights, key=lambda name: (weights[name], name))) if weights else None
    return "" if match is None else match[1]


def _words(text: str) -> tuple[str, str] | None:
    """Return the first word and the rest of a text, where a `Subject` may have these names."""
    token, _, noun = " ".join(text.replace("_", " ").split()).partition(" ")
    plain = token and len(token) <= LONGEST_TOKEN and len(noun) <= LONGEST_NOUN and not misread_in_prompts(token + noun)
    return (token, noun) if plain else None


def _json(text: str) -> object:
    try:
        return json.loads(text) if 0 < len(text) <= _LONGEST else None
    except (ValueError, RecursionError):
        return None
