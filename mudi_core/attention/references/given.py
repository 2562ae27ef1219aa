"""What a reference adapter is given of subjects: their pictures, cut out, and the boxes where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...eyes.pixels import IMAGENET, scaled, to_square
from ...masks import mask_box
from ...types import Subject
from ..regions import Regions
from .adapter import Adapter


def cut_out(subject: Subject, photos: int) -> list[Tensor]:
    """Return up to so many of a subject's photos, cut out on white, float ``[h, w, 3]``."""
    shown = []
    for photo, mask in zip(subject.photos[:photos], subject.masks, strict=False):
        x0, y0, x1, y1 = mask_box(mask) or (0, 0, mask.shape[1], mask.shape[0])
        soft = mask[y0:y1, x0:x1, None]
        shown.append(photo.image[y0:y1, x0:x1] * soft + (1 - soft))
    return shown


def boxes_of(masks: Tensor) -> Tensor:
    """Return the box around each place, xyxy in 0..1, ``[n, 4]`` of ``[n, h, w]``; zeros where there is none."""
    height, width = masks.shape[-2:]
    found = [mask_box(mask) or (0, 0, 0, 0) for mask in masks]
    return torch.tensor(found) / torch.tensor([width, height, width, height])


def everywhere(masks: Tensor) -> Regions:
    """Return the whole picture as the region of each that has a place, of ``[pictures, n, h, w]``."""
    return Regions((masks.amax((2, 3), keepdim=True) > 0).float().expand_as(masks))


def patches_seen(eye: Any, pictures: Sequence[Tensor]) -> Tensor:
    """Return what a DINOv2 (`eyes.dinov2.Dinov2Embedder`) sees of pictures, ``[n, patches, c]`` on the CPU."""
    pixels = torch.cat([to_square(one, eye.side) for one in pictures]).to(eye.device)
    found: Tensor = eye.model(pixel_values=scaled(pixels, IMAGENET)).last_hidden_state.float().cpu()
    return found


def tokens_of(
    adapter: Adapter, seen: Tensor, whose: Sequence[int], masks: Tensor, phrases: Tensor | None = None
) -> Tensor:
    """Return the tokens of each subject in each picture of a batch, ``[pictures, n, t, context]``.

    ``seen``: of all pictures of subjects; ``whose`` each is, from 0: a subject's tokens are the mean over its pictures.
    ``masks``: ``[pictures, n, h, w]``, where the subjects stand; ``phrases``: ``[n, c]``, where the adapter is
    grounded. Where it is not, one picture's tokens count for all.
    """
    index = torch.tensor(whose)

    def joined(tokens: Tensor) -> Tensor:
        return torch.stack([tokens[index == who].mean(0) for who in range(masks.shape[1])])

    if phrases is None:
        return joined(adapter.tokens(seen))[None]
    return torch.stack([joined(adapter.tokens(seen, phrases[index], boxes_of(one)[index])) for one in masks])
