"""Parts worn in the attention of a diffusers U-Net, as the nodes wear them in a MODEL's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .attend import attend
from .beside import beside_attention
from .call import Call
from .layer import Layer, Part
from .lora import loras_of

_PROCESSOR = ".processor"
_ORDER = ("down_blocks", "up_blocks", "mid_block")


def cross_layers(unet: Any) -> dict[str, int]:
    """Return the number of each cross-attention in the order of reference adapters (down, up, middle), by its name.

    Names end with a dot: "down_blocks.1.attentions.0.transformer_blocks.0.attn2.".
    """
    names = [name.removesuffix(_PROCESSOR) for name in unet.attn_processors if name.endswith(f".attn2{_PROCESSOR}")]
    ordered = sorted(names, key=lambda name: _ORDER.index(name.partition(".")[0]))
    return {f"{name}.": number for number, name in enumerate(ordered)}


def widths_of(unet: Any) -> tuple[list[int], int]:
    """Return the channels of each of `cross_layers`, and those of the text."""
    keys = [unet.get_submodule(f"{name}to_k") for name in cross_layers(unet)]
    return [layer.out_features for layer in keys], keys[0].in_features


@contextmanager
def wearing(unet: Any, parts: Sequence[Part], alphas_cumprod: Tensor, guided: bool) -> Iterator[None]:
    """Inside the block the U-Net wears some parts; afterwards it is as it was.

    ``alphas_cumprod``: float ``[T]``, of its noise schedule; ``guided``: whether it is called with the negative prompts
    first and the positive ones behind, as diffusers' pipelines do; else with positive ones alone.
    """
    own = dict(unet.attn_processors)
    worn = _Worn(parts, ((1 - alphas_cumprod.float()) / alphas_cumprod.float()).sqrt().log(), [1, 0] if guided else [0])
    hook = unet.register_forward_pre_hook(worn.begins, with_kwargs=True)
    try:
        unet.set_attn_processor({name: worn.processor(name, before) for name, before in own.items()})
        with beside_attention(unet, worn.loras, lambda: worn.call):
            yield
    finally:
        hook.remove()
        unet.set_attn_processor(own)
        for part in parts:
            part.release()


class _Worn:
    """The parts, and what is known of the call that is under way."""

    def __init__(self, parts: Sequence[Part], log_sigmas: Tensor, kinds: list[int]) -> None:
        self.parts, self.log_sigmas, self.kinds = parts, log_sigmas, kinds
        self.loras = loras_of(parts)
        self.sizes: dict[int, tuple[int, int]] = {}
        self.call = Call((), (), torch.zeros(0))

    def begins(self, unet: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Note the noise level and the sizes of all levels of a call of the U-Net."""
        sample = given[0] if given else named["sample"]
        timestep = given[1] if len(given) > 1 else named["timestep"]
        height, width = sample.shape[-2:]
        for part in self.parts:
            part.check((height, width))
        self.call = Call.of(self.kinds, self._sigma(torch.as_tensor(timestep)).expand(len(sample)))
        self.sizes = {}
        while height * width not in self.sizes:  # each level has half of the rows and columns, rounded up
            self.sizes[height * width] = height, width
            height, width = -(-height // 2), -(-width // 2)

    def processor(self, name: str, own: Any) -> Any:
        """Return the attention of a layer, ``name`` as diffusers has it: its own where no part acts."""
        layer = name.removesuffix("processor")
        cross = layer.endswith("attn2.")
        acts = (cross and len(self.loras) < len(self.parts)) or any(part.touches(layer) for part in self.loras)
        return _Processor(self, layer, cross) if acts else own

    def _sigma(self, timestep: Tensor) -> Tensor:
        """Return the noise level of a timestep, also of one between two of the schedule, as k-diffusion does."""
        at = timestep.float().cpu().reshape(-1).clamp(0, len(self.log_sigmas) - 1)
        below = at.floor().long()
        above = (below + 1).clamp(max=len(self.log_sigmas) - 1)
        return torch.lerp(self.log_sigmas[below], self.log_sigmas[above], at - below).exp()


class _Processor:
    """The attention of one layer with what is worn, as diffusers calls it."""

    def __init__(self, worn: _Worn, name: str, cross: bool) -> None:
        self.worn, self.name, self.cross = worn, name, cross

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any,
                 **__: Any) -> Tensor:  # fmt: skip
        size = self.worn.sizes.get(hidden_states.shape[1], (0, 0))
        layer = Layer(self.worn.parts, self.worn.call, self.name, self.cross, size)
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        n, context, value = layer.before(hidden_states, text, text)

        def plain(q: Tensor, k: Tensor, v: Tensor, rows: tuple[int, ...]) -> Tensor:
            return attend(q, k, v, attn.heads)

        answer = layer.attention(attn.to_q(n), attn.to_k(context), attn.to_v(value), attn.heads, plain)
        linear, dropout = attn.to_out
        found: Tensor = dropout(layer.after(linear(answer)))
        return found
