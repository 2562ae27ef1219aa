"""Subjects cut out of their photos once, small and clean, to be drawn many times."""

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
"""Mask values below this are noise (for example of a JPEG mask), not a soft edge."""
_REACH = 6
"""Pixels by which the subject's colours continue beyond its edge; smoothing and resizing reach no further."""
_RIM = 400
"""For every this many pixels of the cut-out's longer side, one pixel of its edge counts as mixed with the background;
never more than two."""
_SMALLEST = 48
"""Pixels: no smaller copies of cut-outs are kept."""
_HOW_TO_CHOOSE = (
    "{!r} does not choose photos. Write random, best, or olis:hta=#1:#3 with a number for each, counted from 1."
)


Value = TypeVar("Value")


class EmptyMask(MudiError):
    """A photo whose mask is empty, so that there is nothing to cut out."""


class BadPoses(MudiError):
    """A choice of photos, or a rotation, that is not possible."""


@dataclass(frozen=True)
class Poses:
    """How the subjects are shown: which photo of each, mirrored or not, rotated or not. Raises `BadPoses`."""

    photos: str | Mapping[str, int] = "random"
    """"random", "best" (see `CutOuts.best`), or the index of a photo by token (others at random)."""
    mirror: bool = False
    """Mirror figures at random. Text and one-sided marks then look wrong."""
    max_rotation: float = 0.0
    """Rotate each figure at random, by up to this many degrees to either side."""

    def __post_init__(self) -> None:
        if isinstance(self.photos, str) and self.photos not in ("random", "best"):
            raise BadPoses(_HOW_TO_CHOOSE.format(self.photos))
        if not 0 <= self.max_rotation <= 180:
            raise BadPoses(f"max_rotation is {self.max_rotation}; it must be 0 to 180 degrees.")


def parse_photos(text: str) -> str | dict[str, int]:
    """Read `Poses.photos` from "random", "best" or "olis:hta=#1:#3" (see `photo_index`). Raise `BadPoses`."""
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
    """Return a remark on a choice of photos whose numbers count from 0, as in older workflows; "" when none does."""
    choice = parse_photos(text)
    if isinstance(choice, str) or text.partition("=")[2].count("#") == len(choice):
        return ""
    from_1 = f"{':'.join(choice)}={':'.join(map(photo_number, choice.values()))}"
    return f"photos: numbers without # count from 0, as in older versions. Counted from 1 this is {from_1}."


@dataclass(frozen=True, eq=False)
class CutOut:
    """The subject of one photo without its surroundings."""

    sizes: tuple[Pixels, ...]
    """RGBA ``[h, w, 4]``, 0..255, not premultiplied: the full size, then halves of it for small figures."""

    @property
    def aspect(self) -> float:
        """Width divided by height."""
        return float(self.sizes[0].shape[1] / self.sizes[0].shape[0])


@dataclass(frozen=True, eq=False)
class CutOuts:
    """The cut-outs of a subject set, ready to be composed."""

    subjects: SubjectSet
    by_token: Mapping[str, tuple[CutOut, ...]]
    """For each token, one cut-out per photo."""

    def figure(self, token: str, photo: int = 0, mirror: bool = False, rotation: float = 0.0) -> Figure:
        """Return what a layout needs to know about one cut-out; ``rotation`` in degrees clockwise.

        Raise `BadLayout` when the set has no such subject or photo.
        """
        return Figure(token, turned_aspect(self.get(token, photo).aspect, rotation), photo, mirror, rotation)

    def check(self, tokens: Iterable[str], source: str) -> None:
        """Raise `BadLayout`, which names `source` as the cause, when one of these is not a token of the set."""
        for token in tokens:
            if token not in self.by_token:
                raise BadLayout(f"{source} names '{token}', but the subjects are: {', '.join(self.by_token)}.")

    def resolve(self, by_name: Mapping[str, Value], source: str) -> dict[str, Value]:
        """Return the values by token, from values by token, by name ("olis corgi") or by class noun.

        A class noun works when only one subject has it. Raise `BadLayout`, which names `source` as the cause, for any
        other name and for a subject that is named twice.
        """
        found: dict[str, Value] = {}
        for name, value in by_name.items():
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
        """Return one figure per subject, in the order of the set.

        `rng` draws the photos, whatever the poses are, and `turns` draws everything else, so other poses do not change
        the places. Raise `BadLayout` for a photo or subject that does not exist.
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
        """Return the index of the photo that shows the subject largest, among those that show it whole.

        A subject is whole when the border of the photo does not cut it off.
        """
        masks = self.subjects[token].masks

        def rank(photo: int) -> tuple[bool, float]:
            inside = masks[photo] > 0.5
            cut_off = bool(inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any())
            return not cut_off, float(inside.sum())

        return max(range(len(masks)), key=rank)

    def get(self, token: str, photo: int) -> CutOut:
        """Return the cut-out of one photo. Raise `BadLayout` when the set has no such subject or photo."""
        self.check([token], "The layout")
        if not 0 <= photo < len(self.by_token[token]):
            raise BadLayout(
                f"The layout names photo {photo_number(photo)} of '{token}', which has {len(self.by_token[token])} "
                "photos."
            )
        return self.by_token[token][photo]


def cut_outs(subjects: SubjectSet, max_side: int = 1024, on_step: Callable[[int, int], None] | None = None) -> CutOuts:
    """Cut every subject out of its photos, once; no side is longer than `max_side` pixels (that of the largest canvas).

    The crop is the box of the whole mask with its soft edge. `on_step` is called with photos done and photos in all.
    Raise `EmptyMask` for a photo whose mask is empty.
    """
    photos = [(subject, photo) for subject in subjects for photo in range(len(subject.photos))]
    by_token: dict[str, tuple[CutOut, ...]] = {}
    for done, (subject, photo) in enumerate(photos, start=1):
        by_token[subject.token] = (*by_token.get(subject.token, ()), _cut_out(subject, photo, max_side))
        if on_step is not None:
            on_step(done, len(photos))
    return CutOuts(subjects, by_token)


def turned_aspect(aspect: float, rotation: float) -> float:
    """Return width divided by height of the box around a box of this aspect, rotated by these degrees."""
    cos, sin = _cos_sin(rotation)
    return (aspect * cos + sin) / (aspect * sin + cos)


def _cos_sin(rotation: float) -> tuple[float, float]:
    return abs(math.cos(math.radians(rotation))), abs(math.sin(math.radians(rotation)))


def drawn(cut_out: CutOut, size: tuple[int, int], mirror: bool, rotation: float = 0.0) -> Pixels:
    """Return the cut-out as RGBA ``[h, w, 4]``, 0..255, at this width and height, mirrored or not, rotated clockwise.

    It is made from the smallest copy that is not smaller than that.
    """
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
    # Smaller, by less than half: linear uses every pixel. Larger: cubic is sharper.
    grows = size[0] > pixels.shape[1] or size[1] > pixels.shape[0]
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_LINEAR)
    return cv2.flip(pixels, 1) if mirror else pixels


def _cut_out(subject: Subject, index: int, max_side: int) -> CutOut:
    import cv2

    photo, mask = subject.photos[index], subject.masks[index]
    box = mask_box(mask, SOFT)
    if box is None:
        raise EmptyMask(f"{photo.name}: the mask of '{subject.token}' is empty. Draw it again or leave the photo out.")
    # Two more pixels on each side, where the smoothed edge can end.
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
    # The steps of a mask of zeros and ones would be visible when the figure is enlarged.
    alpha = cv2.GaussianBlur(alpha, (3, 3), 0.7)
    sizes = [cv2.merge([*cv2.split(rgb), alpha])]
    while max(alpha.shape) >= 2 * _SMALLEST and min(alpha.shape) > 1:
        size = ((alpha.shape[1] + 1) // 2, (alpha.shape[0] + 1) // 2)
        rgb, alpha = (cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) for pixels in (rgb, alpha))
        rgb = _carried_on(rgb, alpha, rim=0)
        sizes.append(cv2.merge([*cv2.split(rgb), alpha]))
    return CutOut(tuple(sizes))


def _carried_on(rgb: Pixels, alpha: Pixels, rim: int) -> Pixels:
    """Replace the colours at the soft edge and `_REACH` pixels beyond by the subject's own; further out use black.

    The edge pixels of a photo contain some background, which would show around the subject as a halo. They, and a rim
    of this many pixels inside, get the colours of the nearest pixels that belong wholly to the subject.
    """
    import cv2

    window = (2 * _REACH + 1, 2 * _REACH + 1)
    own: Pixels = (alpha >= 250).astype(np.uint8)
    if rim:
        own = cv2.erode(own, np.ones((2 * rim + 1, 2 * rim + 1), np.uint8), borderValue=1)
    # A limb thinner than its rim, or a mask that is nowhere 1, has no such pixels nearby: it keeps its colours.
    own = np.where(cv2.dilate(own, np.ones(window, np.uint8)) > 0, own, alpha >= 128).astype(np.uint8)
    # Both blurs are exactly 0 where no such pixel is near.
    total = cv2.GaussianBlur(own.astype(np.float32), window, _REACH / 4)
    summed = cv2.GaussianBlur(cv2.copyTo(rgb, own).astype(np.float32), window, _REACH / 4)
    colours = np.rint(summed / np.maximum(total, 1e-12)[..., None]).clip(0, 255).astype(np.uint8)
    carried: Pixels = cv2.copyTo(rgb, own, colours)
    return carried
