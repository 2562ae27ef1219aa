"""How well the embedded SDXL follows captions, and how long it takes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..backends.dinov2 import IMAGENET_MEAN, IMAGENET_STD, to_square
from ..demo.settings import DemoSettings
from . import eyes, family, world
from .draw import Rendered, render
from .figures import THRESHOLD, Figure, checkpoint, crop, detector, embedder, held_out, pixels, reconstructed
from .train.data import scene

SETTINGS = DemoSettings()
LOOKS = (world.SPECIES, world.COLORS)
MIDDLE = 2
"""The layer of the embedder whose tokens the probe reads beside the last ones: it still knows shapes."""
REGIONS = 4
"""The probe reads means of patch tokens over so many regions a side."""


@dataclass(frozen=True)
class Probe:
    """A linear reading of species and body colour from the embedder's tokens."""

    centre: Tensor
    spread: Tensor
    weights: Tensor
    accuracy: float
    """0..1, both right, on held-out rendered crops."""

    def __call__(self, crops: Sequence[Tensor]) -> list[tuple[str, str]]:
        """Species and colour of crops, float ``[h, w, 3]``."""
        scores = _with_one((regions(crops) - self.centre) / self.spread) @ self.weights
        species, colors = scores[:, : len(LOOKS[0])], scores[:, len(LOOKS[0]) :]
        return [
            (world.SPECIES[s], world.COLORS[c])
            for s, c in zip(species.argmax(1).tolist(), colors.argmax(1).tolist(), strict=True)
        ]


def _with_one(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, torch.ones(len(vectors), 1)], 1)


@torch.no_grad()
def regions(crops: Sequence[Tensor]) -> Tensor:
    """Mean tokens of regions ``[n, d]`` from a middle and the last layer of the embedder."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    rows = []
    for first in range(0, len(crops), 64):
        x = torch.cat([to_square(crop, eyes.EMBEDDER_SIDE) for crop in crops[first : first + 64]])
        seen = embedder().model(pixel_values=(x - mean) / std, output_hidden_states=True)
        grids = [t[:, 1:].mT.unflatten(2, (8, 8)) for t in (seen.hidden_states[MIDDLE], seen.last_hidden_state)]
        rows.append(torch.cat([adaptive_avg_pool2d(grid, REGIONS).flatten(1) for grid in grids], 1))
    return torch.cat(rows)


def crops_of(scenes: Sequence[Rendered]) -> tuple[list[Tensor], list[tuple[str, str]]]:
    """Everybody in some scenes, cropped by the true box, with species and colour."""
    crops, looks = [], []
    for r in scenes:
        for actor, box in zip(r.scene.actors, r.boxes, strict=True):
            crops.append(crop(pixels(r), Tensor(box)))
            looks.append((actor.character.species, actor.character.color))
    return crops, looks


@cache
def probe(count: int = 3500, soft_count: int = 200, ridge: float = 100.0) -> Probe:
    """Ridge regression on crops of scenes as drawn, and of some through the VAE, whose softness pictures have."""
    scenes = [render(scene(i), family.SIZE) for i in range(count)]
    some = scenes[:soft_count]
    soft = (reconstructed(torch.stack([pixels(r) for r in some])) * 255).round().to(torch.uint8).numpy()
    softened = [replace(r, image=image) for r, image in zip(some, soft, strict=True)]
    crops, looks = crops_of([*scenes, *softened])
    x = regions(crops)
    centre, spread = x.mean(0), x.std(0) + 1e-5
    x = _with_one((x - centre) / spread)
    y = torch.cat([torch.tensor([[float(look[i] == v) for v in LOOKS[i]] for look in looks]) for i in (0, 1)], 1)
    weights = torch.linalg.solve((x.T @ x + ridge * torch.eye(x.shape[1])).double(), (x.T @ y).double()).float()
    crops, looks = crops_of(held_out(300))
    answers = Probe(centre, spread, weights, 0)(crops)
    right = [a == b for a, b in zip(answers, looks, strict=True)]
    return Probe(centre, spread, weights, float(np.mean(right)))


@dataclass(frozen=True, eq=False)
class Captioned:
    """A sampled picture, what was asked for, and what was seen in it."""

    image: Tensor
    caption: str
    wanted: list[tuple[str, str]]
    seen: list[tuple[str, str]]
    xyxy: Tensor

    @property
    def right(self) -> bool:
        return sorted(self.wanted) == sorted(self.seen)


def two_character_caption(number: int) -> tuple[str, list[tuple[str, str]]]:
    """A caption of two characters of other colours, and their species and colours."""
    rng = random.Random(f"caption {number}")
    colors = rng.sample(world.COLORS, 2)
    who = [(rng.choice(world.SPECIES), color) for color in colors]
    words = [f"{'an' if c == 'orange' else 'a'} {c} {s}" for s, c in who]
    place = rng.choice(("simple background", "on the beach", "in the meadow", "in a room", "in the snow"))
    return f"a photo of {words[0]} and {words[1]}, {place}", who


@cache
def captioned(count: int = 200) -> tuple[Captioned, ...]:
    """Pictures of two-character captions by the plain pipeline, looked at by the detector and the probe."""
    pipeline = checkpoint().pipeline()
    pipeline.set_progress_bar_config(disable=True)
    results = []
    for first in range(0, count, 10):
        asked = [two_character_caption(i) for i in range(first, min(first + 10, count))]
        latents = pipeline(
            prompt=[caption for caption, _ in asked],
            negative_prompt=[""] * len(asked),
            width=family.SIZE,
            height=family.SIZE,
            num_inference_steps=SETTINGS.sampler_steps,
            guidance_scale=SETTINGS.guidance,
            generator=[torch.Generator().manual_seed(first + i) for i in range(len(asked))],
            output_type="latent",
        ).images
        for image, (caption, who) in zip(checkpoint().decode(latents), asked, strict=True):
            found = detector()(image, ["character"], THRESHOLD).xyxy
            seen = probe()([crop(image, box) for box in found]) if len(found) else []
            results.append(Captioned(image, caption, who, seen, found))
    return tuple(results)


def captions_followed(count: int = 200) -> Figure:
    pictures = captioned(count)
    two = 100 * float(np.mean([len(p.xyxy) == 2 for p in pictures]))
    note = f"two characters: {two:.0f} %; the probe is right on {100 * probe().accuracy:.0f} % of held-out crops"
    value = 100 * float(np.mean([p.right for p in pictures]))
    return Figure("captions of two: species and colours right", value, 80, True, "%", count, note)


def seconds_of_picture() -> Figure:
    """The second of two pictures: the first one pays for loading."""
    pipeline = checkpoint().pipeline()
    pipeline.set_progress_bar_config(disable=True)
    took = 0.0
    for _ in range(2):
        begun = time.monotonic()
        pipeline(
            "a photo of a cat",
            width=family.SIZE,
            height=family.SIZE,
            num_inference_steps=SETTINGS.sampler_steps,
            guidance_scale=SETTINGS.guidance,
        )
        took = time.monotonic() - begun
    return Figure(f"one picture of {SETTINGS.sampler_steps} steps", took, 10, False, "s", 1, _threads())


def seconds_of_lora(steps: int = 25) -> Figure:
    """A LoRA of the demo's settings, from the photos' latents to the file's tensors, reckoned from some steps."""
    from ..train.loop import train
    from ..train.loss import NoiseSchedule
    from ..train.plan import make_plan
    from ..types import Photo, Subject, SubjectSet

    subjects = []
    for spec in world.DEV_PAIRS[0]:
        shots = [world.photo(spec.character, random.Random(i), SETTINGS.photo_side) for i in range(SETTINGS.photos)]
        photos = tuple(Photo(f"{i}.png", pixels(shot)) for i, shot in enumerate(shots))
        masks = tuple(torch.from_numpy(shot.masks[0]).float() for shot in shots)
        subjects.append(Subject(spec.token, spec.class_noun, photos, masks))
    base = checkpoint()
    config = SETTINGS.train_config("segmix", seed=0)
    begun = time.monotonic()
    plan = make_plan(SubjectSet(tuple(subjects)), config, base.encode_image, base.encode_text)
    planned = time.monotonic() - begun
    marks: list[float] = []

    def note(step: int, total: int, loss: float) -> None:
        marks.append(time.monotonic())
        if step >= steps:
            raise _Enough

    try:
        train(base.unet, plan, config, NoiseSchedule.of(base.scheduler, base.latent_scale), note)
    except _Enough:
        pass
    each = (marks[-1] - marks[4]) / (len(marks) - 5)
    words = f"reckoned from {len(marks) - 5} of {config.steps} steps, {_threads()}"
    return Figure("one LoRA", planned + each * config.steps, 240, False, "s", 1, words)


class _Enough(Exception):
    """Ends a training that is only timed."""


def _threads() -> str:
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)}"
