"""Every sample of a run, drawn from the seed and encoded before the first step.

The steps then need neither VAE nor text encoders. A run of any length stays small, because photos have at most
``crops_per_photo`` crops and there are at most ``max_composites`` compositions, which the steps use in turn: a sample
of 1024 px takes 320 KB here, so 10 photos with 16 crops and 512 compositions make 215 MB.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..types import SubjectSet
from .config import TrainConfig
from .draw import Draw, crop_counts, draw_steps, render
from .encode import EncodeImage, Encoder, EncodeText

log = logging.getLogger(__name__)

OnEncoded = Callable[[str, int, int], None]
"""``(stage, done, total)``; the stages are "images" and "captions"."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples of a run and which of them each step takes. All tensors are on the CPU."""

    latents: Tensor
    """Float ``[n, c, h/8, w/8]``: the VAE's, not yet multiplied by the latent scale."""
    masks: Tensor
    """Float ``[n, 1, h/8, w/8]``, 0..1: where the subjects are."""
    time_ids: Tensor
    """Float ``[n, 6]``: original height and width, crop top and left, target height and width, in pixels."""
    captions: tuple[str, ...]
    """The ``m`` different captions."""
    caption_of: Tensor
    """Long ``[n]``: index of a sample's caption."""
    contexts: Tensor
    """Float ``[m, 77, d]``."""
    pooled: Tensor
    """Float ``[m, p]``."""
    steps: Tensor
    """Long ``[steps, batch_size]``: the samples of each step."""
    priors: Tensor
    """Long ``[steps, batch_size]``, or ``[steps, 0]`` without prior images: the prior samples of each step."""
    plan_hash: str
    """Hexadecimal SHA-256 of everything drawn: images, masks, captions, time ids and their order."""


def make_plan(
    subjects: SubjectSet,
    config: TrainConfig,
    encode_image: EncodeImage,
    encode_text: EncodeText,
    *,
    priors: SubjectSet | None = None,
    on_step: OnEncoded | None = None,
    cache_dir: Path | None = None,
) -> Plan:
    """Draws all samples of a run from ``config.seed`` and encodes each image and each caption once.

    ``encode_image``: float ``[b,h,w,3]``, 0..1 -> the VAE's mode ``[b,c,h/8,w/8]``, unscaled; ``encode_text``: captions
    -> ``([n,77,d], [n,p])``. ``priors``: pictures of other members of each class, with masks (paper, appendix B).
    ``cache_dir`` keeps what was encoded, by content, for the next run. Raises `encode.BadEncoding`, and what Seg-Mix
    raises when the subjects cannot be composed.
    """
    if len(subjects) < 2 and config.method != "dreambooth":
        log.warning("There is only one subject, so no compositions are made: this trains as 'dreambooth'.")
    use_priors = priors is not None and config.prior_loss_weight > 0
    table = draw_steps(config, crop_counts(subjects, config), len(subjects) > 1)
    prior_table: list[list[Draw]] = [[] for _ in table]
    if use_priors and priors is not None:
        prior_table = draw_steps(config, crop_counts(priors, config), len(priors) > 1, prior=True)
    draws = sorted({draw for row in table + prior_table for draw in row})

    encoder = Encoder(encode_image, encode_text, cache_dir, config.size)
    digest = hashlib.sha256(config.plan_json().encode())
    height, width = config.size[1] // 8, config.size[0] // 8
    masks = torch.empty(len(draws), 1, height, width)
    captions: list[str] = []
    time_ids: list[tuple[int, ...]] = []

    def images() -> Iterator[Tensor]:
        for i, (draw, sample) in enumerate(zip(draws, render(draws, subjects, priors, config), strict=True)):
            # At the size of the latents a mask is small enough to keep; the picture is let go after encoding.
            masks[i] = interpolate(sample.mask[None, None].float(), (height, width), mode="area")[0]
            captions.append(sample.caption)
            time_ids.append(sample.time_ids)
            digest.update(repr((tuple(draw), sample.caption, sample.time_ids)).encode())
            digest.update(_bytes(sample.image))
            digest.update(_bytes(masks[i]))
            yield sample.image

    latents = encoder.images(images(), len(draws), on_step)
    different = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    contexts, pooled = encoder.texts(list(different), on_step)
    index = {draw: i for i, draw in enumerate(draws)}
    steps, prior_steps = (
        torch.tensor([[index[draw] for draw in row] for row in rows], dtype=torch.long).reshape(config.steps, -1)
        for rows in (table, prior_table)
    )
    digest.update(_bytes(steps) + _bytes(prior_steps))
    return Plan(
        latents=latents,
        masks=masks,
        time_ids=torch.tensor(time_ids, dtype=torch.float32),
        captions=tuple(different),
        caption_of=torch.tensor([different[caption] for caption in captions], dtype=torch.long),
        contexts=contexts,
        pooled=pooled,
        steps=steps,
        priors=prior_steps,
        plan_hash=digest.hexdigest(),
    )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()
