"""A picture that the subjects are put into: fitted to the canvas, encoded, and kept where no figure comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from ..mudi_core.stage.regions import CELL, drawn_anew
from . import convert

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import Layout
    from .sockets import PlacedSubjects


def fitted(images: Tensor, size: tuple[int, int]) -> tuple[Tensor, str]:
    """Return the first picture of an IMAGE as ``[h, w, 3]`` of this width and height, and a remark about it.

    A picture of another size covers the canvas, and what stands over is cut off on both sides. Raise `BadImages`.
    """
    import cv2

    found = convert.pictures(images)
    picture, (width, height) = found[0] + 0, size
    high, wide = picture.shape[:2]
    said = f"scene: the first of {len(found)} pictures is used." if len(found) > 1 else ""
    if (wide, high) == size:
        return picture, said
    scale = max(width / wide, height / high)
    w, h = (max(1, min(round(side / scale), whole)) for side, whole in ((width, wide), (height, high)))
    x0, y0 = (wide - w) // 2, (high - h) // 2
    part = picture[y0 : y0 + h, x0 : x0 + w].contiguous().numpy()
    resized = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    cut = " and cut" if (w, h) != (wide, high) else ""
    told = f"scene: a picture of {wide}x{high} px was resized{cut} to {width}x{height} px."
    return torch.from_numpy(resized).clamp(0, 1), " ".join(filter(None, [said, told]))


def encoded(placed: PlacedSubjects, vae: Any, model: Any = None) -> Tensor | None:
    """Return the scene of a layout as a LATENT's samples ``[1, c, ..., h/f, w/f]``; None without one."""
    return None if placed.scene is None else convert.encode_image(vae, model)(placed.scene[None])


def changed(placed: PlacedSubjects, layout: Layout, around: float) -> tuple[Tensor | None, Tensor]:
    """Return the noise mask ``[1, 1, h/8, w/8]`` of the scene's latent, and how new each pixel is ``[h, w]``, 0..1.

    A pixel becomes new softly, over the outermost cell of what the sampler may change. Without a scene: None, and ones.
    """
    import cv2

    width, height = layout.size
    if placed.scene is None:
        return None, torch.ones(height, width)
    cells = drawn_anew(layout, placed.cutouts, around)
    pixels = functional.interpolate(cells[None, None], size=(height, width), mode="nearest")[0, 0].numpy()
    side = (CELL + 1, CELL + 1)
    soft = cv2.blur(cv2.erode(pixels, np.ones(side, np.uint8), borderValue=1), side, borderType=cv2.BORDER_REPLICATE)
    return cells[None, None], torch.from_numpy(soft).clamp(0, 1)


def put_into(placed: PlacedSubjects, new: Tensor, picture: Tensor) -> Tensor:
    """Return a finished picture ``[h, w, 3]`` where it is ``new``, and the scene elsewhere, equal to the bit."""
    if placed.scene is None:
        return picture
    share = new[..., None]
    return torch.where(share > 0, placed.scene * (1 - share) + picture * share, placed.scene)
