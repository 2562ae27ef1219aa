"""Train the mini DINOv2: vectors that are close for the same character in another pose and place, and else far."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mudi_core.eyes import embedded as eyes
from mudi_core.toy import world
from mudi_core.toy.world import Actor, Character, Scene, random_character, random_pose

from .data import VALUES, looks
from .loop import Recipe, fit
from .views import SIDE, Pixels, owner_map, spoiled

RECIPE = Recipe(steps=2500, learning_rate=1.0e-3, warmup=100, cooldown=0.5, ema=0.995, weight_decay=0.02)
FAMILIES = 450
KIN = 4
"""Characters of a family: they differ in one or two things, so that every batch holds look-alikes."""
SHOTS = 6
"""Pictures of each character: half alone, half beside somebody else."""
GROUPS = 6
"""Families in a batch; each character in three views: whole photo, crop, cut out."""
TEMPERATURE = 0.1


@dataclass(frozen=True)
class Album:
    """Pictures of every character."""

    pictures: Pixels
    """uint8 ``[characters, SHOTS, SIDE, SIDE, 3]``"""
    owners: Pixels
    """uint8 ``[characters, SHOTS, SIDE, SIDE]``: 1 is the character."""
    looks: Tensor
    """int ``[characters, 8]``: indices into `VALUES`."""


def kin(rng: random.Random) -> list[Character]:
    """A family: somebody, and others that differ in one or two things."""
    base = random_character(rng)
    members = [base]
    while len(members) < KIN:
        other = random_character(rng)
        changed = rng.sample(("color", "pattern", "headwear", "neckwear", "glasses", "species"), rng.choice((1, 1, 2)))
        parts = {name: getattr(other, name) for name in changed}
        for kind in ("headwear", "neckwear"):
            if kind in parts:
                parts[f"{kind}_color"] = getattr(other, f"{kind}_color")
        member = replace(base, **parts)
        if member not in members and member.combination not in world.HELD_OUT:
            members.append(member)
    return members


def members() -> list[Character]:
    """All characters of the training, family by family."""
    rng = random.Random(11)
    return [member for _ in range(FAMILIES) for member in kin(rng)]


def beside(character: Character, rng: random.Random) -> Scene:
    """The character and a stranger, as pictures of two show them."""
    stranger = random_character(rng)
    actors = []
    for who, left in zip((character, stranger), rng.sample((0.0, 0.5), 2), strict=True):
        pose = random_pose(rng)
        ratio = world.aspect(who, pose)
        height = min(rng.uniform(0.5, 0.75), 0.5 / ratio)
        x0 = min(max(left + rng.uniform(-0.03, 0.53 - height * ratio), 0.0), 1 - height * ratio)
        floor = rng.uniform(0.78, 0.97)
        actors.append(Actor(who, pose, (x0, floor - height, x0 + height * ratio, floor)))
    return Scene(*world.random_background(rng), tuple(actors))


def _shots(number: int, character: Character) -> tuple[Pixels, Pixels]:
    rng = random.Random(number)
    pictures, owners = [], []
    for shot in range(SHOTS):
        alone = shot < SHOTS // 2
        rendered = world.photo(character, rng, SIDE) if alone else world.render(beside(character, rng), SIDE)
        pictures.append(rendered.image)
        owners.append(owner_map(rendered.masks))
    return np.stack(pictures), np.stack(owners)


def album(work: Path) -> Album:
    """The pictures of all characters, rendered once on all cores and kept in a file."""
    everyone = members()
    path = work / f"album-{len(everyone)}-{SIDE}.npz"
    if not path.is_file():
        with ProcessPoolExecutor() as workers:
            rows = list(workers.map(_shots, range(len(everyone)), everyone, chunksize=16))
        part = path.with_suffix(".part.npz")
        np.savez(part, pictures=np.stack([r[0] for r in rows]), owners=np.stack([r[1] for r in rows]))
        part.replace(path)
    stored = np.load(path)
    return Album(stored["pictures"], stored["owners"], torch.tensor([looks(c) for c in everyone]))


def view(picture: Pixels, owners: Pixels, kind: int, rng: np.random.Generator) -> Pixels:
    """Float ``[EMBEDDER_SIDE, EMBEDDER_SIDE, 3]``, 0..1: 0 the whole photo, 1 the crop of a box on a white square, as
    Detect-and-Compare makes it, 2 the character on white."""
    if kind:
        mask = (owners == 1).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        if kind == 2:
            picture = np.where(mask[..., None] > 0, picture, np.uint8(255))
        # A detector's box is never exact.
        x0, x1 = (int(v + rng.normal(0, 0.04) * w) for v in (x, x + w))
        y0, y1 = (int(v + rng.normal(0, 0.04) * h) for v in (y, y + h))
        crop = picture[max(y0, 0) : max(y1, y0 + 8), max(x0, 0) : max(x1, x0 + 8)]
        side = max(crop.shape[:2])
        picture = np.full((side, side, 3), 255, np.uint8)
        top, left = (side - crop.shape[0]) // 2, (side - crop.shape[1]) // 2
        picture[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    size = (eyes.EMBEDDER_SIDE, eyes.EMBEDDER_SIDE)
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if len(picture) > size[0] else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    return spoiled(picture, rng)


def contrast(vectors: Tensor, identity: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, equation 2) of unit vectors ``[n, d]``."""
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    logits = (vectors @ vectors.T / TEMPERATURE).masked_fill(itself, -1e9)
    same = (identity[:, None] == identity) & ~itself
    likely = logits - logits.logsumexp(1, keepdim=True)
    return -(likely * same).sum(1).div(same.sum(1)).mean()


class Pupil(nn.Module):
    """The embedder with the linear heads that name the looks."""

    def __init__(self) -> None:
        super().__init__()
        self.model = eyes.build_dinov2()
        self.heads = nn.Linear(self.model.config.hidden_size, sum(len(v) for v in VALUES.values()))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mean tokens ``[b, d]`` and the logits of every look, for normalised pictures."""
        mean = self.model(pixel_values=x).last_hidden_state.mean(1)
        return mean.float(), list(self.heads(mean).float().split([len(v) for v in VALUES.values()], 1))


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file."""
    from mudi_core.eyes.dinov2 import IMAGENET_MEAN, IMAGENET_STD

    torch.manual_seed(recipe.seed)
    photos = album(work)
    pupil = Pupil().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        chosen = (rng.choice(FAMILIES, GROUPS, replace=False)[:, None] * KIN + np.arange(KIN)).ravel().repeat(3)
        pictures = []
        for row, who in enumerate(chosen):
            kind = row % 3
            shot = rng.integers(SHOTS // 2 if kind == 0 else SHOTS)
            pictures.append(view(photos.pictures[who, shot], photos.owners[who, shot], kind, rng))
        x = torch.from_numpy((np.stack(pictures) - IMAGENET_MEAN) / IMAGENET_STD).permute(0, 3, 1, 2)
        mean, named = pupil(x.contiguous().float().to(device))
        identity = torch.from_numpy(chosen).to(device)
        wanted = photos.looks[chosen].to(device)
        naming = torch.stack([cross_entropy(logits, wanted[:, i]) for i, logits in enumerate(named)]).sum()
        return contrast(normalize(mean, dim=1), identity) + 0.5 * naming

    average = fit(pupil, loss, recipe, work / "dinov2.pt")
    assert isinstance(average, Pupil)
    return {"dinov2": average.model.state_dict()}
