"""Subjects cut out of their photos once, small and clean, to be drawn any number of times."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..levels import to_bytes
from ..masks import mask_box
from ..types import BadLayout, MudiError, Subject, SubjectSet
from .layout import Figure
from .layout_text import photo_index, photo_number

Pixels = NDArray[Any]
"""8-bit, 0..255."""

SOFT = 0.1
"""Mask values below this are noise (of a JPEG mask, say), not a soft edge."""
_REACH = 6
"""Pixels by which the subject's colours are carried on; smoothing and resizing look no further beyond its edge."""
_RIM = 400
"""One pixel of edge, and never more than two, is taken for mixed with the background for every so many pixels of the
cut-out's longer side."""
_SMALLEST = 48
"""Pixels: cut-outs are not kept in smaller copies than this."""
_HOW_TO_CHOOSE = "{!r} chooses no photos: write random, best, or olis:hta=#1:#3 with a number for each, counted from 1."


Said = TypeVar("Said")


class EmptyMask(MudiError):
    """A photo whose mask shows nothing, so that there is nothing to cut out."""


class BadPoses(MudiError):
    """A choice of photos, or a rotation, that cannot be."""


@dataclass(frozen=True)
class Poses:
    """How subjects are shown: by which of their photos, mirrored, turned. Raises `BadPoses`."""

    photos: str | Mapping[str, int] = "random"
    """"random", "best" (see `CutOuts.best`), or by token the index of a photo, others at random."""
    mirror: bool = False
    """Each figure is mirrored or not by chance. Writing and lopsided marks do not survive it."""
    max_rotation: float = 0.0
    """Each figure is turned by chance, up to so many degrees to either side."""

    def __post_init__(self) -> None:
        if isinstance(self.photos, str) and self.photos not in ("random", "best"):
            raise BadPoses(_HOW_TO_CHOOSE.format(self.photos))
        if not 0 <= self.max_rotation <= 180:
            raise BadPoses(f"max_rotation is {self.max_rotation}; it must be 0 to 180 degrees.")


def parse_photos(text: str) -> str | dict[str, int]:
    """`Poses.photos` from "random", "best" or "olis:hta=#1:#3" (see `photo_index`). Raises `BadPoses`."""
    choice = text.strip() or "random"
    if choice in ("random", "best"):
        return choice
    names, _, numbers = choice.partition("=")
    tokens, written = [name.strip() for name in names.split(":")], [number.strip() for number in numbers.split(":")]
    indices = [photo_index(int(one) if one.isdecimal() and len(one) < 10 else one) for one in written]
    chosen = {token: index for token, index in zip(tokens, indices, strict=False) if token and index is not None}
    if not len(chosen) == len(tokens) == len(indices):
        raise BadPoses(_HOW_TO_CHOOSE.format(text))
    return chosen


def old_numbers(text: str) -> str:
    """A remark on a choice of photos whose numbers count from 0, as older workflows have them; "" where none does."""
    choice = parse_photos(text)
    if isinstance(choice, str) or text.partition("=")[2].count("#") == len(choice):
        return ""
    from_1 = f"{':'.join(choice)}={':'.join(map(photo_number, choice.values()))}"
    return f"photos: numbers without # count from 0, as they did before. Counted from 1 it is {from_1}."


@dataclass(frozen=True, eq=False)
class CutOut:
    """One photo's subject without its surroundings."""

    sizes: tuple[Pixels, ...]
    """RGBA ``[h, w, 4]``, 0..255, not premultiplied: the full size, then halves of it for small figures."""

    @property
    def aspect(self) -> float:
        """Width over height."""
        return float(self.sizes[0].shape[1] / self.sizes[0].shape[0])


@dataclass(frozen=True, eq=False)
class CutOuts:
    """A subject set, ready to be composed."""

    subjects: SubjectSet
    by_token: Mapping[str, tuple[CutOut, ...]]
    """For each token, one cut-out per photo."""

    def figure(self, token: str, photo: int = 0, mirror: bool = False, rotation: float = 0.0) -> Figure:
        """What a layout has to know of one cut-out. Raises `BadLayout` when the set has no such photo."""
        return Figure(token, turned_aspect(self.get(token, photo).aspect, rotation), photo, mirror, rotation)

    def check(self, tokens: Iterable[str], source: str) -> None:
        """Raises `BadLayout`, which blames `source`, when one of these is no token of the set."""
        for token in tokens:
            if token not in self.by_token:
                raise BadLayout(f"{source} names '{token}', but the subjects are: {', '.join(self.by_token)}.")

    def resolve(self, said: Mapping[str, Said], source: str) -> dict[str, Said]:
        """By token what is said by token, by name ("olis corgi") or by a class noun that one subject alone has.

        Raises `BadLayout`, which blames `source`, for any other name and for a subject named twice.
        """
        found: dict[str, Said] = {}
        for name, value in said.items():
            tokens = [name] if name in self.by_token else []
            tokens = tokens or [subject.token for subject in self.subjects if name == subject.name]
            tokens = tokens or [subject.token for subject in self.subjects if name == subject.class_noun]
            self.check([name] if len(tokens) != 1 else tokens, source)
            if tokens[0] in found:
                raise BadLayout(f"{source} names '{tokens[0]}' twice.")
            found[tokens[0]] = value
        return found

    def figures(
        self, rng: random.Random, poses: Poses | None = None, turns: random.Random | None = None
    ) -> list[Figure]:
        """One figure per subject, in the set's order.

        Photos are drawn from `rng`, whatever the poses are, and all else from `turns`: other poses leave the places
        alone. Raises `BadLayout` for a photo or subject that is not there.
        """
        poses, turns = poses or Poses(), turns or rng
        chosen = self.resolve(poses.photos, "The choice of photos") if isinstance(poses.photos, Mapping) else {}
        figures = []
        for token in self.subjects.tokens:
            photo = rng.randrange(len(self.by_token[token]))
            if poses.photos == "best":
                photo = self.best(token)
            mirror = poses.mirror and turns.random() < 0.5
            rotation = turns.uniform(-poses.max_rotation, poses.max_rotation) if poses.max_rotation else 0.0
            figures.append(self.figure(token, chosen.get(token, photo), mirror, rotation))
        return figures

    def best(self, token: str) -> int:
        """The photo that shows the subject whole, not cut off by the photo's border, and largest."""
        masks = self.subjects[token].masks

        def rank(photo: int) -> tuple[bool, float]:
            inside = masks[photo] > 0.5
            cut_off = bool(inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any())
            return not cut_off, float(inside.sum())

        return max(range(len(masks)), key=rank)

    def get(self, token: str, photo: int) -> CutOut:
        """The cut-out of one photo. Raises `BadLayout` when the set has no such subject or photo."""
        self.check([token], "The layout")
        if not 0 <= photo < len(self.by_token[token]):
            raise BadLayout(
                f"The layout names photo {photo_number(photo)} of '{token}', which has {len(self.by_token[token])} "
                "photos."
            )
        return self.by_token[token][photo]


def cut_outs(subjects: SubjectSet, max_side: int = 1024, on_step: Callable[[int, int], None] | None = None) -> CutOuts:
    """Cut every subject out of its photos, once, no longer than `max_side` pixels (that of the largest canvas).

    The crop is the box of the whole mask with its soft edge. `on_step` hears photos done and photos in all. Raises
    `EmptyMask` for a photo whose mask shows nothing.
    """
    photos = [(subject, photo) for subject in subjects for photo in range(len(subject.photos))]
    by_token: dict[str, tuple[CutOut, ...]] = {}
    for done, (subject, photo) in enumerate(photos, start=1):
        by_token[subject.token] = (*by_token.get(subject.token, ()), _cut_out(subject, photo, max_side))
        if on_step is not None:
            on_step(done, len(photos))
    return CutOuts(subjects, by_token)


def turned_aspect(aspect: float, rotation: float) -> float:
    """Width over height of the box around a box of this aspect that was turned by so many degrees."""
    cos, sin = _cos_sin(rotation)
    return (aspect * cos + sin) / (aspect * sin + cos)


def _cos_sin(rotation: float) -> tuple[float, float]:
    return abs(math.cos(math.radians(rotation))), abs(math.sin(math.radians(rotation)))


def drawn(cut_out: CutOut, size: tuple[int, int], mirror: bool, rotation: float = 0.0) -> Pixels:
    """RGBA ``[h, w, 4]`` at a width and height, from the smallest copy that is no smaller; turned clockwise."""
    import cv2

    if rotation:
        cos, sin = _cos_sin(rotation)
        width = size[0] / (cos + sin / cut_out.aspect)
        upright = max(round(width), 1), max(round(width / cut_out.aspect), 1)
        turn: NDArray[Any] = cv2.getRotationMatrix2D(((upright[0] - 1) / 2, (upright[1] - 1) / 2), -rotation, 1.0)
        turn[:, 2] += (size[0] - upright[0]) / 2, (size[1] - upright[1]) / 2
        turned: Pixels = cv2.warpAffine(drawn(cut_out, upright, mirror), turn, size)
        return turned
    pixels: Pixels = cut_out.sizes[0]
    for smaller in cut_out.sizes[1:]:
        if smaller.shape[1] >= size[0] and smaller.shape[0] >= size[1]:
            pixels = smaller
    # Down by less than half: two taps see every pixel. Up: cubic is sharper.
    grows = size[0] > pixels.shape[1] or size[1] > pixels.shape[0]
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_LINEAR)
    return cv2.flip(pixels, 1) if mirror else pixels


def _cut_out(subject: Subject, index: int, max_side: int) -> CutOut:
    import cv2

    photo, mask = subject.photos[index], subject.masks[index]
    box = mask_box(mask, SOFT)
    if box is None:
        raise EmptyMask(f"{photo.name}: the mask of '{subject.token}' is empty. Draw it again or leave the photo out.")
    # Two pixels more on each side, in which the smoothed edge runs out.
    x0, y0 = max(box[0] - 2, 0), max(box[1] - 2, 0)
    x1, y1 = min(box[2] + 2, photo.size[0]), min(box[3] + 2, photo.size[1])
    rgb: Pixels
    alpha: Pixels
    rgb, alpha = to_bytes(photo.image[y0:y1, x0:x1]), to_bytes(mask[y0:y1, x0:x1])
    alpha[alpha < 255 * SOFT] = 0
    shrink = max_side / max(alpha.shape)
    if shrink < 1:
        size = (max(round(alpha.shape[1] * shrink), 1), max(round(alpha.shape[0] * shrink), 1))
        rgb, alpha = (cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) for pixels in (rgb, alpha))
    rgb = _carried_on(rgb, alpha, rim=min(round(max(alpha.shape) / _RIM), 2))
    # The stairs of a mask of zeros and ones would show where the figure is enlarged.
    alpha = cv2.GaussianBlur(alpha, (3, 3), 0.7)
    sizes = [cv2.merge([*cv2.split(rgb), alpha])]
    while max(alpha.shape) >= 2 * _SMALLEST and min(alpha.shape) > 1:
        size = ((alpha.shape[1] + 1) // 2, (alpha.shape[0] + 1) // 2)
        rgb, alpha = (cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) for pixels in (rgb, alpha))
        rgb = _carried_on(rgb, alpha, rim=0)
        sizes.append(cv2.merge([*cv2.split(rgb), alpha]))
    return CutOut(tuple(sizes))


def _carried_on(rgb: Pixels, alpha: Pixels, rim: int) -> Pixels:
    """The picture with the subject's own colours where its edge is soft and `_REACH` pixels beyond, and black further.

    A photo's edge pixels hold some of the photo's background, which would stand around the subject as a halo. They,
    and a rim of this many pixels inside, take the colours of the nearest pixels that belong to the subject wholly.
    """
    import cv2

    window = (2 * _REACH + 1, 2 * _REACH + 1)
    own: Pixels = (alpha >= 250).astype(np.uint8)
    if rim:
        own = cv2.erode(own, np.ones((2 * rim + 1, 2 * rim + 1), np.uint8), borderValue=1)
    # A limb thinner than its rim, or a mask that is nowhere sure, has no such pixels near: it keeps its colours.
    own = np.where(cv2.dilate(own, np.ones(window, np.uint8)) > 0, own, alpha >= 128).astype(np.uint8)
    # Both blurs are exactly 0 where no such pixel is in reach.
    total = cv2.GaussianBlur(own.astype(np.float32), window, _REACH / 4)
    summed = cv2.GaussianBlur(cv2.copyTo(rgb, own).astype(np.float32), window, _REACH / 4)
    colours = np.rint(summed / np.maximum(total, 1e-12)[..., None]).clip(0, 255).astype(np.uint8)
    carried: Pixels = cv2.copyTo(rgb, own, colours)
    return carried
