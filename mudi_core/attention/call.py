"""One call of the network: which of its rows are what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """The rows of a call: every prompt that is asked for owns as many as there are pictures."""

    positive: tuple[int, ...]
    """The rows of the positive prompt."""
    pictures: tuple[int, ...]
    """For each row, which picture of the batch it is, from 0."""
    sigma: Tensor
    """Float ``[b]``: the noise level of each row, as k-diffusion counts it."""

    @classmethod
    def of(cls, kinds: Sequence[int], sigma: Tensor) -> Call:
        """Make one from what ComfyUI calls ``cond_or_uncond``, in its order: 0 is positive; each has equally many rows.

        ``sigma``: float ``[b]``.
        """
        each = max(len(sigma) // max(len(kinds), 1), 1)
        rows = range(len(sigma))
        positive = tuple(row for row in rows if kinds[min(row // each, len(kinds) - 1)] == 0)
        return cls(positive, tuple(row % each for row in rows), sigma)

    @property
    def others(self) -> tuple[int, ...]:
        """The rows of other prompts."""
        return tuple(row for row in range(len(self.pictures)) if row not in self.positive)

    def is_positive(self, like: Tensor) -> Tensor:
        """Return 1 for each row of the positive prompt and 0 for others, ``[b, 1, 1]``, of a tensor's type."""
        found = torch.zeros(len(self.pictures), 1, 1)
        found[list(self.positive)] = 1
        return found.to(like)

    def only_positive(self) -> Call:
        """Return the call of the positive rows alone."""
        rows = list(self.positive)
        return Call(tuple(range(len(rows))), tuple(self.pictures[row] for row in rows), self.sigma[rows])
