"""Text encoders: where words stand among the tokens that they read, and other weights for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..types import MudiError
from .promise import Conditions, TextEncoders

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


class NotNamed(MudiError):
    """A prompt without the words of a subject."""


@contextmanager
def tuned(modules: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """Inside the block the modules compute with float32 copies of their weights, which can be learned and are yielded.

    Tables of words and places are copied, too, but not learned. Afterwards the modules have the very tensors of before.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    learned: list[nn.Parameter] = []
    with torch.inference_mode(False), torch.enable_grad():
        try:
            for module in (part for one in modules for part in one.modules()):
                for name, value in list(module._parameters.items()):
                    if value is None:
                        continue
                    learns = value.is_floating_point() and not isinstance(module, nn.Embedding)
                    copy = value.detach().to(torch.float32, copy=True) if value.is_floating_point() else value
                    kept.append((module._parameters, name, value))
                    module._parameters[name] = own = nn.Parameter(copy, requires_grad=learns)
                    learned += [own] if learns else []
            yield learned
        finally:
            for store, name, value in kept:
                store[name] = value


def rows_of(text: TextEncoders, caption: str, word: str) -> list[int]:
    """Return the rows of a caption's context that are the first occurrence of a word. Raise `NotNamed`."""
    tokens = text.word(word)
    starts = occurrences(text.ids(caption), tokens)
    if not starts:
        raise NotNamed(f"'{caption[:80]}' does not name '{word}'. Write it there as it is.")
    return list(range(starts[0], starts[0] + len(tokens)))


def occurrences(ids: Sequence[int], word: Sequence[int]) -> list[int]:
    """Return where some tokens begin among others."""
    last = len(ids) - len(word)
    return [place for place in range(last + 1) if word and list(ids[place : place + len(word)]) == list(word)]


def places_of(words: Sequence[Sequence[int]], ids: Sequence[int]) -> list[int]:
    """Return the places at which one of some words stands among other tokens, in order."""
    return sorted({start + place for word in words for start in occurrences(ids, word) for place in range(len(word))})


def shared(starts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return where each of several words begins, when equal words stand for different subjects.

    Words that stand at the same places, as often as there are such words, have one of them each, in their order: in "a
    dog and a dog" the first dog is the first subject. All others have all their places.
    """
    shares = []
    for number, places in enumerate(starts):
        equal = [other for other, them in enumerate(starts) if them == places]
        alone = len(equal) > 1 and len(equal) == len(places)
        shares.append([places[equal.index(number)]] if alone else list(places))
    return shares


def marked(count: int, starts: Sequence[int], length: int) -> Tensor:
    """Return 1 for tokens of runs of some length that begin at ``starts``, and 0 for the others: float ``[count]``."""
    found = torch.zeros(count)
    for start in starts:
        found[start : start + length] = 1
    return found


class CheckpointText:
    """The text encoders of a `Checkpoint`, as `TextEncoders`."""

    context = "context"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(encoder.config.hidden_size) for encoder in self._checkpoint.text_encoders)

    def modules(self) -> list[nn.Module]:
        return list(self._checkpoint.text_encoders)

    def encode(self, captions: list[str]) -> list[Conditions]:
        return self._checkpoint.condition(captions)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._checkpoint.tokenizers[0](text, padding="max_length", truncation=True).input_ids
        return ids

    def word(self, text: str) -> list[int]:
        ids: list[int] = self._checkpoint.tokenizers[0](text, add_special_tokens=False).input_ids
        return ids
