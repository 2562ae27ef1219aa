"""LoRAs of any kind on a network for a while; afterwards its weights are the very tensors of before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .change import Change
from .names import UNET, our_name

Worn = tuple[Mapping[str, Change], float]
"""Changes by our name of each layer, and how strongly they act."""


@contextmanager
def worn(network: nn.Module, *loras: Worn, prefix: str = UNET) -> Iterator[None]:
    """Inside the block the network has the changes of some LoRAs added up; those of other networks do nothing.

    ``prefix``: what our names of the network's layers begin with (`names.UNET`, one of `names.TEXT`). Nothing is
    trained in it: the weights change, not the forward. Takes as much memory as the changed weights.
    """
    before: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for name, module in layers_of(network, prefix).items():
                acts = [(lora[name], strength) for lora, strength in loras if name in lora and strength]
                if acts:
                    weight = module.weight
                    assert isinstance(weight, nn.Parameter)
                    before.append((weight, weight.data))
                    new = weight.data.float()
                    for change, strength in acts:
                        new = new + strength * change.delta(weight.data)
                    weight.data = new.to(weight.dtype)
        yield
    finally:
        for weight, data in before:
            weight.data = data


def layers_of(network: nn.Module, prefix: str = UNET) -> dict[str, nn.Module]:
    """Return the linear layers and convolutions of a network with diffusers' names, by our name of each."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            found[our_name(prefix + name.replace(".", "_"))] = module
    return found


def sizes_of(network: nn.Module, prefix: str = UNET) -> dict[str, tuple[int, int]]:
    """Return rows and values per row of the weight of each of `layers_of`."""
    sizes = {}
    for name, module in layers_of(network, prefix).items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        sizes[name] = (weight.shape[0], weight[0].numel())
    return sizes
