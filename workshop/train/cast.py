"""The characters of scenes, each with another picture of it: what a reference adapter learns from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mudi_core.eyes import embedded as eyes
from mudi_core.eyes.pixels import IMAGENET, scaled
from mudi_core.toy.world import Character, Scene, photo

from .data import crowded
from .dinov2 import view
from .loop import half_is_fast
from .views import owner_map

SCENES = 6000
SIDE = 160
"""Of a reference before it is cut out, in pixels."""
CUT_OUT = 0.75
"""Share of references on white; others are the crop of a box."""


@dataclass(frozen=True)
class Cast:
    """The characters of the scenes, in the order of the scenes."""

    scenes: list[Scene]
    first: list[int]
    """Of each scene, the number of its first character."""
    characters: list[Character]
    seen: Tensor
    """What the mini DINOv2 sees of another picture of each, fp16 ``[n, patches, 128]``."""


def cast(work: Path, device: torch.device) -> Cast:
    """Return the characters of scenes 0..SCENES-1 with a picture of each, made once and saved in a file."""
    scenes = [crowded(number) for number in range(SCENES)]
    characters = [actor.character for scene in scenes for actor in scene.actors]
    first = np.cumsum([0, *(len(scene.actors) for scene in scenes[:-1])]).tolist()
    path = work / f"references-{SCENES}.npy"
    if not path.is_file():
        eye, rows = eyes.load_dinov2().to(device), []
        for begin in range(0, len(characters), 48):
            some = range(begin, min(begin + 48, len(characters)))
            rows.append(saw(eye, [picture_of(characters[number], number) for number in some], device).half().cpu())
        part = path.with_suffix(".part.npy")
        np.save(part, torch.cat(rows).numpy())
        part.replace(path)
    return Cast(scenes, first, characters, torch.from_numpy(np.load(path)))


def picture_of(character: Character, number: int) -> np.ndarray:
    """Return a picture of a character, cut out or the crop of its box, float ``[side, side, 3]``, 0..1."""
    rng = random.Random(f"reference/{number}")
    drawn = photo(character, rng, SIDE)
    kind = 2 if rng.random() < CUT_OUT else 1
    return view(drawn.image, owner_map(drawn.masks), kind, np.random.default_rng(number))[0]


@torch.no_grad()
def saw(eye: nn.Module, pictures: list[np.ndarray], device: torch.device) -> Tensor:
    """Return what the mini DINOv2 sees of square pictures, ``[n, patches, 128]``."""
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half_is_fast(device)):
        found: Tensor = eye(pixel_values=scaled(pixels, IMAGENET)).last_hidden_state.float()
    return found
