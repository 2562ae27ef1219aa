"""Attention by hand, for what no ready function does: changes of keys and values that depend on the position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_MOST = 2**26
"""Numbers of a table of scores that are held at once."""


@dataclass(frozen=True, eq=False)
class Added:
    """What is added to keys or values at some positions: ``inside``, or ``inside up``."""

    weight: Tensor
    """Float ``[b, p, 1]``, or ``[b, p, r]`` for each rank."""
    inside: Tensor
    """Float ``[b, t, c]``, or ``[b, t, r]``."""
    up: Tensor | None = None
    """Float ``[r, c]``."""

    def rows(self, rows: slice | list[int]) -> Added:
        """Return that of some rows."""
        return Added(self.weight[rows], self.inside[rows], self.up)

    def tokens(self, tokens: slice) -> Added:
        """Return that of some tokens."""
        return Added(self.weight, self.inside[:, tokens], self.up)

    def of_heads(self, heads: int) -> Tensor:
        """Return ``inside`` for each head, ``[b, heads, t, c / heads or r]``."""
        return apart(self.inside, heads) if self.up is None else self.inside[:, None].expand(-1, heads, -1, -1)

    def asked(self, q: Tensor) -> Tensor:
        """Return what `of_heads` is multiplied with in the scores of queries ``[b, heads, p, c / heads]``."""
        if self.up is not None:
            q = q @ self._ups(q.shape[1]).transpose(1, 2)
        return q * self.weight[:, None]

    def answered(self, answer: Tensor, found: Tensor) -> Tensor:
        """Return ``found [b, heads, p, c / heads]`` with the answer of `of_heads` as values."""
        if self.up is None:
            return torch.addcmul(found, answer, self.weight[:, None])
        return found + (answer * self.weight[:, None]) @ self._ups(found.shape[1])

    def _ups(self, heads: int) -> Tensor:
        assert self.up is not None
        return self.up.view(len(self.up), heads, -1).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Local:
    """A change of keys and values that counts only at some positions."""

    keys: Added | None = None
    values: Added | None = None

    def rows(self, rows: slice | list[int]) -> Local:
        """Return the change of some rows."""
        return Local(*(None if one is None else one.rows(rows) for one in (self.keys, self.values)))

    def tokens(self, tokens: slice) -> Local:
        """Return the change of some tokens."""
        return Local(*(None if one is None else one.tokens(tokens) for one in (self.keys, self.values)))


Bias = Callable[[Tensor, slice], Tensor]
"""What is added to scores before they are scaled: of the scores ``[b, heads, p, t]`` of some rows of the call."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, changes: Sequence[Local] = (), bias: Bias | None = None
) -> Tensor:
    """Return ``softmax((q k' + bias) / sqrt(d)) v'``, ``[b, p, c]``, of q ``[b, p, c]`` and k, v ``[b, t, c]``.

    At a position the keys are ``k`` and the weighted sum of what changes add, the values likewise. It is exact: the
    scores of a sum of keys are the sum of their scores.
    """
    step = max(_MOST // (heads * q.shape[1] * k.shape[1]), 1)
    return torch.cat(
        [
            _rows(q[some], k[some], v[some], heads, [one.rows(some) for one in changes], bias, some)
            for some in (slice(first, min(first + step, len(q))) for first in range(0, len(q), step))
        ]
    )


def _rows(
    q: Tensor, k: Tensor, v: Tensor, heads: int, changes: Sequence[Local], bias: Bias | None, rows: slice
) -> Tensor:
    width, plain = q.shape[-1] // heads, apart(q, heads)
    keyed = [one.keys for one in changes if one.keys is not None]
    valued = [one.values for one in changes if one.values is not None]
    # All changes side by side: (q, w q up') (k, inside)' = q k' + w q (inside up)'.
    queries = torch.cat([plain, *(one.asked(plain) for one in keyed)], -1)
    keys = torch.cat([apart(k, heads), *(one.of_heads(heads) for one in keyed)], -1)
    more = [one.of_heads(heads) for one in valued]
    values = torch.cat([apart(v, heads), *more], -1)
    if bias is None:
        answers = scaled_dot_product_attention(queries, keys, values, scale=width**-0.5)
    else:
        scores = (queries @ keys.transpose(-1, -2)).float()
        scores += bias(scores, rows)
        answers = (scores * width**-0.5).softmax(-1).to(v.dtype) @ values
    found, *parts = torch.split(answers, [width, *(one.shape[-1] for one in more)], -1)
    for one, answer in zip(valued, parts, strict=True):
        found = one.answered(answer, found)
    joined: Tensor = found.transpose(1, 2).reshape(q.shape)
    return joined


def apart(x: Tensor, heads: int) -> Tensor:
    """Return ``[b, heads, p, c / heads]``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
