"""Every sample of a run, drawn from the seed and encoded before the first step.

The steps then need neither VAE nor text encoders. Runs of any length stay small, because photos have at most
``crops_per_photo`` crops, which the steps use in turn; compositions are all new, up to `parts.COMPOSED_PIXELS`. A
sample of 1024 px takes 320 KB here: 10 photos with 16 crops and the 720 compositions of 1200 steps of two take 282 MB.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..bases.promise import Conditions, EncodeImage, EncodeText
from ..types import SubjectSet
from .cache import Cache, content_key
from .config import plan_json
from .draw import COMPOSITION, Draw, crop_counts, draw_steps, label, render, sizes
from .encode import Encoder, OnEncoded
from .parts import Samples
from .sources import OneSubject as OneSubject
from .sources import checked, contents, warn

log = logging.getLogger(__name__)

_FORMAT = "mudi plan 2"


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples of a run, and which of them each step uses. All tensors are on the CPU."""

    latents: tuple[Tensor, ...]
    """Float ``[c, ..., h/f, w/f]`` for each of the ``n`` samples: from the VAE, not yet as the network sees them."""
    masks: tuple[Tensor, ...]
    """Float ``[1, h/f, w/f]``, 0..1: where the subjects are."""
    names: tuple[str, ...]
    """The name of each sample in messages: its photo, or the number of the composition."""
    time_ids: Tensor
    """Float ``[n, 6]``: original height and width, crop top and left, target height and width, in pixels."""
    captions: tuple[str, ...]
    """The ``m`` different captions."""
    caption_of: tuple[int, ...]
    """The index of the caption of each of the ``n`` samples."""
    conditions: tuple[Conditions, ...]
    """The text encoders' output for each caption; only the model reads it."""
    steps: Tensor
    """Long ``[steps, samples_per_step]``: the samples of each step, batch after batch."""
    priors: Tensor
    """Of the same shape, or ``[steps, 0]`` without prior images: the prior samples of each step."""
    plan_hash: str
    """Hexadecimal SHA-256 of all samples: images, masks, captions, time ids and their order."""

    @property
    def composed(self) -> str:
        """Return what was composed, in words: "216 compositions, all different"; "" when nothing was."""
        which = {i for i, name in enumerate(self.names) if re.fullmatch(COMPOSITION + r"\d+", name)}
        uses = sum(i in which for i in self.steps.flatten().tolist())
        if not uses:
            return ""
        return f"{uses} compositions, " + ("all different" if uses == len(which) else f"{len(which)} of them different")


def make_plan(
    subjects: SubjectSet,
    settings: Samples,
    encode_image: EncodeImage,
    encode_text: EncodeText,
    *,
    priors: SubjectSet | None = None,
    others: SubjectSet | None = None,
    on_step: OnEncoded | None = None,
    cache_dir: Path | None = None,
) -> Plan:
    """Draw all samples of a run from ``settings.seed`` and encode each image and each caption once.

    ``encode_image`` and ``encode_text`` are those of the base model (`bases.promise`). ``priors``: pictures of other
    members of each class, with masks (paper, appendix B). ``others``: strangers for ``compose_with_others``, with
    masks; their tokens mean nothing. ``cache_dir`` saves the plan and the encoded images and captions by content: a
    second run with the same samples reads the plan at once, any other encodes only what is new.
    Raise `OneSubject`, `encode.BadEncoding`, and the errors of Seg-Mix when the subjects cannot be composed.
    """
    others = checked(subjects, settings, others)
    if settings.prior_loss_weight == 0:
        priors = None
    warn(subjects)
    cache = Cache(cache_dir)
    encoder = Encoder(encode_image, encode_text, cache)
    key = ""
    if cache_dir is not None:
        made_of = [plan_json(settings), *contents(subjects), "priors", *contents(priors)]
        if others is not None:
            made_of += ["others", *contents(others)]
        key = content_key(_FORMAT, encoder.identity, *made_of)
        if cached := _read(cache, key):
            return cached

    plan = _drawn(subjects, settings, encoder, priors, others, on_step)
    log.info("%s", plan.composed or "no compositions")
    _write(cache, key, plan)
    cache.prune()
    return plan


def _drawn(
    subjects: SubjectSet,
    settings: Samples,
    encoder: Encoder,
    priors: SubjectSet | None,
    others: SubjectSet | None,
    on_step: OnEncoded | None,
) -> Plan:
    """Draw what each step shows, render it, and encode it."""
    table = draw_steps(settings, crop_counts(subjects, settings), len(subjects) > 1 or others is not None)
    prior_table: list[list[Draw]] = [[] for _ in table]
    if priors is not None:
        prior_table = draw_steps(settings, crop_counts(priors, settings), len(priors) > 1, prior=True)
    draws = sorted({draw for row in table + prior_table for draw in row})

    digest = hashlib.sha256(plan_json(settings).encode())
    size_of = sizes(draws, subjects, priors, settings)
    masks: list[Tensor] = []
    captions: list[str] = []
    time_ids: list[tuple[int, ...]] = []

    def images() -> Iterator[Tensor]:
        for draw, size, sample in zip(draws, size_of, render(draws, subjects, priors, settings, others), strict=True):
            # At the size of the latents a mask is small enough to keep; the picture is freed after encoding.
            masks.append(interpolate(sample.mask[None, None].float(), (size[1] // 8, size[0] // 8), mode="area")[0])
            captions.append(sample.caption)
            time_ids.append(sample.time_ids)
            digest.update(repr((tuple(draw), sample.caption, sample.time_ids)).encode())
            digest.update(_bytes(sample.image))
            digest.update(_bytes(masks[-1]))
            yield sample.image

    latents = encoder.images(images(), size_of, on_step)
    different = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    conditions = encoder.texts(list(different), on_step)
    index = {draw: i for i, draw in enumerate(draws)}
    steps, prior_steps = (
        torch.tensor([[index[draw] for draw in row] for row in rows], dtype=torch.long).reshape(settings.steps, -1)
        for rows in (table, prior_table)
    )
    digest.update(_bytes(steps) + _bytes(prior_steps))
    return Plan(
        latents=latents,
        masks=tuple(_at_size_of(latent, mask) for latent, mask in zip(latents, masks, strict=True)),
        names=tuple(label(draw, subjects, priors) for draw in draws),
        time_ids=torch.tensor(time_ids, dtype=torch.float32),
        captions=tuple(different),
        caption_of=tuple(different[caption] for caption in captions),
        conditions=conditions,
        steps=steps,
        priors=prior_steps,
        plan_hash=digest.hexdigest(),
    )


_WHOLE = ("time_ids", "steps", "priors")
"""The tensors of a plan that are saved as they are."""


def _write(cache: Cache, key: str, plan: Plan) -> None:
    """Save the plan; latents and masks become one row each, with the shapes to cut them apart."""
    tensors = {name: getattr(plan, name) for name in _WHOLE}
    tensors["latents"] = torch.cat([latent.reshape(-1) for latent in plan.latents])
    tensors["masks"] = torch.cat([mask.reshape(-1) for mask in plan.masks])
    tensors["shapes"] = torch.tensor([latent.shape for latent in plan.latents])
    for i, conditions in enumerate(plan.conditions):
        tensors |= {f"caption.{i}.{name}": value for name, value in conditions.items()}
    words = {part: json.dumps(getattr(plan, part)) for part in ("names", "captions", "caption_of")}
    words["plan_hash"] = plan.plan_hash
    cache.write(key, tensors, words)


def _read(cache: Cache, key: str) -> Plan | None:
    """Read a plan whose tensors are mapped parts of the file: only what is used takes memory."""
    found = cache.read(key, mapped=True)
    if found is None:
        return None
    tensors, words = found
    try:
        shapes: list[list[int]] = tensors["shapes"].tolist()
        latents = torch.split(tensors["latents"], [math.prod(shape) for shape in shapes])
        masks = torch.split(tensors["masks"], [math.prod(shape[-2:]) for shape in shapes])
        captions = tuple(json.loads(words["captions"]))
        conditions: list[dict[str, Tensor]] = [{} for _ in captions]
        for name, value in tensors.items():
            if name.startswith("caption."):
                _, i, part = name.split(".", 2)
                conditions[int(i)][part] = value
        return Plan(
            latents=tuple(latent.reshape(shape) for latent, shape in zip(latents, shapes, strict=True)),
            masks=tuple(mask.reshape(1, *shape[-2:]) for mask, shape in zip(masks, shapes, strict=True)),
            names=tuple(json.loads(words["names"])),
            caption_of=tuple(json.loads(words["caption_of"])),
            captions=captions,
            conditions=tuple(conditions),
            plan_hash=words["plan_hash"],
            **{name: tensors[name] for name in _WHOLE},
        )
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
        cache.is_damaged(f"The saved plan {key[:12]} is not as it should be ({error}).")
        return None


def _at_size_of(latent: Tensor, mask: Tensor) -> Tensor:
    """Resize a mask ``[1, h, w]`` to a latent, whose VAE may shrink by another factor than 8."""
    return mask if mask.shape[-2:] == latent.shape[-2:] else interpolate(mask[None], latent.shape[-2:], mode="area")[0]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()
