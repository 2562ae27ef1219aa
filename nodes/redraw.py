"""A figure sampled again by the stock sampler, with its LoRA; and figures as Impact Pack's detailers take them."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.sample

from . import convert, host
from .own_loras import subjects_of, wearing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..mudi_core.bases.promise import EncodeImage
    from ..mudi_core.jobs.detail import Detailed, Region
    from ..mudi_core.types import Comparison, SubjectSet
    from .sockets import SubjectLora

Seg = namedtuple(  # noqa: PYI024 - other packs read its fields by these names, in this order
    "Seg", ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"]
)


@dataclass(eq=False)
class Redraw:
    """Draws the figures of one picture again: VAE Encode, KSampler with a mask, VAE Decode."""

    samplers: Sequence[host.Sampler]
    """With each subject's own model and prompt."""
    encode: EncodeImage
    vae: Any
    seed: int
    denoise: float

    def __call__(self, region: Region, part: Tensor, mask: Tensor) -> Tensor:
        latent = self.encode(part[None])
        sampler = self.samplers[region.subject]
        latent = comfy.sample.fix_empty_latent_channels(sampler.model, latent)
        changes = (mask > 0).float()[None, None]
        seed = (self.seed + 1_000_003 * region.subject) % 2**64
        drawn = sampler.sample(latent, seed, lambda step: host.hear_cancel(), self.denoise, changes)
        return convert.decoded(self.vae, drawn)[0]


def loras_of(people: SubjectSet, loras: Sequence[SubjectLora]) -> list[list[SubjectLora]]:
    """Return the LoRAs of each subject. Raise `NobodysLora` for one that is nobody's."""
    worn: list[list[SubjectLora]] = [[] for _ in people]
    whose = subjects_of(loras, [(one.name, one.token, one.class_noun) for one in people])
    for one, number in zip(loras, whose, strict=True):
        worn[number].append(one)
    return worn


def samplers_of(
    model: Any,
    clip: Any,
    worn: Sequence[Sequence[SubjectLora]],
    prompts: Sequence[str],
    negative: str,
    settings: tuple[int, float, str, str],
) -> tuple[list[host.Sampler], list[str]]:
    """Return the sampler of each subject, with its own LoRAs and its own prompt, and what each LoRA changes.

    ``settings``: steps, cfg, sampler and scheduler. Raise `BadLora` where nothing of a LoRA fits.
    """
    samplers, lines = [], []
    for own, prompt in zip(worn, prompts, strict=True):
        wears, reads, told = wearing(model, clip, *own)
        lines += told
        positive, not_wanted = (reads.encode_from_tokens_scheduled(reads.tokenize(one)) for one in (prompt, negative))
        samplers.append(host.Sampler(wears, positive, not_wanted, *settings))
    return samplers, lines


def segs(picture: Tensor, before: Comparison, done: Detailed, people: SubjectSet) -> tuple[Any, list[Seg]]:
    """Return the figures of a picture as they were, as Impact Pack's SEGS."""
    found = []
    for region in done.regions:
        x0, y0, x1, y1 = region.window
        found.append(
            Seg(
                picture[None, y0:y1, x0:x1].clone(),
                region.mask[y0:y1, x0:x1].numpy(),
                float(before.detections.confidence[region.row]),
                (x0, y0, x1, y1),
                before.detections.xyxy[region.row].numpy(),
                people.subjects[region.subject].name,
                None,
            )
        )
    return tuple(picture.shape[:2]), found
