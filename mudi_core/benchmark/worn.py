"""What a benchmark's methods wear in the U-Net's attention, for the picture of a cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..attention import unet
from ..attention.guidance import LayoutGuidance
from ..attention.layer import Part
from ..attention.lora import Change, SeparateLoras
from ..attention.prompts import RegionalPrompts
from ..attention.references import adapter as adapters
from ..attention.references.given import cut_out, everywhere, patches_seen, tokens_of
from ..attention.references.worn import References, Words
from ..attention.regions import Regions
from ..bases import embedded
from ..bases.checkpoint import Checkpoint
from ..bases.text import CheckpointText, marked, occurrences, shared
from ..eyes import vision
from ..eyes.embedded import load_embedder
from ..jobs.generate import GenerateConfig, draw_layout
from ..stage.cutouts import CutOuts
from ..stage.regions import BOXES, FIGURES, regions
from ..types import Layout, MudiError, Placement
from .methods import METHODS
from .spec import Cell, Spec
from .wording import alone

PHOTOS = 4
"""Of each subject that a reference adapter sees."""
_GROW = {FIGURES: 0.1, BOXES: 0.0}
"""By shape, as the nodes have it."""


class OtherEncoder(MudiError):
    """An image encoder that an adapter was not trained with."""


_read = lru_cache(maxsize=1)(adapters.read)
"""An adapter is large, and all combos of a benchmark wear the same one."""


class Wardrobe:
    """What is worn in the pictures of a combo."""

    def __init__(self, spec: Spec, base: Checkpoint, cutouts: CutOuts) -> None:
        self.spec, self.base, self.cutouts, self.subjects = spec, base, cutouts, cutouts.subjects

    @contextmanager
    def wearing(self, cell: Cell, config: GenerateConfig, loras: Sequence[Mapping[str, Change]] = ()) -> Iterator[None]:
        """Inside the block the U-Net wears what the cell's method does; ``loras``: of each subject, to act apart."""
        if not METHODS[cell.method].in_attention:
            yield
            return
        with torch.no_grad():
            part = self._part(cell, config, loras)
        alphas = self.base.scheduler.alphas_cumprod
        with unet.wearing(self.base.unet, [part], alphas, config.guidance > 1):
            yield

    def _part(self, cell: Cell, config: GenerateConfig, loras: Sequence[Mapping[str, Change]]) -> Part:
        wears = METHODS[cell.method].wears
        shape = BOXES if wears in ("references", "merge") else FIGURES
        layout = self._layout(cell, config, shape)
        masks = regions(layout, self.cutouts, shape, _GROW[shape])[None]
        names = self.spec.names(cell, self.subjects)
        if wears == "regions":
            contexts = self._contexts([alone(name, self.spec.text(cell)) for name in names])
            return RegionalPrompts(contexts, Regions(masks))
        if wears == "guidance":
            return LayoutGuidance(self._words(config.prompt, names), Regions(masks))
        if wears:
            words = self._merge() if wears == "merge" else None
            strength = self.spec.own[cell.combo].strength if cell.combo in self.spec.own else None
            return self._references(masks, everywhere(masks) if words else Regions(masks), words, strength)
        return SeparateLoras(loras, Regions(masks))

    def _layout(self, cell: Cell, config: GenerateConfig, shape: str) -> Layout:
        """Return where the subjects stand: for boxes that the combo gives, these, not the figures that fit in them."""
        size = config.size or (self.base.side, self.base.side)
        if shape == BOXES and config.places is not None:
            return Layout(size, tuple(Placement(token, place.box) for token, place in config.places.items()))
        return draw_layout(self.cutouts, config, 0, size)

    def _references(self, masks: Tensor, where: Regions, words: Words | None, strength: float | None) -> References:
        phrases = self._phrases if self._adapter.grounded else None
        tokens = tokens_of(self._adapter, *self._seen, masks, phrases)
        layers = unet.cross_layers(self.base.unet)
        scale = self._adapter.scale if strength is None else strength
        return References(self._adapter, tokens, layers, where, scale, words)

    def _contexts(self, texts: Sequence[str]) -> list[Tensor]:
        return [one[None] for one in self.base.encode_text(texts)[0]]

    def _words(self, prompt: str, names: Sequence[str]) -> list[Tensor]:
        """Return for each name 1 for each of the prompt's 77 tokens that is one of it, and 0 for others."""
        text = CheckpointText(self.base)
        ids, words = text.ids(prompt), [text.word(name) for name in names]
        starts = shared([occurrences(ids, word) for word in words])
        return [marked(len(ids), places, len(word)) for places, word in zip(starts, words, strict=True)]

    def _merge(self) -> Words:
        names = [subject.class_noun for subject in self.subjects]
        text = CheckpointText(self.base)
        return Words(self._contexts(names), [len(text.word(name)) for name in names])

    @cached_property
    def _adapter(self) -> adapters.Adapter:
        found = _read(Path(self.spec.adapter) if self.spec.adapter else embedded.WEIGHTS / "reference.safetensors")
        found.check(*unet.widths_of(self.base.unet))
        return found

    @cached_property
    def _seen(self) -> tuple[Tensor, list[int]]:
        """What the adapter's eye sees of the subjects' photos, and whose each is."""
        pictures = [cut_out(subject, PHOTOS) for subject in self.subjects]
        every = [one for some in pictures for one in some]
        if self.spec.image_encoder:
            seen = vision.load(Path(self.spec.image_encoder), self.base.device)(every, self._adapter.sees_patches)
        else:
            seen = patches_seen(load_embedder(), every)
        if seen.shape[-1] != (wanted := self._adapter.seen):
            raise OtherEncoder(
                f"The adapter reads {wanted} channels, and the image encoder gives {seen.shape[-1]}. Take the encoder "
                "that the adapter was trained with."
            )
        return seen, [who for who, some in enumerate(pictures) for _ in some]

    @cached_property
    def _phrases(self) -> Tensor:
        """What CLIP-L gives at the end of each class noun, before its projection, ``[n, c]``."""
        nouns = [subject.class_noun for subject in self.subjects]
        encoder = self.base.text_encoders[0]
        ids = self.base.tokenizers[0](nouns, padding="max_length", truncation=True, return_tensors="pt").input_ids
        phrases: Tensor = encoder(ids.to(encoder.device)).pooler_output.float().cpu()
        return phrases
