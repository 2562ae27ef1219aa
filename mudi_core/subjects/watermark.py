"""An invisible mark that says "this picture was generated", and its detector.

Spread spectrum (Cox, Kilian, Leighton and Shamoon, IEEE Trans. Image Processing 6(12), 1997): thousands of low
frequencies of the luminance, counted per picture and not per pixel, are moved a little, each up or down as a key says.
So the mark survives recompression and resizing; cropping, rotation and somebody who wants it gone remove it. Nobody
finds it without the key: the signs of a picture without the mark agree with the key's as often as coins do.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

KEY = "made with MuDI"
"""The key that everybody knows. With one of your own nobody else can find the mark."""
STRENGTH = 3 / 255
"""Standard deviation of what is added to the luminance of a picture: 39 dB below full scale."""
LOWEST, HIGHEST = 8.0, 80.0
"""Half waves per side of the picture that the mark uses."""
SURE = 6.0
"""Standard deviations: a picture without the mark gets there once in 10^9."""
FEWEST = 100
"""Frequencies that a mark needs to be found again: a picture of 16x16 px has 200, one of 8x8 px has 15."""
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Mark:
    """What the detector says of a picture."""

    score: float
    """Standard deviations above what pictures without the mark have."""

    @property
    def found(self) -> bool:
        return self.score >= SURE


def holds_mark(image: Tensor) -> bool:
    """Whether a picture ``[h, w, 3]`` has enough frequencies for a mark to be found again."""
    height, width = image.shape[:2]
    return int((_signs(KEY)[:height, :width] != 0).sum()) >= FEWEST


def add_mark(image: Tensor, key: str = KEY, strength: float = 1.0) -> Tensor:
    """The picture ``[h, w, 3]``, 0..1, with the mark; ``strength`` multiplies `STRENGTH`."""
    height, width = image.shape[:2]
    pattern = _waves(height).T @ _signs(key) @ _waves(width)
    pattern *= strength * STRENGTH / pattern.std(correction=0).clamp(min=1e-12)
    return (image + pattern.to(image)[..., None]).clamp(0, 1)


def find_mark(image: Tensor, key: str = KEY) -> Mark:
    """Look for the mark of a key in a picture ``[h, w, 3]``, 0..1, of whatever size it has now."""
    height, width = image.shape[:2]
    luminance = image.detach().cpu().double() @ torch.tensor(_LUMINANCE, dtype=torch.float64)
    found = _waves(height) @ luminance @ _waves(width).T
    signs = _signs(key)
    used = signs != 0
    # Pictures have more of the low frequencies than of the high: each counts by how much it stands out of its like.
    like = (found**2).where(used, 0)
    around = torch.nn.functional.avg_pool2d(like[None], 9, 1, 4)[0] / _share(used)
    weighed = (signs * found / around.clamp(min=1e-18))[used]
    return Mark(float(weighed.sum() / weighed.norm().clamp(min=1e-12)))


def _waves(length: int) -> Tensor:
    """Cosines ``[n, length]`` of 0, 1, 2, ... half waves, each of norm 1; 0 where the pixels are too few for it."""
    count = math.floor(HIGHEST) + 1
    half_waves = torch.arange(count, dtype=torch.float64)[:, None]
    waves = torch.cos(math.pi * half_waves * (torch.arange(length, dtype=torch.float64) + 0.5) / length)
    scaled: Tensor = waves / waves.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return scaled * (half_waves < length)


def _signs(key: str) -> Tensor:
    """1, -1, or 0 outside of the band, for each pair of half waves ``[n, n]``."""
    count = math.floor(HIGHEST) + 1
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") % 2**63
    coins = torch.randint(0, 2, (count, count), generator=torch.Generator().manual_seed(number)) * 2 - 1
    half_waves = torch.arange(count, dtype=torch.float64)
    radius = (half_waves[:, None] ** 2 + half_waves[None] ** 2).sqrt()
    return coins * ((radius >= LOWEST) & (radius <= HIGHEST)).double()


def _share(used: Tensor) -> Tensor:
    """How many of a frequency's neighbours belong to the band."""
    return torch.nn.functional.avg_pool2d(used.double()[None], 9, 1, 4)[0].clamp(min=1e-12)
