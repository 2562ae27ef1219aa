"""LoRAs that act each in its own region (seeds: FreeFuse, TARA; here exact, without a second pass).

A linear layer with a LoRA gives ``W x + m * up down x`` with the region's weight ``m`` at the position of ``x``. For
keys and values of a text, which have no position, the change counts where the query stands: see `attend`. So regions of
1 everywhere are the merged LoRAs, and regions of 0 are the network without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear

from .attend import Added, Local
from .call import Call
from .regions import Regions


@dataclass(frozen=True, eq=False)
class Change:
    """What a LoRA adds to a linear layer's weight, with its strength."""

    down: Tensor
    """Float ``[rank, in]``; ``[out, in]``, the change itself, without ``up``."""
    up: Tensor | None = None
    """Float ``[out, rank]``."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return what is added to the layer's answer for x ``[b, p, in]``."""
        inside = linear(x, self.down)
        return inside if self.up is None else linear(inside, self.up)

    def to(self, like: Tensor) -> Change:
        """Return the same on a tensor's device, in its type."""
        return Change(self.down.to(like), None if self.up is None else self.up.to(like))


@dataclass(frozen=True, eq=False)
class _Joined:
    """The changes of several LoRAs of layers that read one input, which cost as much as one of their summed rank."""

    down: Tensor
    """Float ``[all ranks, in]``, layer by layer."""
    ups: tuple[Tensor | None, ...]
    """For each layer float ``[ranks, out]``; None: no LoRA changes it by low rank."""
    owners: tuple[tuple[int, int], ...]
    """Of each block of ranks in turn: the LoRA, and how many they are."""

    def onto(self, answers: Sequence[Tensor], x: Tensor, weights: Tensor) -> list[Tensor]:
        """``weights``: of each rank, ``[b, p, all ranks]``."""
        inside, found, first = linear(x, self.down).mul_(weights).flatten(0, 1), [], 0
        for answer, up in zip(answers, self.ups, strict=True):
            if up is not None:
                piece, first = inside[:, first : first + len(up)], first + len(up)
                answer = torch.addmm(answer.flatten(0, 1), piece, up).view(answer.shape)
            found.append(answer)
        return found


class SeparateLoras:
    """Several LoRAs, each with its own region and, for keys and values of a text, its own words."""

    def __init__(
        self, loras: Sequence[Mapping[str, Change]], regions: Regions, words: Sequence[Tensor | None] | None = None
    ) -> None:
        """``loras``: by the name of a layer ("...attn1.to_q"); the i-th acts in the i-th region.

        ``words``: for each, 1 for the tokens of the prompt that name its subject and 0 for others, ``[t]``; None: it
        changes the keys and values of every token.
        """
        self.regions, self.words = regions, list(words or [None] * len(loras))
        self._used = [index for index in range(len(loras)) if not regions.empty(index)]
        self._loras = loras
        self._limited = [index for index in self._used if self._has_limits(index)]
        self._copies: dict[tuple[object, ...], Change] = {}
        self._ready: dict[tuple[object, ...], tuple[list[tuple[int, int, Change]], _Joined | None]] = {}
        self._spreads: dict[tuple[object, int], tuple[Tensor, Tensor]] = {}
        """With the weights that they were made of, whose identity is theirs."""

    @cached_property
    def layers(self) -> set[str]:
        """The names of all layers that a LoRA with a region changes."""
        return {name for index in self._used for name in self._loras[index]}

    def touches(self, layer: str) -> bool:
        """Return whether any LoRA with a region changes a layer, or one below this name."""
        return any(name.startswith(layer) for name in self.layers)

    def check(self, size: tuple[int, int]) -> None:
        """Raise `OtherShape` for a latent of another shape (height, width) than the regions."""
        self.regions.check(size)

    def release(self) -> None:
        """Forget what was copied to the device that computes."""
        self._copies.clear()
        self._ready.clear()
        self._spreads.clear()
        self.regions.release()

    def onto(
        self, layers: tuple[str, ...], answers: Sequence[Tensor], x: Tensor, call: Call, size: tuple[int, int]
    ) -> list[Tensor]:
        """Return the answers ``[b, p, out]`` of layers with what is added to each.

        ``x``: what all of them read, ``[b, p, in]``, of a picture's positions.
        """
        found, (alone, joined) = list(answers), self._at(layers, x, self._used)
        if joined is None and not alone:
            return found
        weights = self.regions.at(size, call, x)
        if joined is not None:
            found = joined.onto(found, x, self._spread(joined.owners, weights))
        for place, index, change in alone:
            found[place] = found[place] + change(x) * weights[..., index, None]
        return found

    def whole(self, layer: str, x: Tensor) -> Tensor | None:
        """Return what LoRAs without limits, in place or words, add to the answer for a text x ``[b, t, in]``."""
        found = None
        for index in self._used:
            if index not in self._limited and layer in self._loras[index]:
                more = self._of(index, layer, x)(x)
                found = more if found is None else found + more
        return found

    def limited(
        self,
        attention: str,
        texts: tuple[Tensor, Tensor],
        first: int,
        call: Call,
        like: Tensor,
        size: tuple[int, int],
        width: int,
    ) -> list[Local]:
        """Return the changes of keys and values by LoRAs with limits.

        ``texts``: what keys and values are made of, ``[b, t, in]``; the first ``first`` tokens are the prompt's,
        others those of regions, which are the subject's own words. ``like``: the queries; ``width``: of a head.
        """
        found = []
        for layer, text in zip(("to_k", "to_v"), texts, strict=True):
            alone, joined = self._at((attention + layer,), text, self._limited)
            if joined is None and not alone:
                continue
            weights = self.regions.at(size, call, like)
            tokens = {index: self._tokens(index, text, first, call) for index in self._limited}
            added = [Added(weights[..., one, None], change(text) * tokens[one]) for _, one, change in alone]
            if joined is not None:
                added += self._low(joined, linear(text, joined.down), weights, tokens, width)
            found += [Local(keys=one) if layer == "to_k" else Local(values=one) for one in added]
        return found

    def _low(
        self, joined: _Joined, inside: Tensor, weights: Tensor, tokens: dict[int, Tensor | float], width: int
    ) -> list[Added]:
        """Return the changes of low rank, as one where their ranks are fewer than the columns that they have."""
        (up,), ranks = joined.ups, [rank for _, rank in joined.owners]
        assert up is not None
        if any(isinstance(tokens[index], Tensor) for index, _ in joined.owners):
            pieces = zip(torch.split(inside, ranks, -1), joined.owners, strict=True)
            inside = torch.cat([piece * tokens[index] for piece, (index, _) in pieces], -1)
        if len(up) < width * len(ranks):
            return [Added(self._spread(joined.owners, weights), inside, up)]
        parts = zip(torch.split(inside, ranks, -1), torch.split(up, ranks), joined.owners, strict=True)
        return [Added(weights[..., index, None], piece @ own) for piece, own, (index, _) in parts]

    def _spread(self, owners: tuple[tuple[int, int], ...], weights: Tensor) -> Tensor:
        """Return the weight of each rank, ``[b, p, rank]``; once for all layers of a level."""
        key = (owners, id(weights))
        if key not in self._spreads:
            some = [weights[..., index, None].expand(-1, -1, rank) for index, rank in owners]
            self._spreads[key] = weights, torch.cat(some, -1)
        return self._spreads[key][1]

    def _has_limits(self, index: int) -> bool:
        return self.words[index] is not None or not self.regions.everywhere(index)

    def _tokens(self, index: int, text: Tensor, first: int, call: Call) -> Tensor | float:
        """Return the weight of each token, ``[b, t, 1]``: other prompts than the positive one do not name anybody."""
        words = self.words[index]
        if words is None or first % len(words):  # a text of another length is another one
            return 1.0
        inside = torch.ones(text.shape[1])
        inside[:first] = words.float().cpu().repeat(first // len(words))
        return inside.to(text)[None, :, None] * call.is_positive(text)

    def _of(self, index: int, layer: str, like: Tensor) -> Change:
        key = (index, layer, like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = self._loras[index][layer].to(like)
        return self._copies[key]

    def _at(
        self, layers: tuple[str, ...], like: Tensor, whom: Sequence[int]
    ) -> tuple[list[tuple[int, int, Change]], _Joined | None]:
        """Return the dense changes of layers one by one, with the layer's place and the LoRA, and all others as one.

        ``whom``: the LoRAs that count.
        """
        key = (layers, tuple(whom), like.device, like.dtype)
        if key not in self._ready:
            alone, downs, ups, owners = [], [], [], []
            for place, layer in enumerate(layers):
                own = []
                for index in (one for one in whom if layer in self._loras[one]):
                    change = self._loras[index][layer].to(like)
                    if change.up is None:
                        alone.append((place, index, change))
                        continue
                    downs.append(change.down)
                    own.append(change.up.T)
                    owners.append((index, len(change.down)))
                ups.append(torch.cat(own).contiguous() if own else None)
            joined = _Joined(torch.cat(downs), tuple(ups), tuple(owners)) if downs else None
            self._ready[key] = alone, joined
        return self._ready[key]


def loras_of(parts: Sequence[object]) -> list[SeparateLoras]:
    """Return those of several things worn that are LoRAs."""
    return [part for part in parts if isinstance(part, SeparateLoras)]
