"""ComfyUI's IMAGE, MASK, BOUNDING_BOX, MODEL, CLIP and VAE on the one side, the library's values on the other.

The only place where formats change. What comes in is never written to.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..mudi_core.types import Detections, MudiError
from .sockets import BoundingBox

if TYPE_CHECKING:
    from ..mudi_core.train.encode import EncodeImage, EncodeText
    from ..mudi_core.train.loss import NoiseSchedule

log = logging.getLogger(__name__)


class BadImages(MudiError):
    """Pictures that cannot be one batch, or that are no pictures."""


class BadModel(MudiError):
    """A MODEL, CLIP or VAE that this pack cannot use; the sentence says which it can."""


def pictures(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Every picture of an IMAGE batch or of a list of batches, as float ``[h, w, 3]`` on the CPU; alpha is dropped."""
    batches = [images] if isinstance(images, Tensor) else list(images)
    found = []
    for batch in batches:
        if batch.ndim not in (3, 4) or batch.shape[-1] not in (1, 3, 4):
            raise BadImages(f"Expected pictures [batch, height, width, channels], got a tensor {list(batch.shape)}.")
        for image in batch if batch.ndim == 4 else batch[None]:
            rgb = image[..., :3] if image.shape[-1] >= 3 else image.expand(-1, -1, 3)
            found.append(rgb.detach().to("cpu", torch.float32).clamp(0, 1))
    return found


def image_batch(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures ``[h, w, 3]`` of one size as an IMAGE ``[b, h, w, 3]``."""
    sizes = sorted({(image.shape[1], image.shape[0]) for image in pictures})
    if len(sizes) != 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes) or "none at all"
        raise BadImages(f"A batch needs pictures of one size; these are {listed}. Give them as a list instead.")
    return torch.stack([image.float() for image in pictures])


def masks(masks: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Every mask of a MASK batch or of a list of batches, as float ``[h, w]`` on the CPU."""
    batches = [masks] if isinstance(masks, Tensor) else list(masks)
    found: list[Tensor] = []
    for batch in batches:
        if batch.ndim < 2:
            raise BadImages(f"Expected masks [batch, height, width], got a tensor {list(batch.shape)}.")
        found += list(batch.detach().to("cpu", torch.float32).clamp(0, 1).reshape(-1, *batch.shape[-2:]))
    return found


def boxes(detections: Detections) -> list[BoundingBox]:
    """What was found in one image, as BOUNDING_BOX."""
    return [
        {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "score": score}
        for (x0, y0, x1, y1), score in zip(detections.xyxy.tolist(), detections.confidence.tolist(), strict=True)
    ]


def xyxy(boxes: Sequence[BoundingBox]) -> Tensor:
    """The boxes of one image as float ``[n, 4]``."""
    corners = [(box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]) for box in boxes]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
