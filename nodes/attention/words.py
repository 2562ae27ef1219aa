"""Which tokens of a prompt name a subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...mudi_core.types import MudiError
from ..convert import BadModel


class NotNamed(MudiError):
    """A prompt without the words of a subject."""


def word_tokens(clip: Any, prompt: str, names: Sequence[str]) -> Tensor:
    """Return 1 for each token of the prompt that is one of a name's words and 0 for others, float ``[t]``.

    ``names``: what the subject may be called, the best name first ("olis corgi", "olis"); the first that the prompt has
    counts, everywhere it stands. Raise `NotNamed` where it has none, and `BadModel` for a CLIP unlike SD's and SDXL's.
    """
    every = _ids(clip, prompt)
    for name in names:
        wanted = [token for token, is_word in _ids(clip, name) if is_word]
        starts = [
            place
            for place in range(len(every) - len(wanted) + 1)
            if wanted and [token for token, _ in every[place : place + len(wanted)]] == wanted
        ]
        if starts:
            found = torch.zeros(len(every))
            for place in starts:
                found[place : place + len(wanted)] = 1
            return found
    raise NotNamed(
        f"The prompt {prompt[:80]!r} does not name {' or '.join(map(repr, names))}. Name every subject in it, by the "
        "words that the layout has for it."
    )


def count_tokens(clip: Any, words: str) -> int:
    """Return how many tokens some words are. Raise `BadModel` for a CLIP unlike SD's and SDXL's."""
    return sum(is_word for _, is_word in _ids(clip, words))


def _ids(clip: Any, text: str) -> list[tuple[int, bool]]:
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
