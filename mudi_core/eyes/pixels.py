"""Pictures as a vision model sees them: framed, with its colours, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of red, green and blue, 0..1, in the pictures that a model learned from."""
IMAGENET: Colours = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Colours = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
AT_ONCE = 16
"""Pictures that a model looks at together."""


def scaled(pixels: Tensor, colours: Colours) -> Tensor:
    """Return pixels ``[b, 3, h, w]``, 0..1, with mean 0 and deviation 1 for a model of these colours."""
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in colours)
    return (pixels - mean) / std


@torch.no_grad()
def unit_vectors(
    images: Sequence[Tensor], framed: Callable[[Tensor], Tensor], look: Callable[[Tensor], Tensor], width: int
) -> Tensor:
    """Return a vector of length 1 for each picture ``[h, w, 3]``, ``[n, width]`` on the CPU.

    ``framed`` makes of a picture what the model sees, ``[1, 3, side, side]``; ``look`` gives the vectors of some.
    """
    vectors: list[Tensor] = []
    for start in range(0, len(images), AT_ONCE):
        batch = torch.cat([framed(image) for image in images[start : start + AT_ONCE]])
        vectors.append(functional.normalize(look(batch).float(), dim=1).cpu())
    return torch.cat(vectors) if vectors else torch.empty(0, width)


def to_square(image: Tensor, side: int) -> Tensor:
    """Put a picture ``[h, w, 3]`` in the middle of a white square and resize it to ``[1, 3, side, side]``, 0..1."""
    height, width = image.shape[:2]
    longest = max(height, width)
    left, top = (longest - width) // 2, (longest - height) // 2
    pixels = image.permute(2, 0, 1)[None].float()
    pixels = functional.pad(pixels, (left, longest - width - left, top, longest - height - top), value=1.0)
    if longest == side:
        return pixels
    return functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def middle(image: Tensor, side: int, within: float = 8 / 7) -> Tensor:
    """Return the middle of a picture ``[h, w, 3]``, ``[1, 3, side, side]``; its shorter side became `within` of it.

    So transformers' processor of DINOv2 does (256 pixels, of which it cuts 224), and with it the official code.
    """
    height, width = image.shape[:2]
    scale = side * within / min(height, width)
    size = (max(side, int(height * scale)), max(side, int(width * scale)))
    pixels = functional.interpolate(
        image.permute(2, 0, 1)[None].float(), size, mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return pixels[:, :, top : top + side, left : left + side]


def stretched(image: Tensor, side: int) -> Tensor:
    """Stretch a picture ``[h, w, 3]`` to ``[1, 3, side, side]``, 0..1, as DreamSim's own preprocessing does."""
    pixels = image.permute(2, 0, 1)[None].float()
    return functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
