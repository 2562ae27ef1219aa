"""Where each subject of a picture stands, as weights of a layer's positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..masks import resize
from ..types import MudiError
from .call import Call

_OTHER = 0.1
"""Shares of width and height may differ by this part, which rounding to whole cells does."""


class OtherShape(MudiError):
    """Regions of a picture of another shape than the one that is sampled."""


class Regions:
    """The regions of a picture, or of each picture of a batch."""

    def __init__(self, masks: Tensor) -> None:
        """``masks``: float ``[pictures, n, h, w]``, 0..1, of any size. One picture's count for every picture."""
        self.masks = masks.detach().to("cpu", torch.float32)
        self._empty: dict[int, bool] = {}
        self._everywhere: dict[int, bool] = {}
        self._levels: dict[tuple[object, ...], Tensor] = {}

    @property
    def count(self) -> int:
        """How many regions a picture has."""
        return self.masks.shape[1]

    def empty(self, index: int) -> bool:
        """Return whether a region has no place in any picture."""
        if index not in self._empty:
            self._empty[index] = not bool(self.masks[:, index].any())
        return self._empty[index]

    def everywhere(self, index: int) -> bool:
        """Return whether a region is the whole of every picture."""
        if index not in self._everywhere:
            self._everywhere[index] = bool((self.masks[:, index] == 1).all())
        return self._everywhere[index]

    def check(self, size: tuple[int, int]) -> None:
        """Raise `OtherShape` where a latent of this height and width has another shape than the regions."""
        height, width = self.masks.shape[-2:]
        if abs(math.log(size[1] / size[0] * height / width)) > _OTHER:
            raise OtherShape(
                f"The regions are of a picture {_ratio(width, height)} (width to height), and a part of "
                f"{_ratio(size[1], size[0])} is sampled. Give Layout and the latent one size, and no prompt an area."
            )

    def at(self, size: tuple[int, int], call: Call, like: Tensor) -> Tensor:
        """Return the weights ``[b, p, n]``, 0..1, of a layer's positions (height, width), in a tensor's type."""
        key = (size, call.pictures, like.device, like.dtype)
        if key not in self._levels:
            small = resize(self.masks, (size[1], size[0])).flatten(2).transpose(1, 2)
            rows = [picture % len(small) for picture in call.pictures]
            self._levels[key] = small[rows].to(like)
        return self._levels[key]

    def release(self) -> None:
        """Forget the weights of all levels."""
        self._levels.clear()


def _ratio(width: int, height: int) -> str:
    return f"{width / height:.2f} : 1"
