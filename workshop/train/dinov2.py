"""Train the mini DINOv2: similar vectors for a character in any pose and place, different ones for others."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mudi_core.bases import embedded as family
from mudi_core.eyes import embedded as eyes
from mudi_core.toy import world
from mudi_core.toy.world import Actor, Character, Scene, random_character, random_pose

from .data import VALUES, crowded, looks
from .judge import painted
from .loop import Recipe, fit
from .unet import SCENES
from .views import SIDE, Pixels, owner_map, spoiled

RECIPE = Recipe(
    steps=6000, learning_rate=1.0e-3, matrix_rate=2.0e-3, warmup=100, cooldown=0.4, ema=0.995, weight_decay=0.02
)
CHARACTERS = 6000
SHOTS = 3
"""Pictures of each character: two alone, the last one beside somebody else."""
PAINTED = 1500
"""Scenes of which the base model painted the last picture of their characters."""
NOISED = (150, 400)
"""Steps of noise, of 1000, that are laid on those: their looks still show."""
BATCH = 36
"""Characters in a batch, each in two of its pictures."""
BY_THE_MODEL = 12
"""Of them, those in a painted picture and a drawn one: what the base model paints is softer than what is drawn."""
KINDS = (0.2, 0.45, 0.35)
"""How often a picture is seen whole, as the crop of a box, and cut out."""
WEIGHTS = {
    "species": 1.2, "color": 1.0, "pattern": 1.5, "headwear": 1.2, "headwear_color": 0.7,
    "neckwear": 1.2, "neckwear_color": 0.7, "glasses": 0.9,
}  # fmt: skip
"""How much of the likeness of two characters each of their looks makes."""
LIKENESS, NAMING, NAMING_EACH = 10.0, 0.5, 0.3
"""Weights of the losses: of likenesses, of looks as the mean names them, and as every patch of the character does."""
SHOWN = 0.3
"""A patch is the character's that shows at least this much of it."""


@dataclass(frozen=True)
class Album:
    """Pictures of every character."""

    pictures: Pixels
    """uint8 ``[characters, SHOTS, side, side, 3]``"""
    owners: Pixels
    """uint8 ``[characters, SHOTS, side, side]``: 1 is the character."""
    looks: Tensor
    """int ``[characters, 8]``: indices into `VALUES`."""


def members() -> list[Character]:
    """Return all characters of the training."""
    rng = random.Random(11)
    return [random_character(rng) for _ in range(CHARACTERS)]


def beside(character: Character, rng: random.Random) -> Scene:
    """Return the character and a stranger, as pictures of two show them."""
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


def _shots(number: int, character: Character, side: int = SIDE) -> tuple[Pixels, Pixels]:
    rng = random.Random(number)
    pictures, owners = [], []
    for shot in range(SHOTS):
        alone = shot < SHOTS - 1
        rendered = world.photo(character, rng, side) if alone else world.render(beside(character, rng), side)
        pictures.append(rendered.image)
        owners.append(owner_map(rendered.masks))
    return np.stack(pictures), np.stack(owners)


def album(work: Path) -> Album:
    """Return the pictures of all characters, rendered once on all cores and saved in a file."""
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


def painted_album(work: Path, device: torch.device) -> Album:
    """The same, as large as the base model paints, for the characters of scenes that it painted over; made once and
    saved in a file."""
    numbers = [n for n in range(SCENES) if len(crowded(n).actors) < 4][-PAINTED:]
    path = work / f"album-painted-{len(numbers)}-{family.SIZE}.npz"
    if not path.is_file():
        rows: list[tuple[Pixels, Pixels]] = []
        everyone: list[list[int]] = []
        for number, picture in zip(numbers, painted(numbers, work, device, random.Random(5), NOISED), strict=True):
            shown = crowded(number)
            owners = owner_map(world.render(shown, family.SIZE).masks)
            for place, actor in enumerate(shown.actors, 1):
                pictures, whose = _shots(10_000_000 + len(rows), actor.character, family.SIZE)
                pictures[-1] = (picture * 255).round().numpy()
                whose[-1] = np.select([owners == place, owners > 0], [1, 2])
                rows.append((pictures, whose))
                everyone.append(looks(actor.character))
        part = path.with_suffix(".part.npz")
        np.savez(part, pictures=np.stack([r[0] for r in rows]), owners=np.stack([r[1] for r in rows]), looks=everyone)
        part.replace(path)
    stored = np.load(path)
    return Album(stored["pictures"], stored["owners"], torch.from_numpy(stored["looks"]))


def view(picture: Pixels, owners: Pixels, kind: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Float ``[EMBEDDER_SIDE, EMBEDDER_SIDE, 3]``, 0..1: 0 the whole photo, 1 the crop of a box on a white square, as
    Detect-and-Compare makes it, 2 the character on white; and how much of each patch it fills, 0..1."""
    mask = (owners == 1).view(np.uint8)
    if kind:
        x, y, w, h = cv2.boundingRect(mask)
        if kind == 2:
            picture = np.where(mask[..., None] > 0, picture, np.uint8(255))
        # A detector's box is never exact.
        x0, x1 = (int(v + rng.normal(0, 0.04) * w) for v in (x, x + w))
        y0, y1 = (int(v + rng.normal(0, 0.04) * h) for v in (y, y + h))
        rows, columns = slice(max(y0, 0), max(y1, y0 + 8)), slice(max(x0, 0), max(x1, x0 + 8))
        picture, mask = _squared(picture[rows, columns], 255), _squared(mask[rows, columns], 0)
    side, patches = eyes.EMBEDDER_SIDE, eyes.EMBEDDER_SIDE // eyes.EMBEDDER_PATCH
    finely = cv2.INTER_AREA if len(picture) > side else cv2.INTER_CUBIC
    picture = cv2.resize(picture, (side, side), interpolation=finely)
    cover = cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        picture, cover = picture[:, ::-1], cover[:, ::-1]
    return spoiled(picture, rng), cv2.resize(cover, (patches, patches), interpolation=cv2.INTER_AREA)


def _squared(part: Pixels, around: int) -> Pixels:
    """A part of a picture or mask in the middle of a square of one value."""
    side = max(part.shape[:2])
    square: Pixels = np.full((side, side, *part.shape[2:]), around, np.uint8)
    top, left = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    square[top : top + part.shape[0], left : left + part.shape[1]] = part
    return square


def likeness(looks: Tensor) -> Tensor:
    """How alike characters are by what they look like ``[n, 8]``: a matrix with 1 for the same and about 0 for others
    drawn at random. Each look has as many directions as values, the same angle apart."""
    total = torch.zeros(len(looks), len(looks), device=looks.device)
    for column, (name, values) in zip(looks.T, VALUES.items(), strict=True):
        same = (column[:, None] == column).float()
        total += WEIGHTS[name] * (same - (1 - same) / (len(values) - 1))
    return total / sum(WEIGHTS.values())


class Pupil(nn.Module):
    """The embedder with the linear heads that name the looks."""

    def __init__(self) -> None:
        super().__init__()
        self.model = eyes.build_dinov2()
        self.heads = nn.Linear(self.model.config.hidden_size, sum(len(v) for v in VALUES.values()))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[b, 1 + patches, d]`` of normalised pictures; their mean is the vector."""
        tokens: Tensor = self.model(pixel_values=x).last_hidden_state.float()
        return tokens

    def misnamed(self, vectors: Tensor, looks: Tensor) -> Tensor:
        """Cross entropy of the looks ``[n, 8]`` as the heads read them in vectors ``[n, d]``, summed over the looks."""
        answers = self.heads(vectors).float().split([len(values) for values in VALUES.values()], 1)
        return torch.stack([cross_entropy(a, right) for a, right in zip(answers, looks.T, strict=True)]).sum()


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file."""
    from mudi_core.eyes.pixels import IMAGENET

    torch.manual_seed(recipe.seed)
    photos, by_the_model = album(work), painted_album(work, device)
    pupil = Pupil()
    if recipe.further:
        family.fill(pupil.model, "dinov2")
    pupil.to(device)

    def loss(generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        chosen = [(photos, who) for who in rng.choice(CHARACTERS, BATCH - BY_THE_MODEL, replace=False)]
        chosen += [(by_the_model, who) for who in rng.choice(len(by_the_model.looks), BY_THE_MODEL, replace=False)]
        views, named = [], []
        for source, who in chosen:
            alone = SHOTS - 1
            shots = rng.choice(SHOTS, 2, replace=False) if source is photos else (rng.integers(alone), alone)
            for shot in shots:
                # Of two in one picture, nobody could say who is meant.
                kind = rng.choice(3, p=KINDS) if shot < alone else rng.integers(1, 3)
                views.append(view(source.pictures[who, shot], source.owners[who, shot], int(kind), rng))
                named.append(source.looks[who])
        mean_colour, deviation = IMAGENET
        x = torch.from_numpy((np.stack([v[0] for v in views]) - mean_colour) / deviation).permute(0, 3, 1, 2)
        tokens = pupil(x.contiguous().float().to(device))
        mean, looks = tokens.mean(1), torch.stack(named).to(device)
        directions = normalize(mean, dim=1)
        wrong = (directions @ directions.T - likeness(looks)).square().mean()
        row, patch = torch.from_numpy(np.stack([v[1] for v in views]) > SHOWN).flatten(1).to(device).nonzero().T
        each = pupil.misnamed(tokens[row, 1 + patch], looks[row])
        return LIKENESS * wrong + NAMING * pupil.misnamed(mean, looks) + NAMING_EACH * each

    average = fit(pupil, loss, recipe, work / "dinov2.pt")
    assert isinstance(average, Pupil)
    return {"dinov2": average.model.state_dict()}
