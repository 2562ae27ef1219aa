"""References as a part that is worn in attention: their answer is added to the text's.

Whose tokens a position sees is said by regions (MS-Diffusion's boxes, or masks), by how much it looks at the subject's
words (MIP-Adapter's weighted merge), or by both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..attend import apart
from ..call import Call
from ..regions import Regions
from .adapter import Adapter
from .look import look

By = Literal["place", "subject"]
"""What a subject's weights are divided by: their sum over the subjects at each place, as MIP-Adapter's code has it, so
that they sum to 1; or their mean over the places, as its paper has it (equation 5), so that they sum to about the
number of subjects."""


@dataclass(frozen=True, eq=False)
class Words:
    """What the subjects are called: a position that looks at a subject's words sees its reference."""

    contexts: Sequence[Tensor]
    """What the text encoders give for each subject's words alone, ``[1, t, c]``."""
    lengths: Sequence[int]
    """How many tokens of these the words are, behind the first one, which begins every text."""
    by: By = "place"


class References:
    """The references of some subjects."""

    def __init__(
        self,
        adapter: Adapter,
        tokens: Tensor,
        layers: Mapping[str, int],
        regions: Regions,
        strength: float,
        words: Words | None = None,
        nothing: Tensor | None = None,
    ) -> None:
        """``tokens``: ``[pictures, n, t, context]``, one picture's count for all; ``layers``: the number of each
        cross-attention in the adapter's order, by its name; ``nothing``: the tokens ``[1, t, context]`` that other
        prompts see, None for no token at all, as in MS-Diffusion.
        """
        self.adapter, self.tokens, self.layers = adapter, tokens, layers
        self.regions, self.strength, self.words, self.nothing = regions, strength, words, nothing
        self._ready: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def check(self, size: tuple[int, int]) -> None:
        """Raise `OtherShape` for a latent of another shape (height, width) than the regions."""
        self.regions.check(size)

    def release(self) -> None:
        """Forget keys and values, which are projected once for a run, and the weights of all levels."""
        self._ready.clear()
        self.regions.release()

    def texts(self, like: Tensor) -> list[Tensor]:
        """Return the subjects' words as inputs of keys, ``[b, t, c]`` for the picture's own prompt ``like``."""
        found = self.words.contexts if self.words is not None and self.strength else ()
        return [one.to(like).expand(len(like), -1, -1) for one in found]

    def seen(
        self,
        layer: str,
        q: Tensor,
        text: Tensor,
        names: Sequence[Tensor],
        call: Call,
        size: tuple[int, int],
        heads: int,
    ) -> Tensor | None:
        """Return what is added to the answer to the text ``[b, p, c]``; None for nothing.

        ``names``: the keys of the subjects' words ``[b, t, c]``, as the layer makes them of `texts`.
        """
        number = self.layers.get(layer)
        if number is None or not self.strength:
            return None
        found = torch.zeros_like(q)
        rows = list(call.positive)
        if rows:
            own = call.only_positive()
            found[rows] = self._own(number, q[rows], [one[rows] for one in names], own, size, heads)
        others = list(call.others)
        if others and self.nothing is not None:
            keys, values = self._projected("nothing", number, self.nothing[:, None], q)
            covered = self.regions.at(size, call, q)[others].sum(-1, keepdim=True).clamp(max=1)
            every = [one.expand(len(others), -1, -1, -1) for one in (keys, values)]
            found[others] = look(q[others], every[0], every[1], covered, heads)
        if self.adapter.gates is not None:
            found = found * _gate(text, self.adapter.gates[number])
        return found * self.strength

    def _own(
        self, number: int, q: Tensor, names: Sequence[Tensor], call: Call, size: tuple[int, int], heads: int
    ) -> Tensor:
        """Return what the positive prompt's rows see."""
        keys, values = self._projected("own", number, self.tokens, q)
        rows = [picture % len(keys) for picture in call.pictures]
        keys, values = keys[rows], values[rows]
        places = self.regions.at(size, call, q)
        if self.words is None:
            return look(q, keys, values, places, heads)
        shares = _shares(q, names, self.words, places, heads)
        found = torch.zeros_like(q)
        for index in range(shares.shape[-1]):
            everywhere = torch.ones_like(places[..., :1])
            one = look(q, keys[:, index, None], values[:, index, None], everywhere, heads)
            found += shares[..., index, None] * one
        return found

    def _projected(self, what: str, number: int, tokens: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of tokens, ``[..., c]``, in a layer."""
        key = (what, number, like.device, like.dtype)
        if key not in self._ready:
            on = tokens.to(like)
            weights = (self.adapter.keys[number], self.adapter.values[number])
            keys, values = (torch.nn.functional.linear(on, weight.to(like)) for weight in weights)
            self._ready[key] = keys, values
        return self._ready[key]


def _shares(q: Tensor, names: Sequence[Tensor], words: Words, places: Tensor, heads: int) -> Tensor:
    """Return how much of each subject's answer counts at each position, ``[b, p, n]``.

    A subject's keys look at the positions (softmax over these), the mean over its tokens and the heads.
    """
    queries = apart(q, heads).float()
    maps = []
    for keys, length in zip(names, words.lengths, strict=True):
        k = apart(keys[:, 1 : 1 + length], heads).float()
        maps.append(((k @ queries.mT) * k.shape[-1] ** -0.5).softmax(-1).mean((1, 2)))
    found = torch.stack(maps, -1)
    if words.by == "subject":
        return (found / found.mean(1, keepdim=True)).to(q) * places
    found = found * places.float()
    total = found.sum(-1, keepdim=True)
    return (found / total.clamp(min=1e-30)).to(q) * places.sum(-1, keepdim=True).clamp(max=1)


def _gate(text: Tensor, weight: Tensor) -> Tensor:
    """Return MIP-Adapter's gate of each position, ``[b, p, 1]``, whose mean over positions is 1."""
    found = torch.nn.functional.linear(text, weight.to(text)).float().sigmoid()
    return (found / found.mean(1, keepdim=True)).to(text)
