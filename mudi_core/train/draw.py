"""What a seed decides: which crop of a photo or which composition each sample of a run is, and how it looks."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..stage.captions import of_photo
from ..stage.layout_config import LayoutConfig
from ..stage.segmix import SegMixConfig, cut_outs, cutmix, segmix
from ..stage.strangers import with_strangers
from ..types import Mix, Photo, Subject, SubjectSet
from .parts import Samples

COMPOSITION = "composition "
"""The name of a composition in messages, before its number."""


class Draw(NamedTuple):
    """One choice of the seed: crop ``number`` of photo ``photo``, or composition ``number`` when ``photo`` is -1."""

    prior: bool
    photo: int
    number: int


class Sample(NamedTuple):
    """What a draw shows: an image ``[h, w, 3]``, its mask ``[h, w]``, its caption and its six time ids."""

    image: Tensor
    mask: Tensor
    caption: str
    time_ids: tuple[int, int, int, int, int, int]


def all_photos(subjects: SubjectSet) -> list[tuple[Subject, Photo, Tensor]]:
    """Return each photo of a set with its subject and its mask, in the order that `Draw.photo` counts."""
    return [
        (subject, photo, mask)
        for subject in subjects.subjects
        for photo, mask in zip(subject.photos, subject.masks, strict=True)
    ]


def crop_counts(subjects: SubjectSet, settings: Samples) -> list[int]:
    """Return how many different crops each photo of a set has."""
    return [len(crops(photo.size, settings, random.Random(0))) for _, photo, _ in all_photos(subjects)]


def training_size(photo: tuple[int, int], settings: Samples) -> tuple[int, int]:
    """Return the width and height at which a photo of this width and height is trained, all in pixels.

    With buckets: at most as many pixels as ``settings.size``, the photo's own aspect between 1:2 and 2:1, and sides
    that are multiples of 64 (16 below 512 px), so that there are only about twenty different sizes.
    """
    if not settings.buckets:
        return settings.size
    area, step = settings.size[0] * settings.size[1], 64 if min(settings.size) >= 512 else 16
    aspect = min(2.0, max(0.5, photo[0] / photo[1]))
    width = max(step, round(math.sqrt(area * aspect) / step) * step)
    return width, max(step, area // width // step * step)


def sizes(
    draws: Sequence[Draw], subjects: SubjectSet, priors: SubjectSet | None, settings: Samples
) -> list[tuple[int, int]]:
    """Return the width and height in pixels of what each draw shows; compositions have ``settings.size``."""
    photos = {False: all_photos(subjects), True: [] if priors is None else all_photos(priors)}
    return [
        settings.size if draw.photo < 0 else training_size(photos[draw.prior][draw.photo][1].size, settings)
        for draw in draws
    ]


def label(draw: Draw, subjects: SubjectSet, priors: SubjectSet | None) -> str:
    """Return the name of a draw for messages."""
    whose = "prior " if draw.prior else ""
    if draw.photo < 0:
        return f"{whose}{COMPOSITION}{draw.number}"
    own = priors if draw.prior and priors is not None else subjects
    return f"{whose}{all_photos(own)[draw.photo][1].name}"


def draw_steps(settings: Samples, pools: Sequence[int], can_mix: bool, *, prior: bool = False) -> list[list[Draw]]:
    """Draw which crop of a photo, or which composition, each sample of each step is.

    ``pools``: how many crops each photo has. Every photo comes once before any comes twice. Own and prior samples share
    the coins, so a prior composition stands beside an own one (paper, appendix B).
    """
    who = "prior" if prior else "own"
    order, coins = random.Random(f"{settings.seed}/{who}/order"), random.Random(f"{settings.seed}/coins")
    waiting: list[int] = []
    used, composites = [0] * len(pools), 0
    table = []
    for step in range(settings.steps):
        row = []
        for _ in range(settings.samples_per_step):
            mixes = coins.random() < settings.segmix_prob and step >= settings.segmix_start_step
            if mixes and can_mix and settings.method != "dreambooth":
                row.append(Draw(prior, -1, composites % settings.composites))
                composites += 1
                continue
            if not waiting:
                waiting = order.sample(range(len(pools)), len(pools))
            photo = waiting.pop()
            row.append(Draw(prior, photo, used[photo] % pools[photo]))
            used[photo] += 1
        table.append(row)
    return table


def render(
    draws: Sequence[Draw],
    subjects: SubjectSet,
    priors: SubjectSet | None,
    settings: Samples,
    others: SubjectSet | None = None,
) -> Iterator[Sample]:
    """Yield the samples of sorted ``draws``, one at a time: first compositions, then the photos, each resized once.

    ``others``: strangers that the subjects are composed with.
    """
    mix = cutmix if settings.method == "cutmix" else segmix
    for prior, own in ((False, subjects), (True, priors)):
        chosen = [draw for draw in draws if draw.prior == prior]
        if own is None or not chosen:
            continue
        who = "prior" if prior else "own"
        photos = all_photos(own)
        together, strangers = (own, frozenset[str]()) if prior or others is None else with_strangers(own, others)
        mix_config = replace(_mix_config(settings, own, prior), strangers=strangers)
        cuts = cut_outs(together, max_side=max(settings.size)) if chosen[0].photo < 0 else None
        at, image, mask, corners = -1, torch.empty(0), torch.empty(0), [(0, 0)]
        for draw in chosen:
            if cuts is not None and draw.photo < 0:
                rng = random.Random(f"{settings.seed}/{who}/composite/{draw.number}")
                coin = random.Random(f"{settings.seed}/canvas/{draw.number}")
                yield _composite(mix(cuts, rng, replace(mix_config, background=canvas(settings.black_canvas, coin))))
                continue
            subject, photo, photo_mask = photos[draw.photo]
            width, height = training_size(photo.size, settings)
            if draw.photo != at:
                at, (image, mask) = draw.photo, cover(photo.image, photo_mask, (width, height))
                corners = crops(photo.size, settings, random.Random(f"{settings.seed}/{who}/{draw.photo}"))
            top, left = corners[draw.number]
            crop = slice(top, top + height), slice(left, left + width)
            time_ids = (photo.size[1], photo.size[0], top, left, height, width)
            yield Sample(image[crop], mask[crop], photo.caption or _caption(subject, settings, prior), time_ids)


def canvas(black: float, rng: random.Random) -> tuple[float, float, float]:
    """Draw the colour of a composition's canvas: black with this probability, else white."""
    return (0.0, 0.0, 0.0) if rng.random() < black else (1.0, 1.0, 1.0)


def cover_size(photo: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest width and height with the aspect of a photo that cover ``size``; all in pixels."""
    scale = max(size[0] / photo[0], size[1] / photo[1])
    return max(size[0], round(photo[0] * scale)), max(size[1], round(photo[1] * scale))


def cover(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resize image ``[h, w, 3]`` and mask ``[h, w]`` to their `cover_size`."""
    height, width = mask.shape
    width_to, height_to = cover_size((width, height), size)
    stacked = torch.cat([image.float(), mask[..., None].float()], dim=2).movedim(2, 0)[None]
    if (width_to, height_to) != (width, height):
        stacked = interpolate(stacked, (height_to, width_to), mode="bicubic", antialias=True).clamp(0, 1)
    resized = stacked[0].movedim(0, 2)
    return resized[..., :3], resized[..., 3]


def crops(photo: tuple[int, int], settings: Samples, rng: random.Random) -> list[tuple[int, int]]:
    """Draw top and left of the crops of a photo of this width and height: all different, up to ``crops_per_photo``."""
    size = training_size(photo, settings)
    width, height = cover_size(photo, size)
    columns, rows = width - size[0] + 1, height - size[1] + 1
    chosen = rng.sample(range(rows * columns), min(settings.crops_per_photo, rows * columns))
    return [divmod(corner, columns) for corner in chosen]


def _mix_config(settings: Samples, own: SubjectSet, prior: bool) -> SegMixConfig:
    return SegMixConfig(
        size=settings.size,
        layout=_layout(settings, own, prior),
        captions=settings.captions,
        caption=settings.caption_template,
        priors=prior,
    )


def _composite(mix: Mix) -> Sample:
    width, height = mix.layout.size
    return Sample(mix.image, mix.mask, mix.caption, (height, width, 0, 0, height, width))


def _layout(settings: Samples, own: SubjectSet, prior: bool) -> LayoutConfig:
    """Return the layout settings; both priors of a composition stand at the same height, as in the official code."""
    if not prior:
        return settings.layout
    known = {token: part for token, part in (settings.layout.relative_scale or {}).items() if token in own.tokens}
    return replace(settings.layout, shared_y=True, relative_scale=known or None)


def _caption(subject: Subject, settings: Samples, prior: bool) -> str:
    return of_photo(settings.captions, (subject.token, subject.class_noun), prior=prior)
