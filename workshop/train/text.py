"""Train the mini text encoders to understand captions, before the U-Net learns to paint from them.

Wherever a caption has just said something about a character, the encoders' vectors there must contain everything said
about it so far (a name says all), so that a cross-attention that finds the right word finds the right looks. Names
without a meaning must stay distinguishable: their vectors keep a code of the word, to which a LoRA later gives a
meaning.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from mudi_core import vocabulary
from mudi_core.bases import embedded as family
from mudi_core.toy import world
from mudi_core.toy.world import NAMED, Character, told

from .data import VALUES, looks, scene
from .loop import Recipe, fit

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

RECIPE = Recipe(steps=2500, learning_rate=1.0e-3, warmup=200, cooldown=0.5)
BATCH = 64
CODE = 32
"""Numbers that tell a name from any other word of the vocabulary."""
UNKNOWN = 0.5
"""Share of the captions with names whose names are other words, without a meaning."""

UNSAID = -100
START, END = 49406, 49407
NAMES = {character: name for name, character in NAMED.items()}
PLACES = tuple(dict.fromkeys(world.PLACES.values()))


@dataclass
class Reading:
    """What a caption has said at one of its words."""

    word: int
    """Its place in the caption's words."""
    who: int
    """Which of the characters, in the order in which they are told of."""
    said: list[int]
    """Indices into `VALUES`, `UNSAID` where nothing was said."""
    name: str | None = None


@dataclass
class Read:
    """A caption as words, each of them whole in CLIP's sense, and what is known after some of them."""

    words: list[str] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)


def read(caption: str, named: Mapping[str, Character]) -> Read:
    """Understand a caption of the toy world; `named` gives the looks of the names in it."""
    words = caption.replace(",", " ,").replace(":", " :").split()
    result = Read(words)
    said: list[int] = [UNSAID] * len(VALUES)
    who, name, color, pattern = -1, None, None, None

    def know(what: str, value: str | bool) -> None:
        said[list(VALUES).index(what)] = VALUES[what].index(value)

    for i, word in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        if following in world.SPECIES and word not in (*world.COLORS, *world.PATTERNS, "a", "an"):
            name = word
            known = looks(named[word]) if word in named else [UNSAID] * len(VALUES)
            result.readings.append(Reading(i, who + 1, known, name))
        elif word in world.SPECIES:
            who += 1
            said = [UNSAID] * len(VALUES)
            know("species", word)
            if color:
                know("color", color)
            if pattern:
                know("pattern", pattern)
            if name is not None and name in named:
                said = looks(named[name])
            result.readings.append(Reading(i, who, list(said), name))
            name = color = pattern = None
        elif word in world.COLORS or word in world.CLOTH_COLORS:
            color = word
        elif word in world.PATTERNS:
            pattern = word
        elif word == "tie" or (word in (*world.HEADWEAR, *world.NECKWEAR) and following != "tie"):
            worn = "bowtie" if word == "tie" else word
            part = "neckwear" if worn in world.NECKWEAR else "headwear"
            know(part, worn)
            if color:
                know(f"{part}_color", color)
            color = None
            result.readings.append(Reading(i, who, list(said)))
        elif word == "glasses":
            know("glasses", True)
            result.readings.append(Reading(i, who, list(said)))
    return result


@cache
def tokenizer() -> CLIPTokenizer:
    return vocabulary.tokenizer()


@cache
def tokens(word: str) -> tuple[int, ...]:
    """CLIP's tokens of one word."""
    return tuple(tokenizer()(word).input_ids[1:-1])


def tokenized(words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Token ids with start and end, as the tokenizer gives for the whole caption, and where each word's last one is."""
    line, ends = [START], []
    for word in words:
        line += tokens(word)
        ends.append(len(line) - 1)
    return [*line, END], ends


def padded(lines: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    """Ids ``[b, length]`` for the first and the second encoder."""
    first, second = ([[*line, *[pad] * (length - len(line))] for line in lines] for pad in (END, 0))
    return torch.tensor(first), torch.tensor(second)


class Teacher(nn.Module):
    """Both text encoders and the linear heads that ask them; the heads are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = family.build_text_encoders()
        answers = sum(len(values) for values in VALUES.values())
        widths = (family.TEXT_WIDTH, family.TEXT_2_WIDTH)
        self.looks = nn.ModuleList(nn.Linear(width, answers) for width in widths)
        self.code = nn.ModuleList(nn.Linear(width, CODE) for width in widths)
        self.whole = nn.Linear(family.TEXT_2_WIDTH, len(PLACES) + 3 + len(world.SPECIES) + len(world.COLORS))
        generator = torch.Generator().manual_seed(1)
        self.views = [torch.randn(width, CODE, generator=generator) / width**0.5 for width in widths]

    def codes(self, encoder: int) -> Tensor:
        """``[words, CODE]`` with a variance of 1: a random view of the encoder's word vectors."""
        model = (self.text_encoder, self.text_encoder_2)[encoder]
        vectors: Tensor = model.get_input_embeddings().weight
        code: Tensor = vectors @ self.views[encoder].to(vectors.device) / family.WORD_STD
        return code


@dataclass
class Lesson:
    """A batch of captions as tokens, and what their vectors must tell."""

    lines: list[list[int]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """Row and token of every reading."""
    said: list[list[int]] = field(default_factory=list)
    names: list[tuple[int, int, int]] = field(default_factory=list)
    """Row, token, and the name's id."""
    whole: list[tuple[int, int]] = field(default_factory=list)
    """Of the whole caption: the place, and how many characters."""
    cast: list[list[float]] = field(default_factory=list)
    """Of the whole caption: which species and colours are said to be there (0 or 1; -1 is not known)."""


def lesson(rng: random.Random, unknown: Sequence[str]) -> Lesson:
    """BATCH captions of new scenes; in some of them the names are words of `unknown`, which say nothing."""
    result = Lesson()
    for row in range(BATCH):
        chosen = scene(rng.randrange(10**8))
        caption, order = told(chosen, rng, NAMES)
        named: Mapping[str, Character] = NAMED
        if rng.random() < UNKNOWN:
            caption, named = " ".join(rng.choice(unknown) if w in NAMED else w for w in caption.split()), {}
        understood = read(caption, named)
        line, ends = tokenized(understood.words)
        for reading in understood.readings:
            result.places.append((row, ends[reading.word]))
            result.said.append(reading.said)
            if reading.name:
                result.names.append((row, ends[reading.word], tokens(reading.name)[-1]))
        result.lines.append(line)
        place = world.PLACES[chosen.background]
        result.whole.append((PLACES.index(place) if place in caption else UNSAID, len(order) - 1))
        cast = [actor.character for actor in order]
        species = [float(any(c.species == s for c in cast)) for s in world.SPECIES]
        colors = [float(any(c.color == k for c in cast)) if k in caption else -1.0 for k in world.COLORS]
        result.cast.append(species + colors)
    return result


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of both text encoders under the names of their files."""
    torch.manual_seed(recipe.seed)
    spoken = {word for values in (*VALUES.values(), world.SUBJECT_TOKENS, NAMED, PLACES) for word in values}
    vocabulary = (word.removesuffix("</w>") for word in tokenizer().get_vocab() if word.endswith("</w>"))
    unknown = sorted(word for word in vocabulary if word.isalpha() and word not in spoken)
    model = Teacher().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        batch = lesson(random.Random(int(torch.randint(2**31, (1,), generator=generator))), unknown)
        rows, at = torch.tensor(batch.places).to(device).unbind(1)
        said = torch.tensor(batch.said).to(device)
        total = torch.zeros((), device=device)
        ids = padded(batch.lines, max(map(len, batch.lines)))
        for i, encoder in enumerate((model.text_encoder, model.text_encoder_2)):
            out = encoder(ids[i].to(device), output_hidden_states=True)
            hidden = out.hidden_states[-2]
            answers = model.looks[i](hidden[rows, at]).float().split([len(v) for v in VALUES.values()], 1)
            for answer, right in zip(answers, said.unbind(1), strict=True):
                if (right != UNSAID).any():
                    total = total + cross_entropy(answer, right, ignore_index=UNSAID)
            if batch.names:
                row, token, name = torch.tensor(batch.names).to(device).unbind(1)
                code = model.codes(i)[name]
                total = total + (model.code[i](hidden[row, token]).float() - code).square().mean()
        cast = torch.tensor(batch.cast).to(device)
        place, count = torch.tensor(batch.whole).to(device).unbind(1)
        where, many, who = model.whole(out.text_embeds).float().split([len(PLACES), 3, cast.shape[1]], 1)
        wrong = binary_cross_entropy_with_logits(who, cast.clamp(min=0), reduction="none")[cast >= 0].mean()
        return total + cross_entropy(where, place, ignore_index=UNSAID) + cross_entropy(many, count) + 3 * wrong

    average = fit(model, loss, recipe, work / "text.pt")
    assert isinstance(average, Teacher)
    return {
        name: family.without_word_vectors(getattr(average, name).state_dict())
        for name in ("text_encoder", "text_encoder_2")
    }
