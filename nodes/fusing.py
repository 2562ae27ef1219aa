"""MODEL and CLIP as a base model that LoRAs are fused for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.sd
import torch
from torch import Tensor, nn

from . import convert, host
from .denoiser import kohya_family, name_of
from .denoiser.linear import is_linear
from .denoiser.names import diffusers_names
from .denoiser.patches import PREFIX
from .sockets import SubjectLora

if TYPE_CHECKING:
    from ..mudi_core.lora.change import Change
    from ..mudi_core.lora.concepts import Concept
    from ..mudi_core.lora.wear import Worn

_END = 49407
"""CLIP's token of the end of a text."""


class ModelToFuse:
    """A `fusion.FusionBase`: the LoRAs on the MODEL and the CLIP belong to it. Nothing of both is changed."""

    def __init__(self, model: Any, clip: Any, size: tuple[int, int]) -> None:
        """``size``: width and height of the pictures that the layers are listened to on."""
        self._model, self._clip, self._size = model, clip, size
        self._bare = model, clip
        self.name, self.family = name_of(model), kohya_family(model)
        self._places = _places(model, clip)

    def sizes(self) -> dict[str, tuple[int, int]]:
        found = {}
        for name in self._places:
            weight = self.weight(name)
            if weight.ndim >= 2:
                found[name] = (weight.shape[0], weight[0].numel())
        return found

    def linear_layers(self) -> dict[str, nn.Module]:
        every = {name: module for name, (module, _) in self._places.items()}
        return {name: module for name, module in every.items() if is_linear(module)}

    def weight(self, layer: str) -> Tensor:
        module, key = self._places[layer]
        for patcher in (self._bare[0], self._bare[1].patcher):
            if key in patcher.backup:
                kept: Tensor = patcher.backup[key].weight
                return kept
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @contextmanager
    def wearing(self, *loras: Worn) -> Iterator[None]:
        before = self._model, self._clip
        try:
            for changes, strength in loras:
                if changes and strength:
                    self._model, self._clip = comfy.sd.load_lora_for_models(
                        self._model, self._clip, tensors_of(changes), strength, strength
                    )
            yield
        finally:
            self._model, self._clip = before

    def read(self, captions: Sequence[str]) -> None:
        convert.encode_text(self._clip)(list(captions))

    def words(self, captions: Sequence[str], names: Sequence[str]) -> Tensor:
        from ..mudi_core.bases.text import places_of

        rows = []
        parts = [_tokens(self._clip, name)[1:-1] for name in names]
        for caption, read in zip(captions, convert.encode_text(self._clip)(list(captions)), strict=True):
            ids = _tokens(self._clip, caption)
            rows.append(read["cross_attn"][[*places_of(parts, ids), len(ids) - 1]])
        return torch.cat(rows)

    def paint(self, caption: str, steps: int, seed: int, number: int, on_step: Callable[[int, int], None]) -> None:
        words = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(caption))
        sampler = host.Sampler(self._model, words, words, steps, 1.0, "euler", "normal")
        sampler.sample(sampler.empty(*self._size), seed + number, lambda done: on_step(done, steps))


def concept_of(one: SubjectLora) -> Concept:
    """Return a LoRA with its names: those that the user wrote, filled up by what the file says."""
    from ..mudi_core.lora.concepts import Concept
    from ..mudi_core.lora.reading import read_lora
    from ..mudi_core.lora.triggers import trigger_words

    lora = read_lora(one.path)
    names, token, noun = trigger_words(lora.about), *_parted(one.subject)
    if token:
        own = [pair for pair in names if token in pair]
        names = [(token, noun)] if noun or not own else own
    return Concept(lora, tuple(names), one.strength, one.text_strength)


def _parted(subject: str) -> tuple[str, str]:
    token, _, noun = subject.strip().partition(" ")
    return token, noun.strip()


def tensors_of(changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Return changes by our names as the tensors of a LoRA file that ComfyUI's loaders read."""
    return {key: value for name, change in changes.items() for key, value in change.tensors(name).items()}


def _tokens(clip: Any, text: str) -> list[int]:
    """Return the ids of CLIP's tokens of a text, from the start to the end of it."""
    first = next(iter(clip.tokenize(text.replace("(", "\\(").replace(")", "\\)")).values()))
    ids = [int(token[0]) for token in first[0]]
    return ids[: ids.index(_END) + 1]


def _places(model: Any, clip: Any) -> dict[str, tuple[nn.Module, str]]:
    """Return module and key of the weight of every layer that a LoRA may change, by the library's name of it."""
    from ..mudi_core.lora.names import TEXT, UNET, our_name

    network, found = model.model.diffusion_model, {}
    for ours, theirs in diffusers_names(model).items():
        try:
            module = network.get_submodule(ours)
        except AttributeError:  # names of layers that only some U-Nets have
            continue
        if isinstance(getattr(module, "weight", None), Tensor):
            found[our_name(UNET + theirs.replace(".", "_"))] = module, f"{PREFIX}{ours}.weight"
    for theirs, key in comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}).items():
        if isinstance(key, str) and our_name(theirs).startswith(TEXT) and key.endswith(".weight"):
            module = clip.cond_stage_model.get_submodule(key.removesuffix(".weight"))
            if our_name(theirs) not in found and isinstance(getattr(module, "weight", None), Tensor):
                found[our_name(theirs)] = module, key
    return found
