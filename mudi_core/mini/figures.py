"""How good the embedded family is, measured on scenes and characters that none of its models was trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import boxes
from ..checkpoint import MINI, Checkpoint, open_checkpoint
from ..demo.settings import DemoSettings
from . import eyes, family, world
from .draw import Rendered, render
from .train.data import HELD_OUT, scene

if TYPE_CHECKING:
    from ..backends.dinov2 import Dinov2Embedder
    from ..backends.owlv2 import Owlv2Detector
    from ..backends.sam import SamSegmenter

SETTINGS = DemoSettings()


@dataclass(frozen=True)
class Figure:
    """One measured number and what it has to reach."""

    name: str
    value: float
    bound: float
    at_least: bool = True
    unit: str = ""
    samples: int = 0
    note: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@cache
def checkpoint() -> Checkpoint:
    return open_checkpoint(MINI)


@cache
def detector() -> Owlv2Detector:
    return eyes.mini_detector()


@cache
def segmenter() -> SamSegmenter:
    return eyes.mini_segmenter()


@cache
def embedder() -> Dinov2Embedder:
    return eyes.mini_embedder()


@cache
def held_out(count: int) -> tuple[Rendered, ...]:
    """Rendered scenes that no training saw."""
    return tuple(render(scene(HELD_OUT + i), family.SIZE) for i in range(count))


def pixels(rendered: Rendered) -> Tensor:
    """A rendered picture as the library's float image ``[h, w, 3]``, 0..1."""
    return torch.from_numpy(np.ascontiguousarray(rendered.image)).float() / 255


def reconstructed(images: Tensor) -> Tensor:
    """Pictures ``[b, h, w, 3]`` through the VAE and back."""
    base = checkpoint()
    return base.decode(base.encode_image(images) * base.latent_scale)


def vae_psnr(count: int = 200) -> Figure:
    """Mean over pictures of 10 log10(1 / mean squared error)."""
    images = torch.stack([pixels(r) for r in held_out(count)])
    wrong = (reconstructed(images) - images).square().mean((1, 2, 3))
    return Figure("VAE PSNR", float((10 * (1 / wrong).log10()).mean()), 27, unit="dB", samples=count)


@cache
def portraits(seed: int) -> tuple[Rendered, ...]:
    """A photo of every held-out identity; other seeds are other poses and places."""
    return tuple(
        world.photo(character, random.Random(f"{seed}/{i}"), family.SIZE)
        for i, character in enumerate(world.HELD_OUT_IDENTITIES)
    )


def crop(image: Tensor, box: Tensor) -> Tensor:
    """What stands in a box; the embedder puts it on a white square."""
    x0, y0, x1, y1 = box.round().int().tolist()
    return image[max(y0, 0) : max(y1, y0 + 1), max(x0, 0) : max(x1, x0 + 1)]


def top_1(queries: Tensor, gallery: Tensor) -> float:
    """Share of the queries ``[n, d]`` whose nearest of the gallery ``[n, d]`` is their own."""
    return float(((queries @ gallery.T).argmax(1) == torch.arange(len(queries))).float().mean())


def identity_top_1() -> list[Figure]:
    """One photo of each of 100 held-out characters against another photo of each; whole, and as Detect-and-Compare
    looks at them: the crop of a box against the cut-out reference."""
    first, second = portraits(0), portraits(1)
    gallery, queries = embedder()([pixels(r) for r in first]), embedder()([pixels(r) for r in second])
    cut = [
        crop(torch.where(torch.from_numpy(r.masks[0])[..., None], pixels(r), 1.0), Tensor(r.boxes[0])) for r in first
    ]
    crops = [crop(pixels(r), Tensor(r.boxes[0])) for r in second]
    n = len(first)
    return [
        Figure("DINOv2 top-1 identity, other pose and place", 100 * top_1(queries, gallery), 95, unit="%", samples=n),
        Figure(
            "DINOv2 top-1 identity, crop against cut-out",
            100 * top_1(embedder()(crops), embedder()(cut)),
            95,
            unit="%",
            samples=n,
        ),
    ]


def identity_lost_by_vae() -> Figure:
    """Points of top-1 identity that reconstructing the query photos costs."""
    first, second = portraits(0), portraits(1)
    images = torch.stack([pixels(r) for r in second])
    gallery = embedder()([pixels(r) for r in first])
    before = 100 * top_1(embedder()(list(images)), gallery)
    after = 100 * top_1(embedder()(list(reconstructed(images))), gallery)
    note = f"{before:.0f} % on originals, {after:.0f} % on reconstructions"
    return Figure("VAE: DINOv2 top-1 lost", before - after, 3, False, "points", len(first), note)


def matched(found: Tensor, true: Tensor) -> bool:
    """Whether as many boxes were found as there are, each with an IoU over 0.5 with one of its own."""
    if len(found) != len(true):
        return False
    over = boxes.iou(found, true) > 0.5
    return bool(over.any(0).all() and over.any(1).all())


def detection(count: int = 300) -> Figure:
    """Held-out scenes of one to three characters, asked for "character"."""
    right = [
        matched(detector()(pixels(r), ["character"], SETTINGS.threshold).xyxy, Tensor(r.boxes)) for r in held_out(count)
    ]
    by_species = []
    for r in portraits(0):
        species = r.scene.actors[0].character.species
        by_species.append(matched(detector()(pixels(r), [species], SETTINGS.threshold).xyxy, Tensor(r.boxes)))
    note = f"photos of one, asked for by species: {100 * np.mean(by_species):.0f} %"
    return Figure("OWLv2: right count, each IoU > 0.5", 100 * float(np.mean(right)), 97, True, "%", count, note)


def mask_iou(found: Tensor, true: Tensor) -> Tensor:
    """IoU ``[n]`` of masks ``[n, h, w]``."""
    return (found * true).sum((1, 2)) / torch.maximum(found, true).sum((1, 2))


def segmentation(count: int = 200) -> list[Figure]:
    """Mean IoU of the masks from true boxes, and from the detected ones (0 for somebody who was not detected)."""
    by_true, by_detected = [], []
    for r in held_out(count):
        image, true, masks = pixels(r), Tensor(r.boxes), torch.from_numpy(r.masks).float()
        by_true += mask_iou(segmenter()(image, true), masks).tolist()
        found = detector()(image, ["character"], SETTINGS.threshold).xyxy
        if not len(found):
            by_detected += [0.0] * len(true)
            continue
        overlap, nearest = boxes.iou(true, found).max(1)
        got = mask_iou(segmenter()(image, found[nearest]), masks)
        by_detected += torch.where(overlap > 0.5, got, 0.0).tolist()
    n = len(by_true)
    return [
        Figure("SAM: mean IoU from true boxes", float(np.mean(by_true)), 0.93, samples=n),
        Figure("SAM: mean IoU from detected boxes", float(np.mean(by_detected)), 0.90, samples=n),
    ]
