"""Layout guidance (Cones 2, section 3.3): the words of a subject are seen where it stands.

Before the softmax of every cross-attention, ``strength * w * log(1 + sigma^2) * std(q k)`` is added to the scores of
the positive prompt: w is positive for a subject's words inside its region, and negative outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .attend import Bias
from .call import Call
from .regions import Regions


class LayoutGuidance:
    """The pull of each subject's words into its region."""

    def __init__(
        self,
        words: Sequence[Tensor],
        regions: Regions,
        strength: float = 0.08,
        pull: float = 2.5,
        push: float = 1e8,
    ) -> None:
        """``words``: for each region, 1 for the tokens of the prompt that name its subject and 0 for others, ``[t]``.

        ``strength``: the authors use 0.05 to 0.1; ``pull``: w inside; ``push``: -w outside, 1e8 as the authors have it
        shows a subject's words nowhere else.
        """
        used = [index for index in range(len(words)) if not regions.empty(index)]
        self.words = torch.stack([words[index].float() for index in used]) if used else torch.zeros(0, 1)
        self.regions = Regions(regions.masks[:, used])
        self.strength, self.pull, self.push = strength, pull, push

    def check(self, size: tuple[int, int]) -> None:
        """Raise `OtherShape` for a latent of another shape (height, width) than the regions."""
        if len(self.words):
            self.regions.check(size)

    def release(self) -> None:
        """Forget the weights of all levels."""
        self.regions.release()

    def bias(self, tokens: int, call: Call, like: Tensor, size: tuple[int, int]) -> Bias | None:
        """Return what is added to the scores of rows of the positive prompt alone, of this many tokens.

        None where nothing is: no region, no strength, or a prompt of another length, which is another one.
        """
        count = self.words.shape[1]
        if not len(self.words) or tokens % count or not self.strength:
            return None
        words = self.words.repeat(1, tokens // count).to(like.device)
        inside = self.regions.at(size, call, like).float()
        weights = inside * self.pull - (1 - inside) * self.push
        level = torch.log1p(call.sigma.float() ** 2).to(like.device)[:, None, None]
        wanted = (self.strength * level * weights) @ words

        def added(scores: Tensor, rows: slice) -> Tensor:
            return wanted[rows, None] * scores.flatten(1).std(1)[:, None, None, None]

        return added
