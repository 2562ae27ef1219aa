"""LoRAs of single subjects become one that makes all of them: gradient fusion, once for all faces (paper, 5.4 and C.2).

The text encoders are fused first, then the layers that read the text, then all others, as in Mix-of-Show's code: each
with inputs that come through what was fused before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..lora.change import DOWN, UP, Change
from ..lora.concepts import CannotFuse, Concept, check_concepts
from ..lora.fuse import Errors, Factors, Fusion, Inputs, balanced, shortened, summed
from ..lora.fuse_rows import Gathered, gathered
from ..lora.names import TEXT
from ..lora.wear import Worn
from ..progress import Progress, silent
from .fusion import FuseConfig, Fused, FusionBase

CAPTIONS = ("photo of a {}", "{}")
"""What the text encoders read of each concept (Mix-of-Show's code). Pictures are painted with the first."""
FAMILIES = ("sdxl_base_v1-0", "sd_v1", "sd_v2")
DENSE_RANK = 64
"""Rank of a fused layer where a concept's change has no small factors (DoRA, LoKr, full)."""


def fuse(concepts: Sequence[Concept], base: FusionBase, config: FuseConfig, progress: Progress = silent) -> Fused:
    """Make one LoRA of several. Raise `CannotFuse`, or `BadLora` for one that does not fit the base model."""
    check_concepts(concepts)
    if base.family.removesuffix("_v") not in FAMILIES:
        raise CannotFuse(
            f"LoRAs of {base.name} ({base.family}) cannot be fused here: that works with SDXL, SD 1.x and SD 2.x. Load "
            "them one after the other, or train one LoRA on the pictures of all subjects."
        )
    work = _Work(concepts, base, config)
    if config.method == "sum":
        return work.done()
    text = [name for name in work.layers if name.startswith(TEXT)]
    if text:
        with progress("fusing the text encoders") as update:
            heard: list[_Heard] = [work.reads(i, text) for i in range(len(concepts))]
            work.solve("text encoders", text, heard, update)
    reads_text = [name for name in work.layers if name.endswith(("attn2_to_k", "attn2_to_v"))]
    with progress("fusing the layers that read the text") as update:
        with base.wearing(work.fused()):
            words: list[_Heard] = [_Words(base.words(*_captions(concept))) for concept in concepts]
        work.solve("words", reads_text, words, update)
    rest = [name for name in work.layers if name not in work.changes and not name.startswith(TEXT)]
    if config.method == "fuse" and rest:
        heard = []
        for i, concept in enumerate(concepts):
            with progress(f"painting {concept.words}") as update:
                heard.append(work.paints(i, rest, update))
        with progress("fusing all other layers") as update:
            work.solve("picture", rest, heard, update)
    return work.done()


class _Heard(Protocol):
    def of(self, layer: str) -> Inputs | None: ...

    def leader(self, layer: str) -> str: ...


class _Words:
    """The same inputs for every layer."""

    def __init__(self, rows: Tensor) -> None:
        self._inputs = Inputs(rows.shape[1])
        self._inputs.add(rows)

    def of(self, layer: str) -> Inputs:
        return self._inputs

    def leader(self, layer: str) -> str:
        return ""


def _captions(concept: Concept) -> tuple[list[str], list[str]]:
    return [caption.format(concept.words) for caption in CAPTIONS], [" ".join(name) for name in concept.names]


@dataclass(eq=False)
class _Work:
    """A fusion under way."""

    concepts: Sequence[Concept]
    base: FusionBase
    config: FuseConfig
    changes: dict[str, Change] = field(default_factory=dict)
    errors: dict[str, tuple[Errors, Errors]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sizes = self.base.sizes()
        self.matched = tuple(concept.lora.on(self._sizes, self.base.name) for concept in self.concepts)
        for concept, one in zip(self.concepts, self.matched, strict=True):
            if not any("_attn" in name for name in one.changes):
                raise CannotFuse(
                    f"{concept.lora.name} changes no attention layer of {self.base.name}, so there is nothing to fuse: "
                    f"{one.told()} Use a LoRA that was trained on attention layers."
                )
        linear, changed = self.base.linear_layers(), {name for one in self.matched for name in one.changes}
        self.layers = {name: linear[name] for name in linear if name in changed}
        """The linear layers that at least one concept changes, in the model's order."""
        self._others = sorted(changed - self.layers.keys())

    def fused(self) -> Worn:
        """Return what is fused so far, to be worn."""
        return self.changes, 1.0

    def reads(self, i: int, layers: Sequence[str]) -> Gathered:
        """Return what the text encoders' layers are called with while they read of a concept."""
        concept = self.concepts[i]
        text = {name: change for name, change in self.matched[i].changes.items() if name.startswith(TEXT)}
        strength = concept.strength_of(TEXT[0])
        with self.base.wearing((text, strength)), gathered(self._named(layers)) as heard:
            self.base.read(_captions(concept)[0])
        return heard

    def paints(self, i: int, layers: Sequence[str], update: Callable[[int, int], None]) -> Gathered:
        """Return what the network's layers are called with while it paints a concept by the concept's own changes."""
        concept, config = self.concepts[i], self.config
        own = {name: change for name, change in self.matched[i].changes.items() if name not in self.changes}
        own = {name: change for name, change in own.items() if not name.startswith(TEXT)}
        total = config.pictures * config.steps
        caption, per_step = CAPTIONS[0].format(concept.words), -(-config.rows // config.steps)
        with (
            self.base.wearing(self.fused(), (own, concept.strength)),
            gathered(self._named(layers), per_step, config.seed + i) as heard,
        ):
            for number in range(config.pictures):

                def stepped(step: int, _: int, done: int = number * config.steps) -> None:
                    update(done + step, total)

                self.base.paint(caption, config.steps, config.seed, number, stepped)
        return heard

    def solve(
        self, part: str, layers: Sequence[str], heard: Sequence[_Heard], update: Callable[[int, int], None]
    ) -> None:
        """Fuse some layers, those with the same inputs together, and measure how near the result is."""
        groups: dict[str, list[str]] = {}
        for name in layers:
            if all(one.of(name) is not None for one in heard):
                groups.setdefault(heard[0].leader(name), []).append(name)
        for number, names in enumerate(groups.values()):
            inputs = [seen for one in heard if (seen := one.of(names[0])) is not None]
            fusion = Fusion(inputs, self.config.ridge)
            for name in names:
                changes = self._factors(name)
                found, plain = fusion.fuse(changes), summed(changes)
                assert found is not None
                found = fusion.compressed(found, self._rank(found))
                pair = Errors.of(plain, changes, inputs), Errors.of(found, changes, inputs)
                before = self.errors.get(part)
                self.errors[part] = pair if before is None else (before[0] + pair[0], before[1] + pair[1])
                self.changes[name] = _as_change(found, self._sizes[name])
            update(number + 1, len(groups))

    def done(self) -> Fused:
        """Add up what was not fused."""
        rest = [name for name in [*self.layers, *self._others] if name not in self.changes]
        added = 0
        for name in rest:
            both = summed(self._factors(name))
            self.changes[name] = _as_change(shortened(both, self._rank(both)), self._shape(name))
            added += 1
        return Fused(self.changes, self.errors, self.matched, added)

    def _named(self, layers: Sequence[str]) -> dict[str, nn.Module]:
        return {name: self.layers[name] for name in layers}

    def _factors(self, name: str) -> list[Factors | None]:
        """Return each concept's change of a layer, its strength included."""
        found: list[Factors | None] = []
        for concept, one in zip(self.concepts, self.matched, strict=True):
            change = one.changes.get(name)
            if change is None:
                found.append(None)
                continue
            weight = self.base.weight(name).float().cpu()
            factors = change.factors(weight)
            if factors is None:
                delta = change.delta(weight).flatten(1)
                factors = delta, torch.eye(delta.shape[1])
            found.append((factors[0] * concept.strength_of(name), factors[1]))
        return found

    def _rank(self, change: Factors) -> int:
        """Return the most ranks that a layer may have: all, where all concepts have small factors."""
        out, wide = change[0].shape[0], change[1].shape[1]
        if self.config.rank:
            return self.config.rank
        return change[0].shape[1] if change[0].shape[1] < min(out, wide) else min(DENSE_RANK, out, wide)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.base.weight(name).shape)


def _as_change(factors: Factors, shape: Sequence[int]) -> Change:
    """Return factors as a LoRA of a layer whose weight has this shape, or the flat size ``(out, in)``."""
    up, down = balanced(factors)
    if len(shape) > 2:
        up, down = up.reshape(*up.shape, *[1] * (len(shape) - 2)), down.reshape(len(down), *shape[1:])
    return Change("LoRA", {UP: up.contiguous(), DOWN: down.contiguous()}, float(len(down)))
