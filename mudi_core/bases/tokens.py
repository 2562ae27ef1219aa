"""The text encoders' vectors of a few tokens, to be learned (Textual Inversion, Gal et al. 2022).

Everything else in the text encoders stays frozen. A file holds one token, as ``[1, d]`` under ``clip_l`` and
``clip_g``: ComfyUI and diffusers load it as an SDXL embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tensor_file import read_tensors, write_tensors
from ..types import MudiError
from .promise import EncodeText

ENCODERS = ("clip_l", "clip_g")
"""The names of SDXL's text encoders in embedding files; SD has only the first."""


class BadTokens(MudiError):
    """Tokens whose vectors cannot be learned, or a file that does not hold the vectors of one token."""


class TokenVectors:
    """Replace the text encoders' own vectors of some tokens until `remove` or the end of a ``with`` block."""

    def __init__(
        self, tokens: Sequence[str], tokenizers: Sequence[Any], text_encoders: Sequence[Any], encode_text: EncodeText
    ) -> None:
        """Start with the encoders' own vectors. ``encode_text`` uses these encoders and lets gradients through.

        Raise `BadTokens` when the vocabulary has no single entry for a token.
        """
        self.tokens = tuple(tokens)
        self.encode = encode_text
        self._tables = [encoder.get_input_embeddings() for encoder in text_encoders]
        self._ids = [[_entry(tokenizer, token) for token in tokens] for tokenizer in tokenizers]
        self._rows = [
            nn.Parameter(table.weight.detach()[ids].float()) for table, ids in zip(self._tables, self._ids, strict=True)
        ]
        self._hooks = [
            table.register_forward_hook(partial(_replace, ids, rows))
            for table, ids, rows in zip(self._tables, self._ids, self._rows, strict=True)
        ]

    def __enter__(self) -> TokenVectors:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def start(self) -> None:
        """Reset the vectors to the encoders' own."""
        with torch.no_grad():
            for table, ids, rows in zip(self._tables, self._ids, self._rows, strict=True):
                rows.copy_(table.weight[ids])

    def parameters(self) -> list[nn.Parameter]:
        """Return the vectors as parameters, one tensor ``[n, d]`` for each encoder."""
        return list(self._rows)

    def state(self) -> dict[str, Tensor]:
        """Return a copy on the CPU: float32 ``[n, d]`` for each of `ENCODERS`, in the order of the tokens."""
        return {name: rows.detach().cpu().clone() for name, rows in zip(ENCODERS, self._rows, strict=False)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of a state of the same tokens."""
        with torch.no_grad():
            for name, rows in zip(ENCODERS, self._rows, strict=False):
                rows.copy_(state[name])

    def remove(self) -> None:
        """Restore the encoders' own vectors."""
        for hook in self._hooks:
            hook.remove()


def save_token(path: Path, vectors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a token's vectors, ``[1, d]`` for each encoder, as an embedding file. Raise `BadTensorFile`."""
    write_tensors(path, vectors, metadata)


def load_token(path: Path) -> dict[str, Tensor]:
    """Read an embedding file: return float32 ``[1, d]`` for each encoder. Raise `BadTokens` or `BadTensorFile`."""
    vectors, _ = read_tensors(path)
    strange = sorted(vectors.keys() - set(ENCODERS))
    if strange or any(vector.ndim != 2 or len(vector) != 1 for vector in vectors.values()) or not vectors:
        raise BadTokens(f"{Path(path).name} is not one token's embedding: it holds {', '.join(strange) or 'none'}.")
    return {name: vector.float() for name, vector in vectors.items()}


def _entry(tokenizer: Any, token: str) -> int:
    pieces: list[int] = tokenizer(token, add_special_tokens=False).input_ids
    if len(pieces) != 1:
        raise BadTokens(
            f"The text encoders read '{token}' as {len(pieces)} tokens, so it has no vector of its own to learn. Use a "
            "rare word of their vocabulary, such as olis or hta."
        )
    return pieces[0]


def _replace(ids: Sequence[int], rows: Tensor, table: nn.Module, given: tuple[Tensor], vectors: Tensor) -> Tensor:
    """Return the output of a table of word vectors, with the given rows in place of their ids."""
    for id, row in zip(ids, rows, strict=True):
        vectors = torch.where((given[0] == id)[..., None], row.to(vectors), vectors)
    return vectors
