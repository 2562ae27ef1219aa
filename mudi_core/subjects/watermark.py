"""An invisible mark that says "this picture was generated", and its detector.

Spread spectrum (Cox, Kilian, Leighton and Shamoon, IEEE Trans. Image Processing 6(12), 1997): thousands of low
frequencies of the luminance, counted per picture and not per pixel, are changed a little, up or down as a key says. So
the mark survives recompression and resizing; cropping, rotation and deliberate removal destroy it. Nobody finds it
without the key: in a picture without the mark, the signs agree with the key only by chance.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

KEY = "made with MuDI"
"""The public key. With your own key nobody else can find the mark."""
STRENGTH = 3 / 255
"""Standard deviation of the change of the luminance: 39 dB below full scale."""
LOWEST, HIGHEST = 8.0, 80.0
"""The band of the mark, in half waves per side of the picture."""
SURE = 6.0
"""Least score of a mark, in standard deviations: a picture without it reaches this once in 10^9."""
FEWEST = 100
"""Frequencies that a mark needs to be found again: a picture of 16x16 px has 200, one of 8x8 px has 15."""
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Mark:
    """The result of the detector for a picture."""

    score: float
    """Standard deviations above the mean of pictures without the mark."""

    @property
    def found(self) -> bool:
        """Whether the picture has the mark."""
        return self.score >= SURE


def holds_mark(image: Tensor) -> bool:
    """Return whether a picture ``[h, w, 3]`` has enough frequencies for a mark to be found again."""
    height, width = image.shape[:2]
    return int((_signs(KEY)[:height, :width] != 0).sum()) >= FEWEST


def add_mark(image: Tensor, key: str = KEY, strength: float = 1.0) -> Tensor:
    """Return a picture ``[h, w, 3]``, 0..1, with the mark of a key; ``strength`` multiplies `STRENGTH`."""
    height, width = image.shape[:2]
    pattern = _waves(height).T @ _signs(key) @ _waves(width)
    pattern *= strength * STRENGTH / pattern.std(correction=0).clamp(min=1e-12)
    return (image + pattern.to(image)[..., None]).clamp(0, 1)


def find_mark(image: Tensor, key: str = KEY) -> Mark:
    """Look for the mark of a key in a picture ``[h, w, 3]``, 0..1, of any size."""
    height, width = image.shape[:2]
    luminance = image.detach().cpu().double() @ torch.tensor(_LUMINANCE, dtype=torch.float64)
    found = _waves(height) @ luminance @ _waves(width).T
    signs = _signs(key)
    used = signs != 0
    # Pictures have stronger low frequencies than high ones: each counts relative to its neighbours.
    like = (found**2).where(used, 0)
    around = torch.nn.functional.avg_pool2d(like[None], 9, 1, 4)[0] / _share(used)
    weighed = (signs * found / around.clamp(min=1e-18))[used]
    return Mark(float(weighed.sum() / weighed.norm().clamp(min=1e-12)))


def _waves(length: int) -> Tensor:
    """Return cosines ``[n, length]`` of 0, 1, 2, ... half waves, each of norm 1; 0 when there are too few pixels."""
    count = math.floor(HIGHEST) + 1
    half_waves = torch.arange(count, dtype=torch.float64)[:, None]
    waves = torch.cos(math.pi * half_waves * (torch.arange(length, dtype=torch.float64) + 0.5) / length)
    scaled: Tensor = waves / waves.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return scaled * (half_waves < length)


def _signs(key: str) -> Tensor:
    """Return 1, -1, or 0 outside the band, for each pair of half waves ``[n, n]``."""
    count = math.floor(HIGHEST) + 1
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") % 2**63
    coins = torch.randint(0, 2, (count, count), generator=torch.Generator().manual_seed(number)) * 2 - 1
    half_waves = torch.arange(count, dtype=torch.float64)
    radius = (half_waves[:, None] ** 2 + half_waves[None] ** 2).sqrt()
    return coins * ((radius >= LOWEST) & (radius <= HIGHEST)).double()


def _share(used: Tensor) -> Tensor:
    """Return how many neighbours of each frequency belong to the band."""
    return torch.nn.functional.avg_pool2d(used.double()[None], 9, 1, 4)[0].clamp(min=1e-12)
