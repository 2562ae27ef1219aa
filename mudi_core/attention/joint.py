"""Prompts of their own for regions, in networks that attend to text and picture at once (FLUX, Chroma).

The method is that of "Training-free Regional Prompting for Diffusion Transformers" (Chen et al., arXiv 2411.02395): the
regions' prompts stand behind the picture's own, and a mask says who sees whom. Here everything is one such mask, of
numbers that are added to an attention's scores, and ``1 - strength`` stands for the ratio by which the paper mixes the
base prompt's answer with the regions':

========================  ======================  =================  ===========================
who (row) sees whom       the picture's prompt    region i's prompt  picture
========================  ======================  =================  ===========================
the picture's prompt      0                       never              0
region i's prompt         never                   0, others' never   log of the region's weight
a position                log of what is left     log of its share   0
========================  ======================  =================  ===========================

A share is ``strength * weight``; the shares of overlapping regions are at most ``strength`` together, and what is left
to the picture's prompt is 1 minus them. So a region everywhere at strength 1 is its prompt, and one with the picture's
own prompt is the plain network at every strength. In the paper positions of different regions do not see each other;
here they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

NEVER = -1e4
"""As good as minus infinity: its exponential is 0 in every type, and attention that goes through the tokens in parts
makes no NaN of a part that is hidden as a whole."""

_ALIGNED = 16
"""Rows of the mask begin at multiples of it: else PyTorch's attention on a GPU copies the mask for every head."""


@dataclass(frozen=True)
class Tokens:
    """How many tokens of each kind an attention has, in its order."""

    prompt: int
    """Of the picture's own prompt."""
    regions: tuple[int, ...]
    """Of each region's prompt."""
    picture: int
    """Positions of the picture."""
    references: int = 0
    """Of other pictures that the network looks at (FLUX Kontext)."""

    @property
    def places(self) -> list[slice]:
        """Where each region's prompt stands."""
        ends = accumulate(self.regions, initial=self.prompt)
        return [slice(*pair) for pair in pairwise(ends)]

    @property
    def picture_from(self) -> int:
        """Where the picture begins."""
        return self.prompt + sum(self.regions)

    @property
    def count(self) -> int:
        """How many they all are."""
        return self.picture_from + self.picture + self.references


def regional_mask(
    weights: Tensor, strength: float, tokens: Tokens, dtype: torch.dtype = torch.float32, before: Tensor | None = None
) -> Tensor:
    """Return what is added to the scores of a joint attention, ``[b, count, count]``.

    ``weights``: float ``[b, p, n]``, 0..1, of the regions at each position; in a row where all are 0 nothing sees their
    prompts. ``before``: a mask ``[b or 1, ., .]`` for the same tokens without the regions' prompts, which is kept.
    """
    rows = len(weights) if before is None else max(len(weights), len(before))
    wide = -(-tokens.count // _ALIGNED) * _ALIGNED
    mask = torch.zeros(rows, tokens.count, wide, dtype=dtype, device=weights.device)[..., : tokens.count]
    first, picture = slice(tokens.prompt), slice(tokens.picture_from, None)
    mask[:, :, tokens.prompt : tokens.picture_from] = NEVER
    mask[:, tokens.prompt : tokens.picture_from] = NEVER
    inside = strength * weights / weights.sum(-1, keepdim=True).clamp(min=1)
    # References belong to a region by its share of the picture, and every prompt sees them.
    more = inside.mean(1, keepdim=True).expand(-1, tokens.references, -1)
    inside = torch.cat([inside, more], 1)
    seen = torch.cat([weights, torch.ones_like(more)], 1)
    mask[:, picture, first] = _log(1 - inside.sum(-1))[..., None].to(dtype)
    for index, place in enumerate(tokens.places):
        mask[:, place, place] = 0
        mask[:, picture, place] = _log(inside[..., index])[..., None].to(dtype)
        mask[:, place, picture] = _log(seen[..., index])[:, None].to(dtype)
    if before is not None:
        size = tokens.prompt
        for theirs, ours in ((slice(size), first), (slice(size, None), picture)):
            mask[:, ours, first] += before[:, theirs, :size].to(mask)
            mask[:, ours, picture] += before[:, theirs, size:].to(mask)
    return mask


def _log(shares: Tensor) -> Tensor:
    """Return the logarithm of shares, 0..1 but for rounding."""
    return shares.clamp(0, 1).log().clamp(min=NEVER)
