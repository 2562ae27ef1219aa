"""What a reference adapter looks at: pictures of subjects, what they are called, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ...mudi_core.attention.references import given
from ...mudi_core.attention.references.adapter import Adapter
from ...mudi_core.attention.references.given import cut_out, patches_seen
from ...mudi_core.eyes.pixels import CLIP, to_square
from ...mudi_core.types import MudiError
from .. import convert, host
from ..convert import BadModel
from .blocks import blocks_of
from .places import Places
from .words import count_tokens


class NoReferences(MudiError):
    """Neither a layout's subjects nor pictures of them, or a number of pictures that fits nobody."""


class OtherEncoder(MudiError):
    """An image encoder that is not the adapter's."""


def cross_layers(model: Any) -> tuple[dict[str, int], list[int], int]:
    """Return the number of each cross-attention in diffusers' order (down, up, middle) by its name, the channels of
    each, and the channels of the text."""
    order = {"input": 0, "output": 1, "middle": 2}
    blocks = sorted(blocks_of(model).items(), key=lambda one: (order[one[0][0]], *one[0][1:]))
    network = model.model.diffusion_model
    layers = [network.get_submodule(f"{name}attn2.to_k") for _, name in blocks]
    numbers = {f"{name}attn2.": number for number, (_, name) in enumerate(blocks)}
    return numbers, [layer.out_features for layer in layers], layers[0].in_features


def pictures_of(found: Places, references: Any, photos: int) -> list[list[Tensor]]:
    """Return the pictures of each subject, float ``[h, w, 3]``: those that are connected, one for each, else up to so
    many of its photos, cut out on white. Raise `NoReferences`."""
    if references is not None:
        given = convert.pictures(references)
        if len(given) != found.count:
            raise NoReferences(
                f"There are {len(given)} references for {found.count} places. Connect a batch with one picture for "
                "each, in their order, or a layout, whose subjects have photos."
            )
        return [[one] for one in given]
    if found.subjects is None:
        raise NoReferences("With masks alone nobody knows the subjects. Connect references, or a layout.")
    return [cut_out(subject, photos) for subject in found.subjects]


@dataclass(frozen=True, eq=False)
class Eye:
    """The image encoder of an adapter."""

    adapter: Adapter
    clip_vision: Any
    """A CLIP_VISION, or None."""
    embedded: bool
    """It is the mini DINOv2 that comes with the package."""

    def __call__(self, pictures: Sequence[Tensor]) -> Tensor:
        """Return what it sees of pictures, as the adapter wants it. Raise `OtherEncoder`."""
        if self.embedded:
            return patches_seen(host.embedder(host.MINI), pictures)
        return torch.cat([self._encoded(one) for one in pictures])

    def nothing(self) -> Tensor | None:
        """Return the tokens ``[1, t, context]`` that other prompts than the positive one see: of no picture, as
        IP-Adapter has it; None for MS-Diffusion, which then sees none."""
        if self.adapter.grounded:
            return None
        if not self.adapter.sees_patches:
            return self.adapter.tokens(torch.zeros(1, self.adapter.seen))
        return self.adapter.tokens(self._encoded(torch.tensor(CLIP[0]).expand(224, 224, 3)))

    def _encoded(self, picture: Tensor) -> Tensor:
        if not hasattr(self.clip_vision, "encode_image"):
            raise OtherEncoder(
                f"This {self.adapter.kind} needs an image encoder. Connect Load CLIP Vision with {self._name()}."
            )
        output = self.clip_vision.encode_image(to_square(picture, max(picture.shape[:2])).permute(0, 2, 3, 1))
        found = output.penultimate_hidden_states if self.adapter.sees_patches else output.image_embeds
        if found.shape[-1] != self.adapter.seen:
            raise OtherEncoder(
                f"This {self.adapter.kind} reads {self.adapter.seen} channels, and this CLIP_VISION gives "
                f"{found.shape[-1]}. Load {self._name()}."
            )
        return cast(Tensor, found.float().cpu())

    def _name(self) -> str:
        """Return what the encoder of the known files is called."""
        of_patches = {1664: "CLIP ViT-bigG", 1280: "CLIP ViT-H", 1024: "CLIP ViT-L"}
        of_vectors = {1280: "CLIP ViT-bigG", 1024: "CLIP ViT-H", 768: "CLIP ViT-L"}
        known = of_patches if self.adapter.sees_patches else of_vectors
        return known.get(self.adapter.seen, f"an encoder of {self.adapter.seen} channels")


def tokens_of(eye: Eye, pictures: Sequence[Sequence[Tensor]], clip: Any, named: Sequence[str], found: Places) -> Tensor:
    """Return the tokens of each subject in each picture of a batch, ``[pictures, n, t, context]``; the mean over a
    subject's pictures. Where the adapter is not grounded, one picture's count for all."""
    whose = [who for who, some in enumerate(pictures) for _ in some]
    phrases = torch.cat([phrase(clip, words) for words in named]) if eye.adapter.grounded else None
    return given.tokens_of(eye.adapter, eye([one for some in pictures for one in some]), whose, found.masks, phrases)


def names_of(found: Places, names: str) -> list[str]:
    """Return what stands at each place: the lines that the user wrote, else the class nouns. Raise `NoReferences`."""
    lines = [line.strip() for line in names.splitlines() if line.strip()]
    lines = lines or [subject.class_noun for subject in found.subjects or ()]
    if len(lines) != found.count:
        raise NoReferences(
            f"There are {found.count} places and names for {len(lines)}. Write a line for each place, such as 'dog', "
            "or connect a layout, whose subjects have class nouns."
        )
    return lines


def phrase(clip: Any, words: str) -> Tensor:
    """Return CLIP-L's vector of a phrase, ``[1, c]``: at its end, before the projection. Raise `BadModel`."""
    encoder = getattr(getattr(clip, "cond_stage_model", None), "clip_l", None)
    if encoder is None:
        raise BadModel("This CLIP has no CLIP-L, which MS-Diffusion reads phrases with. Connect the CLIP of SDXL.")
    clip.encode_from_tokens(clip.tokenize(words))  # loads it, and sets where it computes
    encoder.set_clip_options({"projected_pooled": False})
    try:
        _, pooled, *_ = encoder.encode_token_weights(clip.tokenize(words)["l"])
    finally:
        clip.cond_stage_model.reset_clip_options()
    found: Tensor = pooled.float().cpu()
    return found


def context(clip: Any, words: str) -> tuple[Tensor, int]:
    """Return what the text encoders give for some words alone, ``[1, t, c]``, and how many tokens these are."""
    if not hasattr(clip, "encode_from_tokens"):
        raise BadModel("This CLIP reads no text. Connect the CLIP of the model's own checkpoint.")
    found, *_ = clip.encode_from_tokens(clip.tokenize(words), return_pooled=True)
    return found.clone(), count_tokens(clip, words)
