"""One subject cut out of one photo, small and clean, and drawn at any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..levels import to_bytes
from ..masks import large_pieces, mask_box
from ..types import MudiError, Subject

Pixels = NDArray[Any]
"""8-bit, 0..255."""

SOFT = 0.1
"""Mask values below this are noise (for example of a JPEG mask), not a soft edge."""
_REACH = 6
"""Pixels by which the subject's colours continue beyond its edge; smoothing and resizing reach no further."""
_RIM = 400
"""For every this many pixels of the cut-out's longer side, one pixel of its edge counts as mixed with the background;
never more than two."""
_SMALLEST = 48
"""Pixels: no smaller copies of cut-outs are kept."""
_ROUND = 1.0
"""Pixels of the cut-out: how far its outline is blurred where it is enlarged, so that its steps are not seen."""
_STEEP = 1.5
"""How much steeper the blurred outline is made again: an edge about as soft as before."""
_THIN = 32
"""0..255: a mask that a square of three pixels does not fit into by more than this is thin."""


class EmptyMask(MudiError):
    """A photo whose mask is empty, so that there is nothing to cut out."""


@dataclass(frozen=True, eq=False)
class CutOut:
    """The subject of one photo without its surroundings."""

    sizes: tuple[Pixels, ...]
    """RGBA ``[h, w, 4]``, 0..255, not premultiplied: the full size, then halves of it for small figures."""

    @property
    def aspect(self) -> float:
        """Width divided by height."""
        return float(self.sizes[0].shape[1] / self.sizes[0].shape[0])


def turned_aspect(aspect: float, rotation: float) -> float:
    """Return width divided by height of the box around a box of this aspect, rotated by these degrees."""
    cos, sin = _cos_sin(rotation)
    return (aspect * cos + sin) / (aspect * sin + cos)


def _cos_sin(rotation: float) -> tuple[float, float]:
    return abs(math.cos(math.radians(rotation))), abs(math.sin(math.radians(rotation)))


def upright_size(aspect: float, size: tuple[int, int], rotation: float) -> tuple[int, int]:
    """Return width and height of the box of this aspect that is as large as ``size`` when it is rotated."""
    if not rotation:
        return size
    cos, sin = _cos_sin(rotation)
    width = size[0] / (cos + sin / aspect)
    return max(round(width), 1), max(round(width / aspect), 1)


def drawn(cut_out: CutOut, size: tuple[int, int], mirror: bool, rotation: float = 0.0) -> Pixels:
    """Return the cut-out as RGBA ``[h, w, 4]``, 0..255, at this width and height, mirrored or not, rotated clockwise.

    It is made from the smallest copy that is not smaller than that.
    """
    import cv2

    if rotation:
        upright = upright_size(cut_out.aspect, size, rotation)
        turn: NDArray[Any] = cv2.getRotationMatrix2D(((upright[0] - 1) / 2, (upright[1] - 1) / 2), -rotation, 1.0)
        turn[:, 2] += (size[0] - upright[0]) / 2, (size[1] - upright[1]) / 2
        turned: Pixels = cv2.warpAffine(drawn(cut_out, upright, mirror), turn, size)
        return turned
    pixels: Pixels = cut_out.sizes[0]
    for smaller in cut_out.sizes[1:]:
        if smaller.shape[1] >= size[0] and smaller.shape[0] >= size[1]:
            pixels = smaller
    grows = size[0] > pixels.shape[1] or size[1] > pixels.shape[0]
    # Smaller, by less than half: linear uses every pixel.
    pixels = _enlarged(pixels, size) if grows else cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return cv2.flip(pixels, 1) if mirror else pixels


def _enlarged(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return RGBA at a larger width and height, with the steps of its outline rounded off.

    What is thinner than three pixels would be rounded away: it keeps its own outline.
    """
    import cv2

    alpha, square = np.ascontiguousarray(pixels[..., 3]), np.ones((3, 3), np.uint8)
    thin = cv2.subtract(alpha, cv2.morphologyEx(alpha, cv2.MORPH_OPEN, square)) > _THIN
    thin = cv2.dilate(thin.astype(np.uint8), square) * alpha
    larger: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
    factor = max(size[0] / alpha.shape[1], size[1] / alpha.shape[0])
    much = min(factor - 1, 1.0)
    soft = cv2.GaussianBlur(larger[..., 3].astype(np.float32), (0, 0), _ROUND * factor * much + 0.01)
    steep = 1 + _STEEP * much
    rounded = np.clip((soft - 127.5) * steep + 127.5, 0, 255)
    larger[..., 3] = np.maximum(np.rint(rounded), cv2.resize(thin, size, interpolation=cv2.INTER_LINEAR))
    return larger


def cut_out(subject: Subject, index: int, max_side: int) -> CutOut:
    """Cut a subject out of one of its photos, as `cutouts.cut_outs` says. Raise `EmptyMask`."""
    import cv2

    photo, (mask, box) = subject.photos[index], _without_specks(subject.masks[index])
    if box is None:
        raise EmptyMask(f"{photo.name}: the mask of '{subject.token}' is empty. Draw it again or leave the photo out.")
    # Two more pixels on each side, where the smoothed edge can end.
    x0, y0 = max(box[0] - 2, 0), max(box[1] - 2, 0)
    x1, y1 = min(box[2] + 2, photo.size[0]), min(box[3] + 2, photo.size[1])
    rgb: Pixels
    alpha: Pixels
    rgb, alpha = to_bytes(photo.image[y0:y1, x0:x1]), to_bytes(mask[y0:y1, x0:x1])
    alpha[alpha < 255 * SOFT] = 0
    shrink = max_side / max(alpha.shape)
    if shrink < 1:
        size = (max(round(alpha.shape[1] * shrink), 1), max(round(alpha.shape[0] * shrink), 1))
        rgb, alpha = (cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) for pixels in (rgb, alpha))
    rgb = _carried_on(rgb, alpha, rim=min(round(max(alpha.shape) / _RIM), 2))
    # The steps of a mask of zeros and ones would be visible when the figure is enlarged.
    alpha = cv2.GaussianBlur(alpha, (3, 3), 0.7)
    sizes = [cv2.merge([*cv2.split(rgb), alpha])]
    while max(alpha.shape) >= 2 * _SMALLEST and min(alpha.shape) > 1:
        size = ((alpha.shape[1] + 1) // 2, (alpha.shape[0] + 1) // 2)
        rgb, alpha = (cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) for pixels in (rgb, alpha))
        rgb = _carried_on(rgb, alpha, rim=0)
        sizes.append(cv2.merge([*cv2.split(rgb), alpha]))
    return CutOut(tuple(sizes))


def _without_specks(mask: Tensor) -> tuple[Tensor, tuple[int, int, int, int] | None]:
    """Return a mask ``[h, w]`` without the small pieces beside the subject, and the box around what stays."""
    box = mask_box(mask, SOFT)
    if box is None:
        return mask, None
    x0, y0, x1, y1 = box
    kept = large_pieces((mask[y0:y1, x0:x1] > SOFT).numpy())
    if kept is None:
        return mask, box
    clean = mask + 0
    clean[y0:y1, x0:x1] *= torch.from_numpy(kept)
    return clean, mask_box(clean, SOFT)


def _carried_on(rgb: Pixels, alpha: Pixels, rim: int) -> Pixels:
    """Replace the colours at the soft edge and `_REACH` pixels beyond by the subject's own; further out use black.

    The edge pixels of a photo contain some background, which would show around the subject as a halo. They, and a rim
    of this many pixels inside, get the colours of the nearest pixels that belong wholly to the subject.
    """
    import cv2

    window = (2 * _REACH + 1, 2 * _REACH + 1)
    own: Pixels = (alpha >= 250).astype(np.uint8)
    if rim:
        own = cv2.erode(own, np.ones((2 * rim + 1, 2 * rim + 1), np.uint8), borderValue=1)
    # A limb thinner than its rim, or a mask that is nowhere 1, has no such pixels nearby: it keeps its colours.
    own = np.where(cv2.dilate(own, np.ones(window, np.uint8)) > 0, own, alpha >= 128).astype(np.uint8)
    # Both blurs are exactly 0 where no such pixel is near.
    total = cv2.GaussianBlur(own.astype(np.float32), window, _REACH / 4)
    summed = cv2.GaussianBlur(cv2.copyTo(rgb, own).astype(np.float32), window, _REACH / 4)
    colours = np.rint(summed / np.maximum(total, 1e-12)[..., None]).clip(0, 255).astype(np.uint8)
    carried: Pixels = cv2.copyTo(rgb, own, colours)
    return carried
