"""Scenes with their masks, and changes that make pictures worse: data for detector, segmenter and embedder."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mudi_core.toy.world import COLORS, MOST, SPECIES, render

from .data import Source, scene

Pixels = NDArray[Any]
SIDE = 128
"""Pixels; the side of the pool's pictures."""


@dataclass(frozen=True)
class Pool:
    """Rendered scenes 0..n-1."""

    pictures: Pixels
    """uint8 ``[n, SIDE, SIDE, 3]``"""
    owners: Pixels
    """uint8 ``[n, SIDE, SIDE]``: 0 is background, k the scene's actor k - 1."""
    labels: Pixels
    """int ``[n, MOST, 2]``: species and colour by index, -1 where there is nobody."""


def owner_map(masks: Pixels) -> Pixels:
    """Turn disjoint masks ``[n, h, w]`` into one picture of numbers, 0 for background."""
    numbers = np.arange(1, len(masks) + 1, dtype=np.uint8)[:, None, None]
    owners: Pixels = (masks.astype(np.uint8) * numbers).max(0)
    return owners


def _rendered(number: int, source: Source = scene) -> tuple[Pixels, Pixels, Pixels]:
    rendered = render(source(number), SIDE)
    labels = np.full((MOST, 2), -1)
    for i, actor in enumerate(rendered.scene.actors):
        labels[i] = SPECIES.index(actor.character.species), COLORS.index(actor.character.color)
    return rendered.image, owner_map(rendered.masks), labels


def pool(work: Path, count: int, source: Source = scene) -> Pool:
    """Return scenes 0..count-1, rendered once on all cores and saved in a file."""
    path = work / f"truth-{source.__name__}-{count}-{SIDE}.npz"
    if not path.is_file():
        with ProcessPoolExecutor() as workers:
            rows = list(workers.map(partial(_rendered, source=source), range(count), chunksize=64))
        part = path.with_suffix(".part.npz")
        pictures, owners, labels = (np.stack(column) for column in zip(*rows, strict=True))
        np.savez(part, pictures=pictures, owners=owners, labels=labels)
        part.replace(path)
    stored = np.load(path)
    return Pool(stored["pictures"], stored["owners"], stored["labels"])


def drawn(pool: Pool, index: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """One scene of the pool, changed: float picture 0..1 and owners. Some stand on white, as Seg-Mix puts them; some
    are cropped to a photo of another aspect on the detector's grey square; all may be mirrored and spoiled."""
    picture, owners = pool.pictures[index], pool.owners[index]
    kind = rng.random()
    if kind < 0.25:
        backdrop = (255, 255, 255) if kind < 0.2 else rng.integers(0, 256, 3)
        picture = np.where(owners[..., None] > 0, picture, np.asarray(backdrop, np.uint8))
    if rng.random() < 0.4:
        picture, owners = _cropped(picture, owners, rng)
    if rng.random() < 0.5:
        picture, owners = picture[:, ::-1], owners[:, ::-1]
    return spoiled(picture, rng), np.ascontiguousarray(owners)


def _cropped(picture: Pixels, owners: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A window around all characters, as large as fits, at the top left of a grey square."""
    x, y, w, h = cv2.boundingRect((owners > 0).astype(np.uint8))
    x0, y0 = int(rng.integers(0, x + 1)), int(rng.integers(0, y + 1))
    x1, y1 = int(rng.integers(x + w, SIDE + 1)), int(rng.integers(y + h, SIDE + 1))
    scale = SIDE / max(x1 - x0, y1 - y0)
    scale *= rng.uniform(0.8, 1.0) if scale > 1.25 else 1.0
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    square, numbers = np.full_like(picture, 128), np.zeros_like(owners)
    square[: size[1], : size[0]] = cv2.resize(picture[y0:y1, x0:x1], size, interpolation=cv2.INTER_LINEAR)
    numbers[: size[1], : size[0]] = cv2.resize(owners[y0:y1, x0:x1], size, interpolation=cv2.INTER_NEAREST)
    return square, numbers


def spoiled(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Turn a uint8 picture into float 0..1, often softer or noisier, like the output of a small VAE and U-Net."""
    x: Pixels = np.ascontiguousarray(picture).astype(np.float32) / 255
    h, w = x.shape[:2]
    soft = rng.random()
    if soft < 0.3:
        factor = rng.uniform(1.3, 2.6)
        small = cv2.resize(x, (max(8, int(w / factor)), max(8, int(h / factor))), interpolation=cv2.INTER_AREA)
        x = cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC)
    elif soft < 0.5:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.3) * w / 128)
    if rng.random() < 0.25:
        mottle = rng.standard_normal((h // 8, w // 8, 3)).astype(np.float32) * rng.uniform(0.01, 0.06)
        x = x + cv2.resize(mottle, (w, h), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.3:
        x = x + rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(0.01, 0.05))
    if rng.random() < 0.5:
        x = (x - 0.5) * rng.uniform(0.85, 1.1) + 0.5 + rng.uniform(-0.06, 0.06)
    clipped: Pixels = np.clip(x, 0, 1).astype(np.float32)
    return clipped
