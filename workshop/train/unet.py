"""Train the mini U-Net on latents of the toy world, with captions read by the trained text encoders."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, group_norm

from mudi_core.bases import embedded as family
from mudi_core.toy.draw import render
from mudi_core.toy.world import MOST, NAMED, Scene, told

from .data import VALUES, Source, crowded, group, looks, pool, to_tensor
from .loop import Recipe, fit, half_is_fast
from .text import NAMES, padded, read, tokenized

RECIPE = Recipe(steps=12_600, learning_rate=1.0e-3, warmup=200, ema=0.998)
BATCH = 24
SCENES = 20_000
GROUPS = 12_000
"""Further scenes, of three and more."""
GROUPED = 0.35
"""Share of a batch that shows them."""
NOISY = 600
"""From this timestep on it is settled how many stand where."""
NOISIER = 0.25
"""Share of a batch that is noised at least so much; the rest is noised by chance."""
MOST_WEIGHT = 10.0
"""Of the error of a sample: without a limit shapes are neglected."""
ENCODED = 10
"""Pictures at once through the VAE."""
CAPTION_DROP = 0.1
"""Share of empty captions, for classifier-free guidance."""
MIN_SNR_GAMMA = 5.0
PLACING = 0.1
"""Weight of the loss that ties words to places."""
SHOWING = 0.03
"""Weight of the loss that asks every place what stands there."""
ASKED = ("species", "color", "pattern", "headwear", "neckwear")
"""What it asks."""
LENGTH = 77


def encoded(work: Path, device: torch.device, source: Source = crowded, count: int = SCENES) -> Tensor:
    """Return the latents of the scenes of a pool, fp16 ``[n, 4, SIZE / 8, SIZE / 8]``, encoded once and saved."""
    path = work / f"latents-{source.__name__}-{count}-{family.SIZE}.npy"
    if not path.is_file():
        pictures = pool(work, count, family.SIZE, source)
        vae = family.load_vae().to(device, memory_format=torch.channels_last)
        rows = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half_is_fast(device)):
            for i in range(0, len(pictures), ENCODED):
                some = to_tensor(pictures[i : i + ENCODED]).to(device, memory_format=torch.channels_last)
                z = vae.encode(some).latent_dist.mode()
                rows.append((z.float() * family.LATENT_SCALE).half().cpu().numpy())
        np.save(path, np.concatenate(rows))
    return torch.from_numpy(np.load(path))


def time_ids(generator: torch.Generator) -> Tensor:
    """SDXL's size and crop conditioning ``[BATCH, 6]``: half as generated, half of any size and crop, so that photos of
    other sizes are nothing new to the model."""
    plain = torch.tensor([family.SIZE, family.SIZE, 0, 0, family.SIZE, family.SIZE]).repeat(BATCH, 1)
    other = plain.clone()
    other[:, :2] = torch.randint(family.SIZE, 1025, (BATCH, 2), generator=generator)
    other[:, 2:4] = torch.randint(0, family.SIZE, (BATCH, 2), generator=generator)
    return torch.where(torch.rand(BATCH, 1, generator=generator) < 0.5, plain, other)


class Watch:
    """An attention processor that keeps its probabilities ``[b, pixels, tokens]``, the mean over heads."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        **_: Any,
    ) -> Tensor:
        q, k, v = (
            attn.head_to_batch_dim(x)
            for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        probability = attn.get_attention_scores(q, k)
        self.seen.append(probability.unflatten(0, (-1, attn.heads)).mean(1).float())
        result: Tensor = attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probability @ v)))
        return result


@dataclass(frozen=True)
class Told:
    """A batch of captions: its tokens, which of them speak of which character, and where each character stands."""

    lines: list[list[int]]
    words: Tensor
    """0 or 1, ``[b, MOST, LENGTH]``"""
    places: Tensor
    """0..1, ``[b, MOST, SIZE / 8, SIZE / 8]``"""
    looks: Tensor
    """Indices in `VALUES`, ``[b, MOST, len(VALUES)]``; -1 is nobody."""


def tell(scenes: Sequence[Scene | None], rng: random.Random) -> Told:
    """Captions of scenes; none for None."""
    side = family.SIZE // 8
    words, places = torch.zeros(len(scenes), MOST, LENGTH), torch.zeros(len(scenes), MOST, side, side)
    seen = torch.full((len(scenes), MOST, len(VALUES)), -1)
    lines = []
    for row, shown in enumerate(scenes):
        if shown is None:
            lines.append(tokenized(())[0])
            continue
        caption, order = told(shown, rng, NAMES)
        understood = read(caption, NAMED)
        line, ends = tokenized(understood.words)
        lines.append(line)
        for reading in understood.readings:
            words[row, reading.who, ends[reading.word]] = 1
        masks = dict(zip(shown.actors, render(shown, side).masks, strict=True))
        for who, actor in enumerate(order):
            places[row, who] = torch.from_numpy(masks[actor])
            seen[row, who] = torch.tensor(looks(actor.character))
    return Told(lines, words, places, seen)


def misplaced(seen: list[Tensor], batch: Told, device: torch.device) -> Tensor:
    """How much a pixel of one character attends to the words for another, per picture ``[b]``: the cross entropy of
    whose words it looks at, among the characters' words (after the localization loss of FastComposer, arXiv
    2305.10431). Without it a small model needs many more steps to bind colours to their animals."""
    several = (batch.words.amax(2).sum(1) > 1).float().view(-1, 1, 1, 1)
    words, places = batch.words.to(device), (batch.places * several).to(device)
    total = torch.zeros(len(words), device=device)
    for probability in seen:
        side = round(probability.shape[1] ** 0.5)
        region = adaptive_avg_pool2d(places, side).flatten(2).mT
        share = probability @ words.mT + 1e-5
        share = (share / share.sum(2, keepdim=True)).log()
        total = total - (share * region).sum((1, 2)) / region.sum((1, 2)).clamp(min=1)
    return total / len(seen)


class Painter(nn.Module):
    """The U-Net and the linear heads that ask its features who stands where; the heads are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = family.build_unet()
        widths = self.unet.config.block_out_channels
        answers = sum(len(VALUES[name]) for name in ASKED)
        self.heads = nn.ModuleList(nn.Conv2d(width, answers, 1) for width in (widths[2], widths[1]))


def unknown(features: list[Tensor], heads: nn.ModuleList, batch: Told, device: torch.device) -> Tensor:
    """How badly the features of a place tell the looks of who stands there, per picture ``[b]``: cross entropy. The
    error of the noise says little about a species, which is a few pixels of ears; this says it at every pixel."""
    total = torch.zeros(len(batch.looks), device=device)
    at = [list(VALUES).index(name) for name in ASKED]
    for feature, head in zip(features, heads, strict=True):
        region = adaptive_avg_pool2d(batch.places.to(device), feature.shape[-1])
        share, who = region.max(1)
        answers = head(group_norm(feature.float(), 8)).float().split([len(VALUES[name]) for name in ASKED], 1)
        for answer, column in zip(answers, at, strict=True):
            right = batch.looks[:, :, column].to(device).gather(1, who.flatten(1)).view_as(who)
            right = torch.where(share > 0.5, right, -1)
            error = cross_entropy(answer, right, ignore_index=-1, reduction="none").sum((1, 2))
            total = total + error / (right >= 0).sum((1, 2)).clamp(min=1)
    return total / len(features)


@torch.no_grad()
def encode_text(
    encoders: Sequence[nn.Module], lines: list[list[int]], device: torch.device, length: int = LENGTH
) -> tuple[Tensor, Tensor]:
    """Return the context ``[b, length, d]`` and the pooled vectors of captions by their tokens."""
    first, second = (
        encoder(ids.to(device), output_hidden_states=True)
        for encoder, ids in zip(encoders, padded(lines, length), strict=True)
    )
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file."""
    torch.manual_seed(recipe.seed)
    latents = torch.cat([encoded(work, device), encoded(work, device, group, GROUPS)])
    encoders = [encoder.to(device) for encoder in family.load_text_encoders()]
    painter = Painter()
    if recipe.further:
        family.fill(painter.unet, "unet")
    painter.to(device)
    model = painter.unet
    seen: list[Tensor] = []
    features: list[Tensor] = []
    for block in model.up_blocks[:2]:
        block.register_forward_hook(lambda _block, _inputs, output: features.append(output))
    # The plain processor: the backward pass of torch's fused attention is slow on a CPU at these sizes.
    names = list(model.attn_processors)
    model.set_attn_processor({name: Watch(seen) if "attn2" in name else AttnProcessor() for name in names})
    abar = family.scheduler().alphas_cumprod.to(device)

    def loss(generator: torch.Generator) -> Tensor:
        chance = torch.rand(3, BATCH, generator=generator)
        index = torch.randint(SCENES, (BATCH,), generator=generator)
        index = torch.where(chance[0] < GROUPED, SCENES + index % GROUPS, index)
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        shown = [crowded(i) if i < SCENES else group(i - SCENES) for i in index.tolist()]
        dropped = (chance[1] < CAPTION_DROP).tolist()
        batch = tell([None if d else one for one, d in zip(shown, dropped, strict=True)], rng)
        z0 = latents[index].float().to(device)
        eps = torch.randn(z0.shape, generator=generator).to(device)
        t = torch.randint(1000, (BATCH,), generator=generator)
        t = torch.where(chance[2] < NOISIER, NOISY + t * (1000 - NOISY) // 1000, t).to(device)
        signal = abar[t]
        context, pooled = encode_text(encoders, batch.lines, device)
        added = {"text_embeds": pooled, "time_ids": time_ids(generator).to(device)}
        noisy = signal.sqrt().view(-1, 1, 1, 1) * z0 + (1 - signal).sqrt().view(-1, 1, 1, 1) * eps
        seen.clear()
        features.clear()
        predicted: Tensor = model(noisy, t, context, added_cond_kwargs=added).sample.float()
        snr = signal / (1 - signal)
        # As the error of the velocity: that of the noise alone hardly counts where all is noise, and there the number
        # of figures is settled.
        counts = ((snr + 1).clamp(max=MIN_SNR_GAMMA) / snr).clamp(max=MOST_WEIGHT)
        wrong = (predicted - eps).square().mean((1, 2, 3)) * counts
        # In much noise nobody can know who stands where.
        place, show = misplaced(seen, batch, device), unknown(features, painter.heads, batch, device)
        value: Tensor = (wrong + signal.sqrt() * (PLACING * place + SHOWING * show)).mean()
        return value

    average: nn.Module = fit(painter, loss, recipe, work / "unet.pt")
    assert isinstance(average, Painter)
    return {"unet": average.unet.state_dict()}
