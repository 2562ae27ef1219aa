"""What a subject adds to the text encoders' answer at its class word: a residual token embedding (Cones 2, 3.2).

"dog" plus the residual of one's own dog is one's own dog; the prompt, the model and its text encoders stay as they are.
Several in one prompt do not meet, since each is added at its own word. A file holds one subject, as ``[t, d]`` under
``clip_l`` and ``clip_g``, for the ``t`` tokens of its class word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..tensor_file import read_tensors, write_tensors
from ..types import MudiError
from .promise import TextEncoders
from .text import NotNamed, occurrences, rows_of, shared
from .tokens import ENCODERS

WORD = "mudi_word"
"""The class word in the metadata of a file."""
_OWN = "own."
ALIKE = 0.5
"""Least cosine between what two text encoders say of a class word for a residual of one to go with the other."""


class BadResidual(MudiError):
    """A file that is not a residual token embedding."""


class OtherEncoder(MudiError):
    """A residual token embedding of another text encoder."""


@dataclass(frozen=True, eq=False)
class Residual:
    """A subject's residual token embedding."""

    word: str
    """The class word at whose tokens it is added, such as "dog"."""
    shift: Tensor
    """What is added to the context there: float ``[t, d]``, all encoders side by side."""
    own: Tensor
    """What the text encoders that it was made for give for the word alone: float ``[t, d]``."""
    widths: tuple[int, ...]
    """How many of the ``d`` values belong to each encoder."""
    about: Mapping[str, str] = field(default_factory=dict)
    """The metadata of its file."""

    def check(self, text: TextEncoders) -> float:
        """Return how alike (a cosine) these text encoders are to those that it was made for; 1 for the same.

        Raise `OtherEncoder` for encoders of another size, or unlike `ALIKE`.
        """
        if self.widths != text.widths:
            raise OtherEncoder(
                f"The residual token of '{self.word}' was made for text encoders of width {_words(self.widths)}; these "
                f"have {_words(text.widths)}. Use it with the kind of model that it was trained on."
            )
        here = own_rows(text, self.word)
        if here.shape == self.own.shape:
            alike = float(cosine_similarity(here, self.own, dim=-1).mean())
            if alike >= ALIKE:
                return alike
        raise OtherEncoder(
            f"The residual token of '{self.word}' was made for other text encoders, which understand the word "
            "differently. Use it with the model that it was trained on, or one made from that."
        )


def own_rows(text: TextEncoders, word: str) -> Tensor:
    """Return what text encoders give for a word alone, at its tokens: float ``[t, d]`` on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        (said,) = text.encode([word])
    return said[text.context][rows_of(text, word, word)].detach().cpu().float()


def added(
    context: Tensor,
    prompt: str,
    residuals: Sequence[Residual],
    text: TextEncoders,
    strengths: Sequence[float] | None = None,
    occurrence: int = 0,
) -> Tensor:
    """Return a prompt's context ``[..., n, d]`` with residuals added at their class words; the same one at strength 0.

    ``occurrence``: of the word in the prompt, counted from 1; 0 are all, or see `shared`. Raise `NotNamed`.
    """
    ids = text.ids(prompt)
    starts = shared([occurrences(ids, text.word(one.word)) for one in residuals])
    found = context
    taken: dict[int, str] = {}
    for number, (one, places) in enumerate(zip(residuals, starts, strict=True)):
        some = places[occurrence - 1 : occurrence] if occurrence else places
        _check_places(one, prompt, some, context.shape[-2], occurrence, taken)
        strength = 1.0 if strengths is None else strengths[number]
        if strength:
            found = found.clone() if found is context else found
            for place in some:
                found[..., place : place + len(one.shift), :] += strength * one.shift.to(found)
    return found


def _check_places(
    one: Residual, prompt: str, places: Sequence[int], rows: int, occurrence: int, taken: dict[int, str]
) -> None:
    if not places:
        which = f"'{one.word}' {occurrence} times" if occurrence > 1 else f"'{one.word}'"
        raise NotNamed(
            f"The prompt '{prompt[:80]}' does not have {which} among what the text encoders read of it. Name the "
            "subject by its class word, early in the prompt."
        )
    for place in (start + token for start in places for token in range(len(one.shift))):
        if place >= rows:
            raise NotNamed(
                f"'{one.word}' is the prompt's token {place + 1}, and the conditioning has {rows}. Name the subject "
                "earlier in the prompt, or connect the conditioning of this very prompt."
            )
        if place in taken:
            raise NotNamed(
                f"Two residual tokens, of '{taken[place]}' and of '{one.word}', would act on the same word. Name each "
                "subject once, by a word of its own or in their order: 'a dog and a dog'."
            )
        taken[place] = one.word


def save_residual(path: Path, residual: Residual) -> None:
    """Write a residual. Raise `BadTensorFile`."""
    tensors: dict[str, Tensor] = {}
    for prefix, rows in (("", residual.shift), (_OWN, residual.own)):
        parts = torch.split(rows.detach().cpu().float(), list(residual.widths), dim=-1)
        tensors |= {prefix + name: part for name, part in zip(ENCODERS, parts, strict=False)}
    write_tensors(path, tensors, {**residual.about, WORD: residual.word})


def load_residual(path: Path) -> Residual:
    """Read a residual. Raise `BadResidual` or `BadTensorFile`."""
    tensors, about = read_tensors(path)
    names = [name for name in ENCODERS if name in tensors]
    wanted = {prefix + name for prefix in ("", _OWN) for name in names}
    word = about.get(WORD, "").strip()
    shapes = {(len(value), value.ndim) for value in tensors.values()}
    if not (names and word) or tensors.keys() != wanted or len(shapes) != 1 or shapes.pop()[1] != 2:
        raise BadResidual(
            f"{Path(path).name} is not a residual token embedding. Choose a file that Train Residual Token or the "
            "command residual has written."
        )
    if not all(value.isfinite().all() for value in tensors.values()):
        raise BadResidual(f"{Path(path).name} holds values that are not numbers. Train it again.")
    shift, own = (torch.cat([tensors[prefix + name].float() for name in names], dim=-1) for prefix in ("", _OWN))
    if shift.shape != own.shape:
        raise BadResidual(f"{Path(path).name} is not a residual token embedding: its two parts differ in size.")
    return Residual(word, shift, own, tuple(tensors[name].shape[1] for name in names), about)


def _words(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))
