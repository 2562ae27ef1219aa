"""Prompts of regions in a MODEL whose attention sees text and picture at once: FLUX, FLUX.2, Chroma.

Their networks take an ``attention_mask`` beside the prompt. So a wrapper of ComfyUI's ``apply_model`` puts the regions'
prompts behind the picture's own and gives the mask that says who sees whom; no layer is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...mudi_core.attention.call import Call
from ...mudi_core.attention.joint import NEVER, Tokens, regional_mask
from ...mudi_core.attention.prompts import RegionalPrompts
from ...mudi_core.types import MudiError
from .timed import Timed, Worn

_OTHER = ("LongCatImage",)
"""Kinds of MODELs with FLUX's network in which the prompt's length moves the picture."""


class OtherTokens(MudiError):
    """Tokens that are not a prompt's and a picture's."""


def sees_jointly(model: Any) -> bool:
    """Return whether a MODEL's network attends to text and picture at once, by a mask that it is given."""
    networks = (comfy.ldm.flux.model.Flux, comfy.ldm.chroma.model.Chroma)
    return isinstance(model.model.diffusion_model, networks) and type(model.model).__name__ not in _OTHER


def with_prompts(model: Any, part: RegionalPrompts, start: float = 0.0, end: float = 1.0) -> Any:
    """Return a clone of a MODEL for which `sees_jointly`, with prompts of regions from one share of the sampling to
    another, 0..1."""
    return _Worn.on(model, Timed(part, start, end))


@dataclass(frozen=True, eq=False)
class _Worn(Worn[RegionalPrompts]):
    """All regional prompts of a MODEL."""

    KEY = "mudi_regions"

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, concat: Any, context: Any, control: Any, options: dict[str, Any],
        **named: Any,
    ) -> Any:  # fmt: skip
        model, now = executor.class_obj, float(sigma.max())
        parts = [one.part for one in self.parts if not one.part.silent and one.is_on(model.model_sampling, now)]
        call = Call.of(options["cond_or_uncond"], sigma)
        if parts and call.positive:
            network, size = model.diffusion_model, (x.shape[-2], x.shape[-1])
            view = _View(network, size, _references(network, named.get("ref_latents")), call, context.shape[1])
            mask = _bias(named.get("attention_mask"))
            dtype = model.manual_cast_dtype or model.get_dtype()
            for part in parts:
                part.check(size)
                context, mask = view.with_part(part, context, mask, dtype)
            options, named = view.options(options), {**named, "attention_mask": mask}
        return executor(x, sigma, concat, context, control, options, **named)


class _View:
    """What one call of the network sees."""

    def __init__(self, network: Any, size: tuple[int, int], references: int, call: Call, prompt: int) -> None:
        """``size``: the latent's height and width. ``prompt``: tokens of the picture's own prompt."""
        self.network, self.call, self.prompt, self.references = network, call, prompt, references
        self.size = _positions(network, size)
        self.texts: list[slice] = []
        """Where the regions' prompts stand."""

    def with_part(
        self, part: RegionalPrompts, context: Tensor, mask: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return a context ``[b, t, c]`` and its mask with the part's prompts behind. Raise `OtherText`,
        `OtherTokens`."""
        texts = [self._padded(text) for text in part.texts(context)]
        lengths = tuple(text.shape[1] for text in texts)
        tokens = Tokens(context.shape[1], lengths, self.size[0] * self.size[1], self.references)
        had = tokens.count - sum(lengths)
        if mask is not None and mask.shape[-2:] != (had, had):
            raise OtherTokens(
                f"The CONDITIONING has an attention mask of {mask.shape[-2]}x{mask.shape[-1]} for {had} tokens of "
                "prompt and picture. Leave out the node that made it."
            )
        like = self.call.sigma.float()
        weights = part.regions.at(self.size, self.call, like) * self.call.is_positive(like)
        if not self.call.others and len(part.regions.masks) == 1:
            weights = weights[:1]  # all rows are alike
        self.texts += tokens.places
        return torch.cat([context, *texts], 1), regional_mask(weights, part.strength, tokens, dtype, mask)

    def _padded(self, text: Tensor) -> Tensor:
        """Return a prompt as long as the picture's own, in front, where the tokens of a prompt are numbered: ComfyUI
        does so to that one."""
        missing = self.prompt - text.shape[1]
        return pad(text, (0, 0, missing, 0)) if self._numbered and missing > 0 else text

    @property
    def _numbered(self) -> Sequence[int]:
        """Which parts of a position number the tokens of a prompt."""
        return getattr(self.network.params, "txt_ids_dims", None) or ()

    def options(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """Return ``transformer_options`` with a patch that is last to see the tokens."""
        patches = theirs.get("patches", {})
        ours = [*patches.get("post_input", ()), self._last()]
        return {**theirs, "patches": {**patches, "post_input": ours}}

    def _last(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        def patch(given: dict[str, Any]) -> dict[str, Any]:
            """Number each region's tokens as those of a prompt alone. Raise `OtherTokens` where some were added."""
            count = given["txt"].shape[1], given["img"].shape[1]
            wanted = self.texts[-1].stop, self.size[0] * self.size[1] + self.references
            if count != wanted:
                raise OtherTokens(
                    f"Another node has changed the tokens of this model ({count[0]} of text and {count[1]} of pictures "
                    f"for {wanted[0]} and {wanted[1]}), as USO does. Leave it out: regions need their places."
                )
            ids = given["txt_ids"].clone()
            for text in self.texts:
                for part in self._numbered:
                    ids[:, text, part] = torch.arange(text.stop - text.start).to(ids)
            return {**given, "txt_ids": ids}

        return patch


def _positions(network: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of a network's tokens for a latent of a height and width."""
    height, width = (-(-side // network.patch_size) for side in size)
    return height, width


def _references(network: Any, latents: Sequence[Tensor] | None) -> int:
    """Return how many tokens the pictures are that a CONDITIONING refers to; Chroma looks at none."""
    if latents is None or not isinstance(network, comfy.ldm.flux.model.Flux):
        return 0
    sizes = (_positions(network, cast("tuple[int, int]", tuple(one.shape[-2:]))) for one in latents)
    return sum(height * width for height, width in sizes)


def _bias(mask: Tensor | None) -> Tensor | None:
    """Return a mask of a CONDITIONING as what is added to scores, ``[b, q, k]``."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, NEVER)
    return mask if mask.ndim == 3 else mask.reshape(-1, *mask.shape[-2:])
