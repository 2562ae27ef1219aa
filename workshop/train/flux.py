"""Train the mini FLUX on the U-Net's latents and captions, by flow matching.

After 3,000 steps (72,000 samples, about an hour of one core with AMX) `python -m workshop.report --flux 40` finds
42.5 % of the captions of two followed; its figures are still rough. It needs about as many samples as the U-Net had,
300,000.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mudi_core.bases import embedded as family
from mudi_core.bases.flux import packed, places

from .. import judge
from .data import VALUES, crowded
from .loop import Recipe, fit
from .unet import ASKED, BATCH, CAPTION_DROP, LENGTH, encode_text, encoded, misplaced, tell, unknown

RECIPE = Recipe(steps=8_000, learning_rate=1.0e-3, warmup=200, ema=0.998, matrix_rate=2.0e-3)
UNFINISHED = judge.WEIGHTS
"""Where its weights are kept until they are good enough for the family: in no published pack."""
SHOWING = 0.05
"""Weight of the loss that asks every place what stands there (after REPA, arXiv 2410.06940: a transformer learns
several times faster when its middle must know what a picture shows)."""
ASKED_AT = (2, 4)
"""The single blocks whose features are asked."""
WATCHED = (1, 3)
"""The single blocks whose attention is tied to places."""
PLACING = 0.1
"""Weight of that."""


def turned(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of channels of ``[b, n, heads, d]`` by place (RoPE)."""
    cos, sin = (part[:, None].to(x.dtype) for part in rotation)
    pairs = x.view(*x.shape[:-1], -1, 2)
    across = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)
    return x * cos + across * sin


class Watch:
    """FLUX's attention that keeps what the picture's tokens look at, ``[b, tokens, LENGTH]``, the mean over heads."""

    def __init__(self, seen: list[Tensor] | None = None) -> None:
        self.seen = seen

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        q, k, v = (part(hidden_states).unflatten(-1, (attn.heads, -1)) for part in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if encoder_hidden_states is not None:
            parts = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            tq, tk, tv = (part(encoder_hidden_states).unflatten(-1, (attn.heads, -1)) for part in parts)
            q, k = torch.cat([attn.norm_added_q(tq), q], 1), torch.cat([attn.norm_added_k(tk), k], 1)
            v = torch.cat([tv, v], 1)
        assert image_rotary_emb is not None
        q, k = (turned(x, image_rotary_emb).transpose(1, 2).to(v.dtype) for x in (q, k))
        share = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1, dtype=v.dtype)
        if self.seen is not None:
            self.seen.append(share[:, :, LENGTH:, :LENGTH].mean(1).float())
        x = (share @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return x
        text, picture = x[:, :LENGTH], x[:, LENGTH:]
        return attn.to_out[1](attn.to_out[0](picture)), attn.to_add_out(text)


class Painter(nn.Module):
    """The transformer and the linear heads that ask its features who stands where; the heads are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.flux = family.build_flux()
        answers = sum(len(VALUES[name]) for name in ASKED)
        for name, layer in self.flux.named_modules():
            if isinstance(layer, nn.Linear) and (".norm" in name or name == "proj_out"):
                nn.init.zeros_(layer.weight)  # every block begins as the identity (DiT's adaLN-Zero, arXiv 2212.09748)
                nn.init.zeros_(layer.bias)
        self.heads = nn.ModuleList(nn.Conv2d(self.flux.inner_dim, answers, 1) for _ in ASKED_AT)

    def watched(self, side: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return lists that every forward fills: what the picture's tokens look at, and the features that are asked.

        ``side``: of the latents. The blocks are compiled: on a CPU most of their time would be small operations.
        """
        seen: list[Tensor] = []
        features: list[Tensor] = []

        def keep(_block: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
            features.append(output[1].mT.reshape(len(output[1]), -1, side // 2, side // 2))

        for block in [*self.flux.transformer_blocks, *self.flux.single_transformer_blocks]:
            block.attn.set_processor(Watch())
            block.compile(dynamic=False)
        for number in WATCHED:
            self.flux.single_transformer_blocks[number].attn.set_processor(Watch(seen))
        for number in ASKED_AT:
            self.flux.single_transformer_blocks[number].register_forward_hook(keep)
        return seen, features


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file."""
    torch.manual_seed(recipe.seed)
    latents = encoded(work, device)
    encoders = [encoder.to(device) for encoder in family.load_text_encoders()]
    painter = Painter()
    if recipe.further:
        family.fill(painter.flux, "flux", UNFINISHED)
    painter.to(device)
    side = latents.shape[-1]
    image_ids, text_ids = places(side, side, device), torch.zeros(LENGTH, 3, device=device)
    seen, features = painter.watched(side)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROP
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        batch = tell([None if d else crowded(i) for i, d in zip(index.tolist(), dropped.tolist(), strict=True)], rng)
        z0 = latents[index].float().to(device)
        eps = torch.randn(z0.shape, generator=generator).to(device)
        sigma = torch.randn(BATCH, generator=generator).sigmoid().to(device)
        context, pooled = encode_text(encoders, batch.lines, device)
        at = sigma.view(-1, 1, 1, 1)
        features.clear()
        seen.clear()
        predicted = painter.flux(
            hidden_states=packed((1 - at) * z0 + at * eps),
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=image_ids,
            txt_ids=text_ids,
        ).sample.float()
        wrong = (predicted - packed(eps - z0)).square().mean((1, 2))
        place, show = misplaced(seen, batch, device), unknown(features, painter.heads, batch, device)
        value: Tensor = (wrong + (1 - sigma) * (PLACING * place + SHOWING * show)).mean()
        return value

    average: nn.Module = fit(painter, loss, recipe, work / "flux.pt")
    assert isinstance(average, Painter)
    return {"flux": average.flux.state_dict()}
