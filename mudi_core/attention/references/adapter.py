"""The files of reference adapters: which kind one is, as its tensors tell, and what it holds.

- MS-Diffusion: `ms_adapter.bin`; a grounded resampler.
- IP-Adapter: one vector of a picture; IP-Adapter plus: a resampler.
- MIP-Adapter: either of these, with a gate in every layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...tensor_file import BadWeights, read_foreign
from ...types import MudiError
from .projector import BOX, ImageProjector, Resampler, Sizes

Kind = Literal["MS-Diffusion", "IP-Adapter", "IP-Adapter plus", "MIP-Adapter", "MIP-Adapter plus"]
_PROJECTOR = "image_proj."
_LAYERS = ("ms_adapter.", "ip_adapter.")
_NUMBER = re.compile(r"(\d+)\.(to_k_ip|to_v_ip|text_to_weight)\.weight")


class BadAdapter(BadWeights):
    """A file that is no reference adapter, or one of a kind that is not known here."""


class OtherBase(MudiError):
    """An adapter for another kind of base model."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A reference adapter."""

    kind: Kind
    projector: ImageProjector | Resampler
    keys: tuple[Tensor, ...]
    """Of each cross-attention in diffusers' order (down, up, middle), ``[channels, context]``."""
    values: tuple[Tensor, ...]
    gates: tuple[Tensor, ...] | None = None
    """MIP-Adapter's own: how much of the references a position takes, ``[1, channels]`` of the answer to the text."""

    @property
    def grounded(self) -> bool:
        """Whether it wants the phrase and the box of each subject."""
        return self.kind == "MS-Diffusion"

    @property
    def sees_patches(self) -> bool:
        """Whether it wants all that an image encoder sees before its last layer; else the one vector of a picture."""
        return isinstance(self.projector, Resampler)

    @property
    def seen(self) -> int:
        """Channels of what the image encoder must see."""
        if isinstance(self.projector, Resampler):
            return self.projector.sizes.seen
        return self.projector.proj.in_features

    @property
    def scale(self) -> float:
        """The strength that its authors use."""
        return {"MS-Diffusion": 0.6, "MIP-Adapter": 0.75, "MIP-Adapter plus": 0.65}.get(self.kind, 1.0)

    def tokens(self, seen: Tensor, phrases: Tensor | None = None, boxes: Tensor | None = None) -> Tensor:
        """Return the tokens ``[n, t, context]`` of pictures.

        ``seen``: ``[n, patches, channels]`` where it `sees_patches`, else ``[n, channels]``; phrases ``[n, c]`` and
        boxes ``[n, 4]``, xyxy in 0..1, where it is `grounded`.
        """
        if isinstance(self.projector, Resampler):
            found: Tensor = self.projector(seen, phrases, boxes)
            return found
        plain: Tensor = self.projector(seen)
        return plain

    def check(self, widths: list[int], context: int) -> None:
        """Raise `OtherBase` for a base model whose cross-attentions have other channels.

        ``widths``: of each, in diffusers' order; ``context``: channels of its text.
        """
        own = [len(one) for one in self.keys]
        if own != widths or self.keys[0].shape[1] != context:
            raise OtherBase(
                f"This {self.kind} is for a model with {len(own)} cross-attentions that reads {self.keys[0].shape[1]} "
                f"channels of text; the MODEL has {len(widths)} and reads {context}. SDXL has 70 and 2048, SD 1.5 has "
                "16 and 768."
            )


def read(path: Path) -> Adapter:
    """Return the adapter of a file: safetensors, or a pickle from which only tensors are read.

    Raise `BadAdapter` for what is none, and `BadWeights` for what cannot be read.
    """
    if not path.is_file():
        raise BadAdapter(f"There is no file {path}. Choose another adapter, or put it there.")
    state: dict[str, Tensor] = {}
    for name, value in read_foreign(path, "reference adapter").items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for more, tensor in parts:
            if isinstance(tensor, Tensor):
                state[f"{name}.{more}".removesuffix(".")] = tensor
    return of(state, path.name)


def of(state: Mapping[str, Tensor], name: str) -> Adapter:
    """Return the adapter that tensors are, by their official names. ``name``: of the file. Raise `BadAdapter`."""
    image = {key.removeprefix(_PROJECTOR): value for key, value in state.items() if key.startswith(_PROJECTOR)}
    layers: dict[str, dict[int, Tensor]] = {"to_k_ip": {}, "to_v_ip": {}, "text_to_weight": {}}
    for key, value in state.items():
        prefix = next((one for one in _LAYERS if key.startswith(one)), None)
        if prefix is not None and (match := _NUMBER.fullmatch(key.removeprefix(prefix))):
            layers[match[2]][int(match[1])] = value
    keys, values, gates = ([some[number] for number in sorted(some)] for some in layers.values())
    if not image or not keys or layers["to_k_ip"].keys() != layers["to_v_ip"].keys():
        raise BadAdapter(
            f"{name} is no reference adapter: it lacks an image projector or keys and values. Choose ms_adapter.bin, "
            "an ip-adapter of SDXL or SD, or a MIP-Adapter."
        )
    if gates and len(gates) != len(keys):
        raise BadAdapter(f"{name} is incomplete: it has {len(gates)} gates for {len(keys)} layers. Download it again.")
    kind = _kind(image, bool(gates), name)
    projector = _projector(image, keys[0].shape[1], name)
    return Adapter(kind, projector, tuple(keys), tuple(values), tuple(gates) or None)


def _kind(image: Mapping[str, Tensor], gated: bool, name: str) -> Kind:
    if "grounding_latents" in image:
        return "MS-Diffusion"
    if "latents" in image:
        return "MIP-Adapter plus" if gated else "IP-Adapter plus"
    if "proj.weight" in image and "norm.weight" in image:
        return "MIP-Adapter" if gated else "IP-Adapter"
    raise BadAdapter(
        f"{name} is an adapter of a kind that is not known here (full, or FaceID). Choose MS-Diffusion, an IP-Adapter "
        "without or with 'plus', or a MIP-Adapter."
    )


def _projector(image: Mapping[str, Tensor], context: int, name: str) -> ImageProjector | Resampler:
    try:
        with torch.device("meta"):
            made = _sized(image, context)
        made.load_state_dict({key: value.float() for key, value in image.items()}, assign=True)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        what = str(error).strip().splitlines()[-1].strip()
        raise BadAdapter(f"{name} begins like a reference adapter but is not one: {what}") from None
    return made.eval().requires_grad_(False)


def _sized(image: Mapping[str, Tensor], context: int) -> ImageProjector | Resampler:
    if "proj.weight" in image:
        out, seen = image["proj.weight"].shape
        return ImageProjector(seen, out // context, context)
    questions = image["grounding_latents" if "grounding_latents" in image else "latents"]
    width, seen = image["proj_in.weight"].shape
    depth = len({key.split(".")[1] for key in image if key.startswith("layers.")})
    phrase = image["latent_proj.0.weight"].shape[1] - BOX if "grounding_latents" in image else 0
    inside = image["layers.0.0.to_q.weight"].shape[0]
    return Resampler(Sizes(seen, context, questions.shape[1], width, inside, depth, phrase))
