"""What the linear layers of a network read while it works: the inputs that a fusion needs of each concept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .fuse import Inputs


class Gathered:
    """The inputs of some layers. Layers that read the very same tensor, such as q, k and v, share theirs."""

    def __init__(self, per_call: int | None, seed: int) -> None:
        self._per_call, self._generator = per_call, torch.Generator().manual_seed(seed)
        self._shared: dict[str, Inputs] = {}
        self._leader: dict[str, str] = {}
        self._seen: list[tuple[weakref.ref[Tensor], str]] = []

    def of(self, layer: str) -> Inputs | None:
        """Return the inputs of a layer; None where it was never called."""
        leader = self._leader.get(layer)
        return None if leader is None else self._shared[leader]

    def leader(self, layer: str) -> str:
        """Return the name of the layer whose inputs are those of this layer."""
        return self._leader[layer]

    def hear(self, layer: str, x: Tensor) -> None:
        """Take in what a layer was just called with, ``[..., width]``."""
        if layer not in self._leader:
            self._seen = [(ref, leader) for ref, leader in self._seen if ref() is not None]
            known = next((leader for ref, leader in self._seen if ref() is x), None)
            self._leader[layer] = known or layer
            if known is None:
                self._seen.append((weakref.ref(x), layer))
                self._shared[layer] = Inputs(x.shape[-1])
        if self._leader[layer] != layer:
            return
        rows = x.detach().reshape(-1, x.shape[-1])
        if self._per_call is not None and len(rows) > self._per_call:
            chosen = torch.randperm(len(rows), generator=self._generator)[: self._per_call]
            rows = rows[chosen.to(rows.device)]
        self._shared[layer].add(rows)


@contextmanager
def gathered(layers: Mapping[str, nn.Module], per_call: int | None = None, seed: int = 0) -> Iterator[Gathered]:
    """Inside the block all that the layers read is taken in; afterwards they are as before.

    ``per_call``: at most so many rows of each call, drawn at random; None: all.
    """
    heard = Gathered(per_call, seed)

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hear(_: nn.Module, given: tuple[Any, ...]) -> None:
            heard.hear(name, given[0])

        return hear

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
