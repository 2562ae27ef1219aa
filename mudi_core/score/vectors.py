"""What an embedder is shown of subjects and figures, and the vectors of length 1 that it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ..masks import mask_box
from ..types import MudiError, Subject, SubjectSet

if TYPE_CHECKING:
    from torch import Tensor

    from ..eyes import Embedder


class NoNumbers(MudiError):
    """An embedder that returned NaN or infinity for a picture or photo."""


class NoFace(MudiError):
    """A subject without a face in any photo, for an embedder that compares faces."""


def photo_means(subjects: SubjectSet, embedder: Embedder, cut_out: bool = False) -> Tensor:
    """Return the mean of the unit embeddings of each subject's photos, ``[n, d]``, as `References` has it.

    Photos without a face do not count, where faces are compared. Raise `NoNumbers` or `NoFace`.
    """
    return torch.stack([photo_vectors(one, embedder, cut_out)[0].mean(0) for one in subjects])


def photo_vectors(subject: Subject, embedder: Embedder, cut_out: bool) -> tuple[Tensor, str]:
    """Return the unit vectors of a subject's photos, without those of no face, and a sentence on these or ""."""
    vectors = unit(embedder(reference_images(subject, cut_out)))
    shown = vectors.any(1)
    if not shown.any():
        raise NoFace(
            f"No face was found in any photo of {subject.name}, and this embedder compares faces. Add a photo that "
            "shows its face, or choose another embedder."
        )
    without = [photo.name for photo, one in zip(subject.photos, shown, strict=True) if not one]
    some = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
    return vectors[shown], f"No face was found in {some} of {subject.name}: not compared." if without else ""


def reference_images(subject: Subject, cut_out: bool) -> list[Tensor]:
    """Return what an embedder is shown of a subject: its photos, or squares with it on white."""
    if not cut_out:
        return [photo.image for photo in subject.photos]
    images = []
    for photo, mask in zip(subject.photos, subject.masks, strict=True):
        x0, y0, x1, y1 = mask_box(mask) or (0, 0, *photo.size)
        alpha = mask[y0:y1, x0:x1, None].to(photo.image)
        images.append(on_square(photo.image[y0:y1, x0:x1] * alpha + (1 - alpha)))
    return images


def on_square(crop: Tensor) -> Tensor:
    """Put a crop ``[h, w, 3]`` in the middle of a white square, so that no embedder stretches it."""
    height, width = crop.shape[:2]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return functional.pad(crop, (0, 0, left, side - width - left, top, side - height - top), value=1.0)


def unit(embeddings: Tensor) -> Tensor:
    """Return an embedder's vectors ``[n, d]`` with length 1, float32 on the CPU. Raise `NoNumbers`."""
    vectors = embeddings.detach().float().cpu()
    if not vectors.isfinite().all():
        raise NoNumbers(
            "The embedder returned values that are not numbers (NaN) for a picture or a photo, so nothing can be "
            "compared. Look for a damaged photo, or choose another embedder."
        )
    return functional.normalize(vectors, dim=-1)
