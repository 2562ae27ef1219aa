"""Train the mini reference adapter: MS-Diffusion's architecture on the embedded U-Net, from scenes and other pictures
of the characters in them.

First the resampler learns to say about a picture of a character what the text encoders say about its description;
then all of it learns to denoise scenes whose captions name nothing but the class nouns. So whatever a character looks
like can come from its picture alone, and the picture is another one than the scene shows: nothing can be copied.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from mudi_core.attention.references.look import look
from mudi_core.attention.references.projector import Resampler, Sizes
from mudi_core.bases import embedded as family
from mudi_core.masks import resize
from mudi_core.toy import world
from mudi_core.toy.world import Character, Scene

from .cast import SCENES, Cast, cast
from .loop import Recipe, fit
from .text import padded, read, tokenized
from .unet import LENGTH, MIN_SNR_GAMMA, encode_text, encoded

RECIPE = Recipe(steps=1300, learning_rate=5.0e-4, warmup=50, ema=0.995)
WORDS = Recipe(steps=2000, learning_rate=2.0e-3, warmup=100, cooldown=0.6, ema=0.99)
"""Of the first lesson: what the text encoders say."""
BATCH = 16
WORDS_BATCH = 64
MOST = 4
"""References of a scene, as in MS-Diffusion."""
TOKENS = 4
"""Of a reference: of its body, its headwear, its neckwear and its glasses, when it begins."""
WIDTH = 128
"""Channels of the mini DINOv2, and of the resampler."""
NO_TEXT, NO_GROUNDING = 0.05, 0.1
"""Shares of scenes without a caption, and of references without phrase and box."""
JITTER = 0.05
"""Greatest error of a box's edges, as a share of its size."""


class Adapter(nn.Module):
    """The adapter under the names of MS-Diffusion's own file; its keys and values begin as the U-Net's for text."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        context = family.TEXT_WIDTH + family.TEXT_2_WIDTH
        self.image_proj = Resampler(Sizes(WIDTH, context, TOKENS, WIDTH, WIDTH, 1, family.TEXT_WIDTH))
        self.ms_adapter = nn.ModuleDict()
        for number, layer in enumerate(cross_attentions(unet).values()):
            pair = {"to_k_ip": layer.to_k, "to_v_ip": layer.to_v}
            own = {name: nn.Linear(context, theirs.out_features, bias=False) for name, theirs in pair.items()}
            for name, theirs in pair.items():
                own[name].load_state_dict(theirs.state_dict())
            self.ms_adapter[str(2 * number + 1)] = nn.ModuleDict(own)


def cross_attentions(unet: Any) -> dict[str, Any]:
    """Return a U-Net's cross-attentions by the names of their processors, in the order of diffusers' processors."""
    names = [name for name in unet.attn_processors if "attn2" in name]
    return {name: unet.get_submodule(name.removesuffix(".processor")) for name in names}


@dataclass
class Shown:
    """What the layers look at in a step."""

    tokens: Tensor | None = None
    """``[b, MOST, TOKENS, context]``"""
    places: Tensor | None = None
    """``[b, MOST, SIZE / 8, SIZE / 8]``"""


class Looking:
    """A cross-attention that also looks at references."""

    def __init__(self, pair: Any, shown: Shown) -> None:
        self.pair, self.shown = pair, shown

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None, **_: Any
    ) -> Tensor:
        q = attn.to_q(hidden_states)
        heads = [attn.head_to_batch_dim(x) for x in (q, attn.to_k(encoder_hidden_states))]
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        answer = attn.batch_to_head_dim(attn.get_attention_scores(*heads) @ value)
        tokens, places = self.shown.tokens, self.shown.places
        if tokens is not None and places is not None:
            side = round(q.shape[1] ** 0.5)
            weights = resize(places, (side, side)).flatten(2).mT
            answer = answer + look(q, self.pair["to_k_ip"](tokens), self.pair["to_v_ip"](tokens), weights, attn.heads)
        result: Tensor = attn.to_out[1](attn.to_out[0](answer))
        return result


def said(encoders: Any, characters: list[Character], device: torch.device) -> Tensor:
    """Return what the text encoders say at the words for the body, headwear, neckwear and glasses of characters,
    ``[n, TOKENS, context]``; for what one does not wear, what was said before."""
    lines, places = [], []
    for character in characters:
        understood = read(f"a photo of a {character.describe()}", {})
        line, ends = tokenized(understood.words)
        slots: dict[int, int] = {}
        for reading in understood.readings:
            word = understood.words[reading.word]
            kinds = ((word in world.SPECIES, 0), (word in world.HEADWEAR, 1), (word == "glasses", 3))
            slots[next((slot for right, slot in kinds if right), 2)] = ends[reading.word]
        row = [slots[0]]
        for slot in range(1, TOKENS):
            row.append(slots.get(slot, row[-1]))
        lines.append(line)
        places.append(row)
    context, _ = encode_text(encoders, lines, device, max(map(len, lines)))
    return context.gather(1, torch.tensor(places, device=device)[..., None].expand(-1, -1, context.shape[-1]))


@torch.no_grad()
def phrases(encoders: Any, device: torch.device) -> dict[str, Tensor]:
    """Return the vector of each class noun: the first encoder's, at the end, after its last norm."""
    lines = [tokenized((species,))[0] for species in world.SPECIES]
    found = encoders[0](padded(lines, LENGTH)[0].to(device)).pooler_output
    return dict(zip(world.SPECIES, found, strict=True))


def nouns(scene: Scene, rng: random.Random) -> str:
    """Return a caption that says nothing about looks but the class nouns."""
    who = [f"{'an' if (one := a.character.species) == 'alien' else 'a'} {one}" for a in scene.actors]
    rng.shuffle(who)
    lead = rng.choice(("a photo of ", "a picture of ", ""))
    return lead + " and ".join(who) + rng.choice((", ", " ")) + world.PLACES[scene.background]


def grounded(boxes: list[tuple[float, ...]], rng: random.Random) -> tuple[Tensor, Tensor]:
    """Return boxes with small errors, ``[n, 4]``, and their places ``[n, SIZE / 8, SIZE / 8]``."""
    side, found = family.SIZE // 8, []
    places = torch.zeros(len(boxes), side, side)
    for place, (x0, y0, x1, y1) in zip(places, boxes, strict=True):
        error = [rng.uniform(-JITTER, JITTER) * size for size in (x1 - x0, y1 - y0) * 2]
        box = [min(max(edge + e, 0.0), 1.0) for edge, e in zip((x0, y0, x1, y1), error, strict=True)]
        found.append(box)
        left, top, right, bottom = (round(edge * side) for edge in box)
        place[top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    return torch.tensor(found), places


def words(adapter: Adapter, encoders: Any, cast: Cast, work: Path, device: torch.device) -> None:
    """Teach the resampler to say what the text encoders say, with and without grounding."""
    named, everyone = phrases(encoders, device), cast.characters
    answers = torch.cat([said(encoders, everyone[at : at + 256], device) for at in range(0, len(everyone), 256)])
    last = adapter.image_proj.norm_out
    last.weight.data.copy_(answers.flatten(0, 1).std(0))
    last.bias.data.copy_(answers.flatten(0, 1).mean(0))

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(everyone), (WORDS_BATCH,), generator=generator)
        boxes = torch.rand(WORDS_BATCH, 2, 2, generator=generator).sort(1).values.flatten(1).to(device)
        boxes[torch.rand(WORDS_BATCH, generator=generator) < NO_GROUNDING] = torch.nan
        phrase = torch.stack([named[everyone[number].species] for number in index.tolist()])
        tokens = adapter.image_proj(cast.seen[index].float().to(device), phrase, boxes)
        value: Tensor = (tokens.float() - answers[index.to(device)]).square().mean() / answers.var()
        return value

    average = fit(adapter.image_proj, loss, WORDS, work / "reference-words.pt")
    adapter.image_proj.load_state_dict(average.state_dict())


@dataclass(frozen=True)
class Batch:
    """Some scenes: what is said of them, and of whom they have references."""

    lines: list[list[int]]
    """The captions' tokens."""
    who: list[int]
    """The numbers of MOST characters of each scene; the places of those that it has not are empty."""
    phrase: Tensor
    """``[b, MOST, c]``"""
    where: Tensor
    """Boxes xyxy ``[b, MOST, 4]``, 0..1; NaN is without grounding."""
    places: Tensor
    """``[b, MOST, SIZE / 8, SIZE / 8]``"""


def batch(numbers: list[int], everybody: Cast, named: dict[str, Tensor], rng: random.Random) -> Batch:
    """Return the scenes of these numbers."""
    side, count = family.SIZE // 8, len(numbers)
    lines, who = [], []
    where, places = torch.zeros(count, MOST, 4), torch.zeros(count, MOST, side, side)
    phrase = torch.zeros(count, MOST, family.TEXT_WIDTH)
    for row, number in enumerate(numbers):
        scene, first = everybody.scenes[number], everybody.first[number]
        actors = scene.actors[:MOST]
        caption = "" if rng.random() < NO_TEXT else nouns(scene, rng)
        lines.append(tokenized(read(caption, {}).words)[0])
        where[row, : len(actors)], places[row, : len(actors)] = grounded([a.xyxy for a in actors], rng)
        for column, actor in enumerate(actors):
            phrase[row, column] = named[actor.character.species]
            if rng.random() < NO_GROUNDING:
                where[row, column] = torch.nan
        who += [first + column if column < len(actors) else first for column in range(MOST)]
    return Batch(lines, who, phrase, where, places)


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file."""
    torch.manual_seed(recipe.seed)
    latents, everybody = encoded(work, device), cast(work, device)
    encoders = [encoder.to(device) for encoder in family.load_text_encoders()]
    unet, shown = family.load_unet().to(device), Shown()
    adapter = Adapter(unet).to(device)
    processors: dict[str, Any] = {name: AttnProcessor() for name in unet.attn_processors}
    for pair, name in zip(adapter.ms_adapter.values(), cross_attentions(unet), strict=True):
        processors[name] = Looking(pair, shown)
    unet.set_attn_processor(processors)
    words(adapter, encoders, everybody, work, device)
    named, abar = phrases(encoders, device), family.scheduler().alphas_cumprod.to(device)
    time_ids = torch.tensor([[family.SIZE, family.SIZE, 0, 0, family.SIZE, family.SIZE]] * BATCH, device=device)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(SCENES, (BATCH,), generator=generator)
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        some = batch(index.tolist(), everybody, named, rng)
        seen, where = everybody.seen[some.who].float().to(device), some.where.flatten(0, 1).to(device)
        tokens = adapter.image_proj(seen, some.phrase.flatten(0, 1).to(device), where)
        shown.tokens, shown.places = tokens.unflatten(0, (BATCH, MOST)), some.places.to(device)
        z0 = latents[index].float().to(device)
        eps = torch.randn(z0.shape, generator=generator).to(device)
        t = torch.randint(1000, (BATCH,), generator=generator).to(device)
        signal = abar[t].view(-1, 1, 1, 1)
        context, pooled = encode_text(encoders, some.lines, device)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        noisy = signal.sqrt() * z0 + (1 - signal).sqrt() * eps
        predicted: Tensor = unet(noisy, t, context, added_cond_kwargs=added).sample.float()
        snr = signal / (1 - signal)
        inside = shown.places.amax(1, keepdim=True)
        wrong = (predicted - eps).square() * (snr.clamp(max=MIN_SNR_GAMMA) / snr) * inside
        value: Tensor = wrong.sum() / (4 * inside.sum())
        return value

    average = fit(adapter, loss, recipe, work / "reference.pt")
    return {"reference": average.state_dict()}
