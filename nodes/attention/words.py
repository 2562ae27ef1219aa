"""Which tokens of a prompt name a subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...mudi_core.bases.text import NotNamed, marked, occurrences, shared
from ..convert import BadModel


def word_tokens(clip: Any, prompt: str, names: Sequence[str]) -> Tensor:
    """Return 1 for each token of the prompt that is one of a name's words and 0 for others, float ``[t]``.

    ``names``: what the subject may be called, the best name first ("olis corgi", "olis"); the first that the prompt has
    counts, everywhere it stands. Raise `NotNamed` where it has none, and `BadModel` for a CLIP unlike SD's and SDXL's.
    """
    return tokens_of_each(clip, prompt, [names])[0]


def tokens_of_each(clip: Any, prompt: str, subjects: Sequence[Sequence[str]]) -> list[Tensor]:
    """Return the `word_tokens` of each subject.

    Subjects of one name share it in their order, where it stands as often as there are such: "a cat and a cat".
    """
    every = [token for token, _ in token_ids(clip, prompt)]
    found = [_first(clip, prompt, every, names) for names in subjects]
    starts = shared([places for places, _ in found])
    return [marked(len(every), places, length) for places, (_, length) in zip(starts, found, strict=True)]


def _first(clip: Any, prompt: str, every: Sequence[int], names: Sequence[str]) -> tuple[list[int], int]:
    """Return where the first of these names that the prompt has begins, and how many tokens it has."""
    for name in names:
        wanted = [token for token, is_word in token_ids(clip, name) if is_word]
        if starts := occurrences(every, wanted):
            return starts, len(wanted)
    raise NotNamed(
        f"The prompt {prompt[:80]!r} does not name {' or '.join(map(repr, names))}. Name every subject in it, by the "
        "words that the layout has for it."
    )


def count_tokens(clip: Any, words: str) -> int:
    """Return how many tokens some words are. Raise `BadModel` for a CLIP unlike SD's and SDXL's."""
    return sum(is_word for _, is_word in token_ids(clip, words))


def token_ids(clip: Any, text: str) -> list[tuple[int, bool]]:
    """Return each token of a text, padded as the text encoder reads it, and whether it belongs to a word."""
    tokens = clip.tokenize(text, return_word_ids=True)
    encoder = next((name for name in ("l", "h", "g") if name in tokens), None)
    if encoder is None:
        raise BadModel("This CLIP reads no words as SD and SDXL do. Connect the CLIP of the model's own checkpoint.")
    return [
        (token if isinstance(token, int) else -1, bool(word))  # an embedding from a file is no word
        for chunk in tokens[encoder]
        for token, _, word in chunk
    ]
