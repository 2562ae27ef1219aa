"""Everything that is worn at one attention layer, composed: in any order, and around what others have put there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..types import MudiError
from .attend import Bias, Local, attend
from .call import Call
from .guidance import LayoutGuidance
from .lora import SeparateLoras, loras_of
from .prompts import RegionalPrompts
from .references.worn import References

Part = SeparateLoras | RegionalPrompts | LayoutGuidance | References
"""What can be worn in attention."""
Attention = Callable[[Tensor, Tensor, Tensor, tuple[int, ...]], Tensor]
"""The attention of q, k and v ``[b, p, c]``; the last: which rows of the call they are."""


class Displaced(MudiError):
    """Positions that are not those of a picture."""


@dataclass(eq=False)
class Layer:
    """One attention of one block in one call: `before`, `attention` and `after` are called in this order."""

    parts: Sequence[Part]
    call: Call
    name: str
    """Of the block, as the LoRAs name its layers: "input_blocks.4.1.transformer_blocks.0."."""
    cross: bool
    """It looks at a text; else at the picture itself."""
    size: tuple[int, int] = (0, 0)
    """Height and width of its positions."""
    _inputs: tuple[Tensor, Tensor, Tensor] | None = None
    _first: int = 0
    """Tokens of the picture's own prompt."""
    _pieces: list[tuple[RegionalPrompts | References, list[slice]]] = field(default_factory=list)
    """Where the texts are that were put behind it."""
    _answer: Tensor | None = None

    def before(self, n: Tensor, context: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what queries ``[b, p, in]``, keys and values ``[b, t, in]`` are made of: regions' prompts behind.

        Raise `Displaced` where another has taken positions together.
        """
        if n.shape[1] != self.size[0] * self.size[1]:
            raise Displaced(
                f"Another node has changed the places inside this model's attention ({n.shape[1]} for "
                f"{self.size[1]}x{self.size[0]}), as ToMe and HyperTile do. Leave it out: regions need the places."
            )
        self._first = context.shape[1]
        for part in self.parts if self.cross else ():
            if isinstance(part, RegionalPrompts | References) and self.call.positive and (texts := part.texts(context)):
                ends = list(accumulate((text.shape[1] for text in texts), initial=context.shape[1]))
                context, value = torch.cat([context, *texts], 1), torch.cat([value, *texts], 1)
                self._pieces.append((part, [slice(*pair) for pair in pairwise(ends)]))
        self._inputs = n, context, value
        return n, context, value

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, plain: Attention, theirs: Attention | None = None
    ) -> Tensor:
        """Return the attention's answer ``[b, p, c]``.

        ``plain``: the network's own attention; ``theirs``: what another has put in its place, whose addition is kept.
        """
        q, k, v, changes = self._changed(q, k, v, q.shape[-1] // heads)
        hand = _Hand(heads, plain, theirs)
        prompt = slice(0, self._first)
        own, bias = [one.tokens(prompt) for one in changes], self._bias(q)
        every, positive, others = tuple(range(len(q))), self.call.positive, self.call.others
        if bias is None or not others:
            answer = hand(q, k[:, prompt], v[:, prompt], own, bias, every)
        else:  # guidance is for the positive prompt alone
            answer = torch.empty_like(q)
            for rows, added in ((positive, bias), (others, None)):
                answer[list(rows)] = hand(q, k[:, prompt], v[:, prompt], own, added, rows)
        for part, pieces in self._pieces:
            if isinstance(part, RegionalPrompts):
                inside = [
                    hand(q, k[:, piece], v[:, piece], [one.tokens(piece) for one in changes], None, positive)
                    for piece in pieces
                ]
                blended = part.blend(answer[list(positive)], inside, self.call.only_positive(), self.size)
                answer = answer.index_copy(0, torch.tensor(positive, device=answer.device), blended)
        self._answer = self._with_references(answer, q, k, heads)
        return self._answer

    def _with_references(self, text: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
        """Return the answer to the text with what is seen of references."""
        answer = text
        for part in self.parts if self.cross else ():
            if isinstance(part, References):
                pieces = next((some for one, some in self._pieces if one is part), [])
                names = [k[:, piece] for piece in pieces]
                more = part.seen(self.name, q, text, names, self.call, self.size, heads)
                answer = answer if more is None else answer + more
        return answer

    def after(self, n: Tensor) -> Tensor:
        """Return the block's answer ``[b, p, c]`` behind its last linear layer, with what the LoRAs add to that."""
        answer, self._answer, self._inputs = self._answer, None, None
        if answer is None:
            return n
        for part in loras_of(self.parts):
            (n,) = part.onto((self.name + "to_out.0",), (n,), answer, self.call, self.size)
        return n

    def _changed(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, list[Local]]:
        """Return q, k and v with the LoRAs, and their changes of k and v that depend on the position.

        ``width``: of a head.
        """
        assert self._inputs is not None
        n, context, value = self._inputs
        changes: list[Local] = []
        for part in loras_of(self.parts):
            names = tuple(self.name + layer for layer in ("to_q", "to_k", "to_v"))
            if not self.cross and n is context is value:
                q, k, v = part.onto(names, (q, k, v), n, self.call, self.size)
                continue
            (q,) = part.onto(names[:1], (q,), n, self.call, self.size)
            if not self.cross:
                (k,) = part.onto(names[1:2], (k,), context, self.call, self.size)
                (v,) = part.onto(names[2:], (v,), value, self.call, self.size)
                continue
            k, v = _plus(k, part.whole(self.name + "to_k", context)), _plus(v, part.whole(self.name + "to_v", value))
            changes += part.limited(self.name, (context, value), self._first, self.call, q, self.size, width)
        return q, k, v, changes

    def _bias(self, like: Tensor) -> Bias | None:
        """Return what guidance adds to the scores of the positive rows, of the picture's own prompt."""
        if not self.cross or not self.call.positive:
            return None
        call = self.call.only_positive()
        parts = [part for part in self.parts if isinstance(part, LayoutGuidance)]
        found = [one for part in parts if (one := part.bias(self._first, call, like, self.size))]
        if not found:
            return None
        return lambda scores, rows: torch.stack([one(scores, rows) for one in found]).sum(0)


@dataclass(frozen=True)
class _Hand:
    """The attention of some rows: by what stands there, or by hand where that cannot do it."""

    heads: int
    plain: Attention
    theirs: Attention | None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, changes: Sequence[Local], bias: Bias | None, rows: tuple[int, ...]
    ) -> Tensor:
        if len(rows) < len(q):
            some = list(rows)
            q, k, v, changes = q[some], k[some], v[some], [one.rows(some) for one in changes]
        if not changes and bias is None:
            return (self.theirs or self.plain)(q, k, v, rows)
        found = attend(q, k, v, self.heads, changes, bias)
        if self.theirs is not None:
            found = self.theirs(q, k, v, rows) + found - attend(q, k, v, self.heads)
        return found


def _plus(x: Tensor, more: Tensor | None) -> Tensor:
    return x if more is None else x + more
