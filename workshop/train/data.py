"""Scenes of the toy world by number: scene i of a pool is the same on every machine; its picture is rendered once."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mudi_core.toy import world
from mudi_core.toy.world import Character, Scene, random_scene, render

HELD_OUT = 1_000_000_000
"""Scenes from this number on are never trained on: the report's."""


VALUES: dict[str, tuple[str | bool, ...]] = {
    "species": world.SPECIES,
    "color": world.COLORS,
    "pattern": world.PATTERNS,
    "headwear": world.HEADWEAR,
    "headwear_color": ("none", *world.CLOTH_COLORS),
    "neckwear": world.NECKWEAR,
    "neckwear_color": ("none", *world.CLOTH_COLORS),
    "glasses": (False, True),
}
"""What the looks of a character consist of, in the order of its fields."""


def looks(character: Character) -> list[int]:
    """Return the index in `VALUES` of each look of a character."""
    return [values.index(getattr(character, name)) for name, values in VALUES.items()]


def scene(number: int) -> Scene:
    """Return the scene of this number; about every fourth shows named characters."""
    return random_scene(random.Random(number), named_prob=0.25)


def crowded(number: int) -> Scene:
    """Return the scene of this number, with up to `world.MOST` characters."""
    return random_scene(random.Random(number), shares=world.CROWDED, named_prob=0.25)


def group(number: int) -> Scene:
    """Return the scene of this number among those of three to `world.MOST` characters."""
    return random_scene(random.Random(f"group {number}"), shares=world.GROUPS, named_prob=0.25)


Source = Callable[[int], Scene]
"""`scene`, `crowded` or `group`; a pool's file is called after it."""


def picture(number: int, source: Source, size: int) -> np.ndarray:
    """Return the picture of the scene, uint8 ``[size, size, 3]``."""
    return render(source(number), size).image


def pool(work: Path, count: int, size: int, source: Source = scene) -> np.ndarray:
    """Return the pictures of scenes 0..count-1, uint8 ``[count, size, size, 3]``, rendered once and saved in a file."""
    path = work / f"{source.__name__}-{count}-{size}.npy"
    if not path.is_file():
        part = path.with_suffix(".part")
        pictures = np.lib.format.open_memmap(part, "w+", np.uint8, (count, size, size, 3))
        with ProcessPoolExecutor() as workers:
            for i, image in enumerate(
                workers.map(partial(picture, source=source, size=size), range(count), chunksize=64)
            ):
                pictures[i] = image
        pictures.flush()
        part.replace(path)
    pictures = np.load(path, mmap_mode="r")
    assert isinstance(pictures, np.ndarray)
    return pictures


def to_tensor(pictures: np.ndarray) -> Tensor:
    """Turn uint8 ``[b, h, w, 3]`` into float ``[b, 3, h, w]``, -1..1, contiguous (channels-last is slower)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
