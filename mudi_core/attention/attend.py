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
class Local:
    """A change of keys and values that counts only at some positions."""

    weight: Tensor
    """Float ``[b, p, 1]``."""
    keys: Tensor | None
    """Float ``[b, t, c]``, added to the keys."""
    values: Tensor | None
    """Float ``[b, t, c]``, added to the values."""

    def rows(self, rows: slice | list[int]) -> Local:
        """Return the change of some rows."""
        return Local(self.weight[rows], *(None if one is None else one[rows] for one in (self.keys, self.values)))

    def tokens(self, tokens: slice) -> Local:
        """Return the change of some tokens."""
        return Local(self.weight, *(None if one is None else one[:, tokens] for one in (self.keys, self.values)))


Bias = Callable[[Tensor, slice], Tensor]
"""What is added to scores before they are scaled: of the scores ``[b, heads, p, t]`` of some rows of the call."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, changes: Sequence[Local] = (), bias: Bias | None = None
) -> Tensor:
    """Return ``softmax((q k' + bias) / sqrt(d)) v'``, ``[b, p, c]``, of q ``[b, p, c]`` and k, v ``[b, t, c]``.

    At a position the keys are ``k + sum(weight * keys)`` of the changes there, the values likewise. It is exact: the
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
    keyed, valued = ([one for one in changes if getattr(one, name) is not None] for name in ("keys", "values"))
    # All changes side by side: (q, w q) (k, dk)' = q k' + w q dk'.
    queries = torch.cat([plain, *(plain * one.weight[:, None] for one in keyed)], -1)
    keys = torch.cat([apart(k, heads), *(apart(one.keys, heads) for one in keyed if one.keys is not None)], -1)
    values = torch.cat([apart(v, heads), *(apart(one.values, heads) for one in valued if one.values is not None)], -1)
    if bias is None:
        answers = scaled_dot_product_attention(queries, keys, values, scale=width**-0.5)
    else:
        scores = (queries @ keys.transpose(-1, -2)).float()
        scores += bias(scores, rows)
        answers = (scores * width**-0.5).softmax(-1).to(v.dtype) @ values
    found, *more = torch.split(answers, width, -1)
    for one, answer in zip(valued, more, strict=True):
        found = torch.addcmul(found, answer, one.weight[:, None])
    joined: Tensor = found.transpose(1, 2).reshape(q.shape)
    return joined


def apart(x: Tensor, heads: int) -> Tensor:
    """Return ``[b, heads, p, c / heads]``."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
