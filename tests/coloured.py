"""Subjects of one colour each, on photos of another: what the eye would look for can then be counted."""

from __future__ import annotations

import torch
from torch import Tensor

from mudi_core.types import Photo, Subject, SubjectSet

COLOURS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "black": (0.0, 0.0, 0.0), "orange": (1.0, 0.6, 0.0)}
SURROUNDINGS = (0.0, 1.0, 0.0)


def ellipse(width: int, height: int, radii: tuple[float, float], soft: bool = False) -> Tensor:
    """A mask ``[h, w]`` of an ellipse in the middle, of zeros and ones or with an edge of a pixel."""
    x = (torch.arange(width) + 0.5 - width / 2) / radii[0]
    y = (torch.arange(height) + 0.5 - height / 2) / radii[1]
    distance = (1 - (x[None, :] ** 2 + y[:, None] ** 2).sqrt()) * min(radii)
    return (distance + 0.5).clamp(0, 1) if soft else (distance > 0).float()


def paint(mask: Tensor, colour: tuple[float, float, float]) -> Tensor:
    """A photo ``[h, w, 3]``: the colour where the mask is, grass elsewhere, mixed on a soft edge as a camera would."""
    return mask[..., None] * torch.tensor(colour) + (1 - mask[..., None]) * torch.tensor(SURROUNDINGS)


def coloured(*tokens: str, photos: int = 2, radii: tuple[float, float] = (30, 60), soft: bool = False) -> SubjectSet:
    """A set whose tokens are names of `COLOURS`; the photos are 120 x 200 px and taller ones."""
    subjects = []
    for token in tokens:
        masks = tuple(ellipse(120, 200 + 20 * i, radii, soft) for i in range(photos))
        pictures = tuple(Photo(f"{token}_{i}.png", paint(mask, COLOURS[token])) for i, mask in enumerate(masks))
        subjects.append(Subject(token, "ball", pictures, masks))
    return SubjectSet(tuple(subjects))
