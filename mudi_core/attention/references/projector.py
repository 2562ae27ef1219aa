"""From what an image encoder sees to a few tokens that a cross-attention can look at.

The names of the tensors are those of the official modules, so that their files load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

FREQUENCIES = 8
"""Of a box's Fourier features."""
BOX = 4 * 2 * FREQUENCIES
"""Numbers that tell a box."""
HEAD = 64
"""Channels of a head of every resampler, which no tensor tells."""


def told_boxes(boxes: Tensor) -> Tensor:
    """Return the Fourier features ``[n, BOX]`` of boxes ``[n, 4]``, xyxy in 0..1.

    By frequency (100^(i/8)), then sine and cosine, then coordinate, as MS-Diffusion has them.
    """
    frequencies = 100 ** (torch.arange(FREQUENCIES, device=boxes.device) / FREQUENCIES)
    angles = frequencies[None, :, None] * boxes.float()[:, None, :]
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1).to(boxes.dtype)


class ImageProjector(nn.Module):
    """IP-Adapter's: one vector of a picture becomes tokens by one linear layer."""

    def __init__(self, seen: int, tokens: int, context: int) -> None:
        """``seen``: numbers of a picture's vector; ``context``: channels of a token."""
        super().__init__()
        self.proj = nn.Linear(seen, tokens * context)
        self.norm = nn.LayerNorm(context)
        self.tokens = tokens

    def forward(self, seen: Tensor) -> Tensor:
        """Return tokens ``[n, tokens, context]`` of vectors ``[n, seen]``."""
        found: Tensor = self.norm(self.proj(seen).unflatten(-1, (self.tokens, -1)))
        return found


class _Perceive(nn.Module):
    """Latents look at what is seen, and at one another."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.heads = inside // HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inside, bias=False)
        self.to_kv = nn.Linear(width, 2 * inside, bias=False)
        self.to_out = nn.Linear(inside, width, bias=False)

    def forward(self, seen: Tensor, latents: Tensor) -> Tensor:
        seen, latents = self.norm1(seen), self.norm2(latents)
        k, v = self.to_kv(torch.cat([seen, latents], 1)).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(latents), k, v))
        found: Tensor = self.to_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


@dataclass(frozen=True)
class Sizes:
    """The sizes of a resampler."""

    seen: int
    """Channels of what the image encoder sees."""
    context: int
    """Channels of a token."""
    tokens: int
    """Tokens of a reference."""
    width: int
    """Channels inside."""
    inside: int
    """Channels of all heads together."""
    depth: int
    """Layers."""
    phrase: int = 0
    """Channels of a phrase's vector in MS-Diffusion; 0 is IP-Adapter plus."""


class Resampler(nn.Module):
    """The tokens of a picture ask all that an image encoder sees: IP-Adapter plus, and MS-Diffusion.

    In MS-Diffusion the questions are made of the subject's phrase and box (grounding), or learned where it has none.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        questions = nn.Parameter(torch.randn(1, sizes.tokens, width) / width**0.5)
        if sizes.phrase:
            told = sizes.phrase + BOX
            self.grounding_latents = questions
            self.latent_proj = nn.Sequential(
                nn.Linear(told, 2 * told), nn.GELU(), nn.Linear(2 * told, sizes.tokens * width)
            )
            self.latent_norm = nn.LayerNorm(width)
            self.attention_norm = nn.LayerNorm(width)
        else:
            self.latents = questions
        self.proj_in = nn.Linear(sizes.seen, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    _Perceive(width, sizes.inside),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, 4 * width, bias=False),
                        nn.GELU(),
                        nn.Linear(4 * width, width, bias=False),
                    ),
                ]
            )
            for _ in range(sizes.depth)
        )
        self.proj_out = nn.Linear(width, sizes.context)
        self.norm_out = nn.LayerNorm(sizes.context)

    def forward(self, seen: Tensor, phrases: Tensor | None = None, boxes: Tensor | None = None) -> Tensor:
        """Return tokens ``[n, tokens, context]`` of what is seen of pictures, ``[n, patches, seen]``.

        ``phrases``: ``[n, phrase]`` and ``boxes`` ``[n, 4]``, xyxy in 0..1, both for MS-Diffusion; a row of NaN boxes
        has no grounding, nor has any where they are None.
        """
        latents = self._questions(len(seen), phrases, boxes)
        seen = self.proj_in(seen)
        for layer in self.layers:
            look, think = layer.children()
            latents = look(seen, latents) + latents
            latents = think(latents) + latents
        if self.sizes.phrase:
            latents = self.attention_norm(latents)
        found: Tensor = self.norm_out(self.proj_out(latents))
        return found

    def _questions(self, count: int, phrases: Tensor | None, boxes: Tensor | None) -> Tensor:
        learned = (self.grounding_latents if self.sizes.phrase else self.latents).expand(count, -1, -1)
        if not self.sizes.phrase or phrases is None or boxes is None:
            return learned
        told = torch.cat([phrases, told_boxes(boxes.nan_to_num()).to(phrases)], -1)
        grounded = self.latent_norm(self.latent_proj(told).unflatten(-1, (self.sizes.tokens, -1)))
        return torch.where(boxes.isnan().any(-1)[:, None, None], learned, grounded)
