"""Prompts of their own for regions of a picture (Mix-of-Show, section 3.3, "regionally controllable sampling").

In every cross-attention a region's positions attend to the region's own prompt instead of the picture's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import MudiError
from .call import Call
from .regions import Regions


class OtherText(MudiError):
    """Prompts that were encoded for another kind of model."""


class RegionalPrompts:
    """A prompt for each region."""

    def __init__(self, contexts: Sequence[Tensor], regions: Regions, strength: float = 1.0) -> None:
        """``contexts``: what the text encoders give for the prompt of each region, ``[1, t, c]``.

        ``strength``: 0..1, how much of the picture's own prompt is replaced inside (Mix-of-Show: all).
        """
        used = [index for index in range(len(contexts)) if not regions.empty(index)]
        self.contexts = [contexts[index] for index in used]
        self.regions, self.strength = Regions(regions.masks[:, used]), strength

    @property
    def silent(self) -> bool:
        """Whether it changes nothing."""
        return not self.contexts or self.strength == 0

    def check(self, size: tuple[int, int]) -> None:
        """Raise `OtherShape` for a latent of another shape (height, width) than the regions."""
        if self.contexts:
            self.regions.check(size)

    def release(self) -> None:
        """Forget the weights of all levels."""
        self.regions.release()

    def texts(self, like: Tensor) -> list[Tensor]:
        """Return the prompts as inputs of keys and values, ``[b, t, c]`` for the picture's own, ``like``.

        Raise `OtherText` where they have other channels.
        """
        for one in self.contexts:
            if one.shape[-1] != like.shape[-1]:
                raise OtherText(
                    f"The regions' prompts have {one.shape[-1]} channels, this model reads {like.shape[-1]}. Connect "
                    "the CLIP of the model's own checkpoint."
                )
        return [one.to(like).expand(len(like), -1, -1) for one in self.contexts]

    def blend(self, outside: Tensor, inside: Sequence[Tensor], call: Call, size: tuple[int, int]) -> Tensor:
        """Return the attention's answer ``[b, p, c]`` from that to the picture's prompt and those to the regions'.

        Where regions overlap, it is their mean; where none is, ``outside`` to the bit.
        """
        weights = self.regions.at(size, call, outside)
        total = weights.sum(-1, keepdim=True)
        mixed = sum(one * weights[..., index, None] for index, one in enumerate(inside)) / total.clamp(min=1e-6)
        share = self.strength * total.clamp(max=1)
        return torch.where(total > 0, (1 - share) * outside + share * mixed, outside)
