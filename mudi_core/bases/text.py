"""Text encoders as they are tuned: their weights for a while others, and which token of a text is which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .promise import Conditions

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


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
