"""The quality of the embedded family, measured on scenes and characters that none of its models was trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mudi_core import boxes
from mudi_core.bases import embedded as family
from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.bases.families import EMBEDDED
from mudi_core.eyes import embedded as eyes
from mudi_core.toy import world
from mudi_core.toy.draw import Rendered, render
from mudi_core.toy.world import Character

from .train.data import HELD_OUT, VALUES, scene

if TYPE_CHECKING:
    from mudi_core.eyes.dinov2 import Dinov2Embedder
    from mudi_core.eyes.owlv2 import Owlv2Detector
    from mudi_core.eyes.sam import SamSegmenter

THRESHOLD = 0.25
"""Least confidence of the detector."""
ALL_FOUND = (97, 97, 90, 90, 75)
"""Per cent of the scenes of one, two, ... in which everybody is to be found."""
TOLD_APART = ("species", "color", "pattern", "headwear", "neckwear", "glasses")
"""Looks by which the embedder is to tell two apart that share all others."""


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
    return open_checkpoint(EMBEDDED)


@cache
def detector() -> Owlv2Detector:
    return eyes.load_detector()


@cache
def segmenter() -> SamSegmenter:
    return eyes.load_segmenter()


@cache
def embedder() -> Dinov2Embedder:
    return eyes.load_embedder()


@cache
def held_out(count: int) -> tuple[Rendered, ...]:
    """Return rendered scenes that no training saw."""
    return tuple(render(scene(HELD_OUT + i), family.SIZE) for i in range(count))


def pixels(rendered: Rendered) -> Tensor:
    """Return a rendered picture as a float image of the library, ``[h, w, 3]``, 0..1."""
    return torch.from_numpy(np.ascontiguousarray(rendered.image)).float() / 255


def reconstructed(images: Tensor) -> Tensor:
    """Encode pictures ``[b, h, w, 3]`` with the VAE and decode them."""
    base = checkpoint()
    return base.decode(base.encode_image(images) * base.latent_scale)


def vae_psnr(count: int = 200) -> Figure:
    """Return the mean over pictures of 10 log10(1 / mean squared error)."""
    images = torch.stack([pixels(r) for r in held_out(count)])
    wrong = (reconstructed(images) - images).square().mean((1, 2, 3))
    return Figure("VAE PSNR", float((10 * (1 / wrong).log10()).mean()), 27, unit="dB", samples=count)


@cache
def portraits(seed: int) -> tuple[Rendered, ...]:
    """Return a photo of every held-out identity; other seeds give other poses and places."""
    return tuple(
        world.photo(character, random.Random(f"{seed}/{i}"), family.SIZE)
        for i, character in enumerate(world.HELD_OUT_IDENTITIES)
    )


def crop(image: Tensor, box: Tensor) -> Tensor:
    """Return the part of a picture in a box; the embedder puts it on a white square."""
    x0, y0, x1, y1 = box.round().int().tolist()
    return image[max(y0, 0) : max(y1, y0 + 1), max(x0, 0) : max(x1, x0 + 1)]


def top_1(queries: Tensor, gallery: Tensor) -> float:
    """Return the share of queries ``[k * n, d]``, in rounds of the gallery ``[n, d]``, nearest to their own."""
    own = torch.arange(len(gallery)).repeat(len(queries) // len(gallery))
    return int(((queries @ gallery.T).argmax(1) == own).sum()) / len(queries)


@cache
def others() -> tuple[Rendered, ...]:
    """Return three more photos of every held-out identity."""
    return tuple(r for seed in (1, 2, 3) for r in portraits(seed))


@cache
def cut_outs() -> Tensor:
    """Return the vectors of one photo of every held-out identity, cut out on white, as Detect-and-Compare does."""
    first = portraits(0)
    masks = [torch.from_numpy(r.masks[0])[..., None] for r in first]
    white = [torch.where(mask, pixels(r), 1.0) for r, mask in zip(first, masks, strict=True)]
    return embedder()([crop(image, Tensor(r.boxes[0])) for image, r in zip(white, first, strict=True)])


def crops_of_others(images: Sequence[Tensor]) -> Tensor:
    """Return the vectors of the true boxes of the other photos, cut from `images`."""
    return embedder()([crop(image, Tensor(r.boxes[0])) for image, r in zip(images, others(), strict=True)])


def identity_top_1() -> Figure:
    """100 held-out characters in other poses and places, as Detect-and-Compare looks at them: the crop of a box against
    one cut-out of each."""
    images = [pixels(r) for r in others()]
    whole = top_1(embedder()(images), embedder()([pixels(r) for r in portraits(0)]))
    note = f"crops against cut-outs; whole photos against whole photos: {100 * whole:.0f} %"
    value = 100 * top_1(crops_of_others(images), cut_outs())
    return Figure("DINOv2 top-1 identity, other pose and place", value, 95, True, "%", len(images), note)


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Return the probability that a good value is above a bad one; ties count half."""
    above = np.subtract.outer(np.asarray(good), np.asarray(bad))
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def twin(character: Character, look: str, rng: random.Random) -> Character:
    """Return a character that differs in one look; what is added gets a colour, what is removed loses it."""
    now = getattr(character, look)
    value = rng.choice([other for other in VALUES[look] if other not in ("none", now)])
    if look.endswith("wear") and now != "none" and rng.random() < 0.25:
        value = "none"
    changed: dict[str, Any] = {look: value}
    if look.endswith("wear") and "none" in (value, now):
        cloth = rng.choice([color for color in world.CLOTH_COLORS if color != character.color])
        changed[f"{look}_color"] = "none" if value == "none" else cloth
    return replace(character, **changed)


def told_apart(rounds: int = 3) -> list[Figure]:
    """Whether a held-out character's cut-out is more like another photo of it than like one of somebody who differs in
    one look: AUROC over all characters, so that one limit of likeness serves for everybody."""
    own = (crops_of_others([pixels(r) for r in others()[: 100 * rounds]]) * cut_outs().repeat(rounds, 1)).sum(1)
    measured = []
    for look in TOLD_APART:
        crops = []
        for i, character in enumerate(world.HELD_OUT_IDENTITIES * rounds):
            shot = world.photo(
                twin(character, look, random.Random(f"{look} {i}")), random.Random(f"at {i}"), family.SIZE
            )
            crops.append(crop(pixels(shot), Tensor(shot.boxes[0])))
        strangers = (embedder()(crops) * cut_outs().repeat(rounds, 1)).sum(1)
        value = auroc(own.tolist(), strangers.tolist())
        measured.append(Figure(f"DINOv2: AUROC of another {look}", value, 0.95, samples=len(crops)))
    return measured


def identity_lost_by_vae() -> Figure:
    """Return how many points of top-1 identity are lost when the other photos go through the VAE."""
    images = torch.stack([pixels(r) for r in others()])
    before = 100 * top_1(crops_of_others(list(images)), cut_outs())
    after = 100 * top_1(crops_of_others(list(reconstructed(images))), cut_outs())
    note = f"{before:.1f} % on originals, {after:.1f} % on reconstructions"
    return Figure("VAE: DINOv2 top-1 lost", before - after, 3, False, "points", len(images), note)


def matched(found: Tensor, true: Tensor) -> bool:
    """Return whether as many boxes were found as there are, each with an IoU over 0.5 with its own true box."""
    if len(found) != len(true):
        return False
    over = boxes.iou(found, true) > 0.5
    return bool(over.any(0).all() and over.any(1).all())


def detection(count: int = 300) -> Figure:
    """Held-out scenes of one to three characters, asked for "character"."""
    right = [matched(detector()(pixels(r), ["character"], THRESHOLD).xyxy, Tensor(r.boxes)) for r in held_out(count)]
    by_species = []
    for r in portraits(0):
        species = r.scene.actors[0].character.species
        by_species.append(matched(detector()(pixels(r), [species], THRESHOLD).xyxy, Tensor(r.boxes)))
    note = f"photos of one, asked for by species: {100 * np.mean(by_species):.0f} %"
    return Figure("OWLv2: right count, each IoU > 0.5", 100 * float(np.mean(right)), 97, True, "%", count, note)


def company(count: int, number: int) -> Rendered:
    """Return a scene of this many characters that no training saw."""
    return render(world.random_scene(random.Random(HELD_OUT + number), count=count), family.SIZE)


def everybody_found(samples: int = 100) -> list[Figure]:
    """Scenes of one to five characters, asked for "character"."""
    measured = []
    for count, bound in enumerate(ALL_FOUND, 1):
        scenes = [company(count, i) for i in range(samples)]
        right = [matched(detector()(pixels(r), ["character"], THRESHOLD).xyxy, Tensor(r.boxes)) for r in scenes]
        name = f"OWLv2: {count} found of {count}"
        measured.append(Figure(name, 100 * float(np.mean(right)), bound, True, "%", samples))
    return measured


def mask_iou(found: Tensor, true: Tensor) -> Tensor:
    """Return the IoU ``[n]`` of masks ``[n, h, w]``."""
    return (found * true).sum((1, 2)) / torch.maximum(found, true).sum((1, 2))


def segmentation(count: int = 200) -> list[Figure]:
    """Mean IoU of the masks from true boxes, and from the detected ones (0 for somebody who was not detected)."""
    by_true, by_detected = [], []
    for r in held_out(count):
        image, true, masks = pixels(r), Tensor(r.boxes), torch.from_numpy(r.masks).float()
        by_true += mask_iou(segmenter()(image, true), masks).tolist()
        found = detector()(image, ["character"], THRESHOLD).xyxy
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
