"""Train the mini U-Net together with its two text encoders, on latents of the toy world and its captions."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import family
from ..world import NAMED, caption
from .data import pool, scene, to_tensor
from .loop import Recipe, fit

RECIPE = Recipe(steps=5000, learning_rate=1.0e-3, warmup=200, ema=0.998)
BATCH = 32
SCENES = 24_000
CAPTION_DROP = 0.1
"""Share of empty captions, for classifier-free guidance."""
MIN_SNR_GAMMA = 5.0


def encoded(work: Path, device: torch.device) -> Tensor:
    """The latents of every scene of the pool, fp16 ``[n, 4, 16, 16]``, encoded once and kept in a file."""
    path = work / f"latents-{SCENES}.npy"
    if not path.is_file():
        pictures = pool(work, SCENES, family.SIZE)
        vae = family.load_vae().to(device)
        rows = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            for i in range(0, len(pictures), 50):
                z = vae.encode(to_tensor(pictures[i : i + 50]).to(device)).latent_dist.mode()
                rows.append((z.float() * family.LATENT_SCALE).half().cpu().numpy())
        np.save(path, np.concatenate(rows))
    return torch.from_numpy(np.load(path))


def time_ids(generator: torch.Generator) -> Tensor:
    """SDXL's size and crop conditioning ``[BATCH, 6]``: half as generated, half of any size and crop, so that photos of
    other sizes are nothing new to the model."""
    plain = torch.tensor([family.SIZE, family.SIZE, 0, 0, family.SIZE, family.SIZE]).repeat(BATCH, 1)
    other = plain.clone()
    other[:, :2] = torch.randint(family.SIZE, 1025, (BATCH, 2), generator=generator)
    other[:, 2:4] = torch.randint(0, family.SIZE, (BATCH, 2), generator=generator)
    return torch.where(torch.rand(BATCH, 1, generator=generator) < 0.5, plain, other)


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of the U-Net and both text encoders under the names of their files."""
    torch.manual_seed(recipe.seed)
    latents = encoded(work, device)
    names = {character: token for token, character in NAMED.items()}
    tokenizers = family.tokenizer(), family.tokenizer("!")
    text, text_2 = family.build_text_encoders()
    model = nn.ModuleDict({"unet": family.build_unet(), "text_encoder": text, "text_encoder_2": text_2}).to(device)
    abar = family.scheduler().alphas_cumprod.to(device)

    def encode_text(captions: list[str]) -> tuple[Tensor, Tensor]:
        ids = [
            t(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
            for t in tokenizers
        ]
        first = model["text_encoder"](ids[0], output_hidden_states=True)
        second = model["text_encoder_2"](ids[1], output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROP
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        captions = [
            "" if drop else caption(scene(i), rng, names)
            for i, drop in zip(index.tolist(), dropped.tolist(), strict=True)
        ]
        z0 = latents[index].float().to(device)
        eps = torch.randn(z0.shape, generator=generator).to(device)
        t = torch.randint(1000, (BATCH,), generator=generator).to(device)
        signal = abar[t][:, None, None, None]
        context, pooled = encode_text(captions)
        added = {"text_embeds": pooled, "time_ids": time_ids(generator).to(device)}
        noisy = signal.sqrt() * z0 + (1 - signal).sqrt() * eps
        predicted: Tensor = model["unet"](noisy, t, context, added_cond_kwargs=added).sample.float()
        snr = abar[t] / (1 - abar[t])
        weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
        value: Tensor = ((predicted - eps).square().mean((1, 2, 3)) * weight).mean()
        return value

    average = fit(model, loss, recipe, work / "unet.pt")
    assert isinstance(average, nn.ModuleDict)
    return {name: family.without_word_vectors(part.state_dict()) for name, part in average.items()}
