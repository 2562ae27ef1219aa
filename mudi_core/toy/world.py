"""The drawn world: random characters and scenes, true captions, and who is held out of training.

A Character is identity only; Pose and place are not. Held-out combinations (species, colour, pattern, headwear,
neckwear) never come out of random_character, so what a model knows of them it learned at personalization time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from ..types import listed
from .backdrop import BACKGROUNDS
from .character import (
    ARMS,
    CLOTH_COLORS,
    COLORS,
    EYES,
    HEADWEAR,
    NECKWEAR,
    PATTERNS,
    SPECIES,
    Actor,
    Character,
    Combination,
    Pose,
    Scene,
)
from .draw import Rendered, aspect, render

__all__ = [
    "ARMS", "CLOTH_COLORS", "COLORS", "EYES", "HEADWEAR", "NECKWEAR", "PATTERNS", "SPECIES", "Actor", "Character",
    "Pose", "Rendered", "Scene", "SubjectSpec", "aspect", "render",
]  # fmt: skip
USUAL = (0.45, 0.45, 0.1)
"""Shares of the scenes by how many stand in them, from one on."""
CROWDED = (0.3, 0.37, 0.15, 0.1, 0.08)
"""The same with crowds, for models that are to know them."""
MOST = len(CROWDED)
"""Characters in a scene."""
GROUPS = (0.0, 0.0, 0.7, 0.2, 0.1)
"""Scenes of three and more alone."""

PLACES = {
    "beach": "on the beach", "meadow": "in the meadow", "desert": "in the desert", "snow": "in the snow",
    "night": "at night", "room": "in a room", "studio": "simple background", "white": "simple background",
}  # fmt: skip

SUBJECT_TOKENS = ("olis", "hta", "ult", "amg", "lun", "sks")
"""Tokens for personalization; no named character has one."""

RARE_TOKENS = tuple(
    """
    aal abra aby acca acci acia ahn aib akh alay alik ande apan aras atan avan avo avs ayi ayne ayr ayy azam azu
    bahn baya bera bev bord bria brom cala chul cona coni cula cule daa dao dato deh dena dham diya doba dojo
    doon doop doz earp ech enya eron esi eto etta ffey gac gali garo gayo gidi gini gino gla gler gman gree guet
    haru hler hols hor hyo icki icus igs iney ingh isil jaro jaz jeb jer jia jovi juco kag kaku kasi kawa kaye
    kayo kew khou kik kimi kir kker klm kner koh kol komo kuma kuya laga loff loid lyle marr maru meri mier miko
    moh moil muk nall namm nara naw naz neau niki oca oche olic omas onga orr oth otte otti ouat palo pani phin
    pim pino ppen ppie rab rach rada rca reau reng rium rive rudd sair sask saz sema seu seye shik sika sinc smu
    sner soma suki tayo tese tey thed tik tiki tner tol torg ttin ube ugby uku ulo umni ural vall veit vell veni
    vina vion vira vit vito wicz woon wson xis yog yol zal zeta zik zil zyme
""".split()
)
"""One token each in CLIP's vocabulary, no English word; the names of NAMED."""


@dataclass(frozen=True)
class SubjectSpec:
    """A held-out character as a user would name it: token, class noun, looks."""

    token: str
    class_noun: str
    character: Character


def _spec(token: str, looks: str) -> SubjectSpec:
    """From "cat red striped hat:blue scarf:green glasses"."""
    species, color, pattern, *extras = looks.split()
    clothes = dict(e.split(":") for e in extras if ":" in e)
    head, neck = (next((k for k in clothes if k in kinds), "none") for kinds in (HEADWEAR, NECKWEAR))
    colors = clothes | {"none": "none"}
    worn_by = (head, colors[head], neck, colors[neck], "glasses" in extras)
    return SubjectSpec(token, species, Character(species, color, pattern, *worn_by))


def _pair(token_a: str, looks_a: str, token_b: str, looks_b: str) -> tuple[SubjectSpec, SubjectSpec]:
    return _spec(token_a, looks_a), _spec(token_b, looks_b)


PAIRS = (
    _pair("olis", "cat orange striped beanie:blue scarf:green", "hta", "cat gray patched bow:pink none"),
    _pair("olis", "bear brown plain hat:red bowtie:yellow", "hta", "bear white spotted crown:yellow scarf:blue"),
    _pair("ult", "dog yellow spotted cap:green scarf:red", "amg", "dog purple plain none bowtie:white glasses"),
    _pair("lun", "rabbit pink patched bow:white bowtie:blue", "sks", "rabbit blue striped hat:yellow scarf:red"),
    _pair("amg", "fox red plain beanie:white scarf:blue glasses", "lun", "fox green spotted crown:yellow bowtie:pink"),
    _pair("ult", "robot white striped cap:blue scarf:red", "hta", "robot orange plain hat:green none"),
)
"""Similar held-out characters to report on: same species, different looks."""

DEV_PAIRS = (
    _pair("olis", "cat purple spotted crown:yellow scarf:pink", "hta", "cat white striped cap:red bowtie:green"),
    _pair("ult", "bear green patched beanie:yellow none glasses", "amg", "bear pink plain crown:white scarf:blue"),
    _pair("lun", "dog red striped bow:yellow bowtie:blue", "sks", "dog gray plain hat:pink scarf:green"),
    _pair("olis", "penguin blue plain beanie:red scarf:yellow", "hta", "penguin brown spotted hat:green bowtie:pink"),
    _pair("amg", "alien green striped crown:yellow scarf:red", "lun", "alien pink spotted none bowtie:blue glasses"),
    _pair("ult", "fox orange patched hat:blue bowtie:green", "sks", "fox white plain bow:red scarf:pink"),
)
"""Other held-out pairs, to choose settings on."""


def _any_character(rng: random.Random) -> Character:
    color = rng.choice(COLORS)
    cloths = [c for c in CLOTH_COLORS if c != color]
    head = rng.choice(HEADWEAR) if rng.random() < 0.9 else "none"
    neck = rng.choice(NECKWEAR)
    return Character(
        rng.choice(SPECIES), color, rng.choice(PATTERNS),
        head, "none" if head == "none" else rng.choice(cloths),
        neck, "none" if neck == "none" else rng.choice(cloths),
        rng.random() < 0.25,
    )  # fmt: skip


def _distinct(seed: int, count: int, taken: Set[Combination]) -> tuple[Character, ...]:
    """Characters of distinct combinations, none of them in taken."""
    rng, taken = random.Random(seed), set(taken)
    chosen: list[Character] = []
    while len(chosen) < count:
        character = _any_character(rng)
        if character.combination not in taken:
            taken.add(character.combination)
            chosen.append(character)
    return tuple(chosen)


_IN_PAIRS = {spec.character.combination for pair in PAIRS + DEV_PAIRS for spec in pair}
HELD_OUT_IDENTITIES = _distinct(2024, 100, _IN_PAIRS)
"""Held-out characters in no pair, for testing an embedder."""
HELD_OUT = frozenset(_IN_PAIRS | {c.combination for c in HELD_OUT_IDENTITIES})
"""Combinations that random_character never returns."""
NAMED: dict[str, Character] = dict(zip(RARE_TOKENS, _distinct(7, len(RARE_TOKENS), HELD_OUT), strict=True))
"""Characters that keep their name in every caption: so a model learns that a rare token names a look."""


def random_character(rng: random.Random) -> Character:
    """Draw a character that is not held out."""
    while (character := _any_character(rng)).combination in HELD_OUT:
        pass
    return character


def random_pose(rng: random.Random) -> Pose:
    """Draw a pose, which is not part of an identity."""
    eyes = "happy" if rng.random() < 0.2 else "open"
    return Pose(rng.random() < 0.5, rng.uniform(-8, 8), rng.choice(ARMS), eyes, rng.uniform(0.95, 1.05))


def random_background(rng: random.Random) -> tuple[str, int]:
    """Draw a background (plain in one of four) and its seed."""
    plain = rng.random() < 0.25
    return rng.choice(BACKGROUNDS[6:] if plain else BACKGROUNDS[:6]), rng.randrange(2**31)


def random_scene(
    rng: random.Random, *, count: int | None = None, shares: Sequence[float] = USUAL, named_prob: float = 0.0
) -> Scene:
    """Draw a scene with count characters, or as shares say; each is named with probability named_prob."""
    count = count or rng.choices(range(1, len(shares) + 1), shares)[0]
    named = list(NAMED.values())
    cast: list[Character] = []
    akin = count == 2 and rng.random() < 0.45
    while len(cast) < count:
        pool = named if rng.random() < named_prob else None
        if cast and akin:
            same = [c for c in named if c.species == cast[0].species and c.color != cast[0].color] if pool else ()
            character = rng.choice(same) if same else _relative(rng, cast[0])
        else:
            character = rng.choice(pool) if pool else random_character(rng)
        if character not in cast:
            cast.append(character)
    poses = [random_pose(rng) for _ in cast]
    grounded = rng.random() < 0.75
    boxes = _layout(rng, [aspect(c, p) for c, p in zip(cast, poses, strict=True)], grounded)
    actors = [Actor(c, p, b, grounded) for c, p, b in zip(cast, poses, boxes, strict=True)]
    if grounded:  # the nearer stands lower in the picture
        actors.sort(key=lambda a: a.xyxy[3])
    return Scene(*random_background(rng), tuple(actors))


def _relative(rng: random.Random, other: Character) -> Character:
    while (c := random_character(rng)).species != other.species or c.color == other.color:
        pass
    return c


_HEIGHTS = {1: (0.5, 0.9), 2: (0.42, 0.75), 3: (0.36, 0.52), 4: (0.30, 0.42), 5: (0.27, 0.37)}
"""Least and greatest height of a character among so many, as a share of the picture."""


def _layout(rng: random.Random, aspects: list[float], grounded: bool) -> list[tuple[float, float, float, float]]:
    """Boxes inside the canvas: apart, or (one of four) mildly over each other."""
    lowest, tallest = _HEIGHTS[len(aspects)]
    farthest = 0.74 if len(aspects) <= 3 else 0.5  # more than three need a second row
    overlap = len(aspects) > 1 and rng.random() < 0.25
    alike = rng.random() < 0.6  # sizes of one scene are often close
    base = rng.uniform(lowest, tallest)
    for attempt in range(2000):
        boxes = []
        for ratio in aspects:
            height = min(base * rng.uniform(0.88, 1.12) if alike else rng.uniform(lowest, tallest), tallest)
            height = max(lowest, height * 0.998**attempt)
            height = min(height, 0.96 / ratio)
            x0 = rng.uniform(0.02, 0.98 - height * ratio)
            floor = max(rng.uniform(farthest, 0.97), height + 0.02) if grounded else rng.uniform(height + 0.02, 0.98)
            boxes.append((x0, floor - height, x0 + height * ratio, floor))
        shares = [_shared(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        if all(s == 0 for s in shares) if not overlap else 0.03 < max(shares) < 0.24 and sum(shares) < 0.26:
            break
    return boxes


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Common area as a share of the smaller box."""
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / min((q[2] - q[0]) * (q[3] - q[1]) for q in (a, b))


def photo(character: Character, rng: random.Random, size: int | tuple[int, int] = 256) -> Rendered:
    """Draw one photo of a user: the character alone and large, in any place and pose."""
    w, h = (size, size) if isinstance(size, int) else size
    pose = random_pose(rng)
    ratio = aspect(character, pose) * h / w
    height = min(rng.uniform(0.5, 0.85), 0.96 / ratio)
    x0 = rng.uniform(0.02, 0.98 - height * ratio)
    floor = rng.uniform(max(0.7, height + 0.02), 0.97)
    box = (x0, floor - height, x0 + height * ratio, floor)
    return render(Scene(*random_background(rng), (Actor(character, pose, box),)), (w, h))


def caption(scene: Scene, rng: random.Random, names: Mapping[Character, str] | None = None) -> str:
    """Write a true sentence about a scene, short enough for CLIP; names replace looks."""
    return told(scene, rng, names)[0]


_DETAIL = {1: (1.0, 0.6, 0.0, 0.0), 2: (1.0, 0.6, 0.0, 0.0), 3: (0.6, 0.0), 4: (0.3, 0.0), 5: (0.0,)}
"""How much of the looks a caption of so many tells, so that it fits CLIP's 77 tokens."""


def told(
    scene: Scene, rng: random.Random, names: Mapping[Character, str] | None = None
) -> tuple[str, tuple[Actor, ...]]:
    """Return a caption, and the actors in the order in which it names them."""
    detail = rng.choice(_DETAIL[len(scene.actors)])
    order = tuple(rng.sample(scene.actors, len(scene.actors)))
    who = []
    for actor in order:
        c = actor.character
        if names and c in names:
            who.append(f"{names[c]} {c.species}")
        else:
            who.append("a " + (c.describe(detail, rng) if detail else f"{c.color} {c.species}"))
    who = ["an" + w[1:] if w.startswith("a orange") or w.startswith("a alien") else w for w in who]
    species = {a.character.species for a in scene.actors}
    lead = rng.choice(("a photo of ", "a photo of ", "a picture of ", ""))
    if len(who) > 1 and rng.random() < 0.3:
        lead = f"{len(who)} {_plural(species.pop()) if len(species) == 1 else 'toys'}: "
    place = PLACES[scene.background]
    cast = listed(who) if len(who) > 2 and rng.random() < 0.5 else " and ".join(who)
    if rng.random() < 0.1:
        return lead + cast, order
    return lead + cast + (", " if "background" in place or rng.random() < 0.5 else " ") + place, order


def _plural(species: str) -> str:
    return "foxes" if species == "fox" else species + "s"
