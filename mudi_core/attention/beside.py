"""LoRAs in their regions at the linear layers beside attention: feed-forward, and the way into and out of its blocks.

Neither ComfyUI nor diffusers has a patch there, so hooks of torch do it, which stand only as long as they are needed.
What they add has the positions of a picture, as in self-attention; so it is as exact: see `lora`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .call import Call
from .lora import SeparateLoras

OF_A_BLOCK = ("ff.net.0.proj", "ff.net.2")
"""Layers of a transformer block, behind "...transformer_blocks.0."."""
AROUND_BLOCKS = ("proj_in", "proj_out")
"""Layers around the blocks of one place; 1x1 convolutions in SD 1.x."""
_BLOCKS = "transformer_blocks."


def layers_beside(block: str) -> tuple[str, ...]:
    """Return the names of the layers beside a block's attention; ``block``: "...transformer_blocks.0."."""
    place = block.partition(_BLOCKS)[0]
    return tuple(block + layer for layer in OF_A_BLOCK) + tuple(place + layer for layer in AROUND_BLOCKS)


@contextmanager
def beside_attention(network: nn.Module, loras: Sequence[SeparateLoras], call: Callable[[], Call]) -> Iterator[None]:
    """Inside the block these LoRAs act at the layers beside attention.

    ``network``: a U-Net of ComfyUI or diffusers; ``call``: gives the call that is under way.
    """
    ends = tuple(f".{layer}" for layer in OF_A_BLOCK + AROUND_BLOCKS)
    names = dict.fromkeys(name for part in loras for name in part.layers if name.endswith(ends))
    places: dict[str, _Place] = {}
    with ExitStack() as hooks:
        for name in names:
            where = name.partition(_BLOCKS)[0] if _BLOCKS in name else name.rpartition(".")[0] + "."
            if where not in places:
                places[where] = _Place(loras, call)
                blocks = network.get_submodule(where.removesuffix("."))
                hooks.callback(blocks.register_forward_pre_hook(places[where].begins).remove)
            layer = network.get_submodule(name)
            hooks.callback(layer.register_forward_hook(places[where].adds(name)).remove)
        yield


class _Place:
    """The transformer blocks of one place of the network, and the size of the picture there."""

    def __init__(self, loras: Sequence[SeparateLoras], call: Callable[[], Call]) -> None:
        self.loras, self.call = loras, call
        self.size = (0, 0)

    def begins(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        """Note the size of what goes in, ``[b, c, h, w]``."""
        self.size = (given[0].shape[-2], given[0].shape[-1])

    def adds(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        """Return the hook of a layer."""

        def hook(_: nn.Module, given: tuple[Any, ...], answer: Tensor) -> Tensor:
            x, found = (one.flatten(2).transpose(1, 2) if one.ndim == 4 else one for one in (given[0], answer))
            for part in self.loras:
                (found,) = part.onto((name,), (found,), x, self.call(), self.size)
            return found if answer.ndim == 3 else found.transpose(1, 2).reshape_as(answer)

        return hook
