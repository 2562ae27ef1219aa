"""The base model paints over a picture: noise is laid on it and taken off again (SDEdit, arXiv 2108.01073), so that the
model's hand is in it while it still shows what it showed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mudi_core.bases import embedded as family

from .train.loop import half_is_fast
from .train.text import tokenized
from .train.unet import encode_text

STEPS = 7


class Brush:
    """The embedded U-Net, its VAE and its text encoders."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.unet, self.vae = family.load_unet().to(device).eval(), family.load_vae().to(device).eval()
        self.encoders = [encoder.to(device) for encoder in family.load_text_encoders()]
        self.abar = family.scheduler().alphas_cumprod.to(device)

    @torch.no_grad()
    def over(
        self, z: Tensor, lines: list[list[int]], guidance: float, noise: float, generator: torch.Generator
    ) -> Tensor:
        """Paint over latents ``[b, 4, h, w]`` by captions as token ids, from this timestep of 1000 on; DDIM."""
        context, pooled = encode_text(self.encoders, [tokenized(())[0]] * len(z) + lines, self.device)
        time_ids = torch.tensor([[family.SIZE, family.SIZE, 0, 0, family.SIZE, family.SIZE]], device=self.device)
        added = {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}
        times = [*np.linspace(noise, 0, STEPS + 1).round().astype(int).tolist()]
        eps = torch.randn(z.shape, generator=generator).to(self.device)
        z = self.abar[times[0]].sqrt() * z.to(self.device) + (1 - self.abar[times[0]]).sqrt() * eps
        for now, then in zip(times, times[1:], strict=False):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half_is_fast(self.device)):
                both = self.unet(torch.cat([z, z]), now, context, added_cond_kwargs=added).sample.float()
            plain, told = both.chunk(2)
            eps = plain + guidance * (told - plain)
            clean = (z - (1 - self.abar[now]).sqrt() * eps) / self.abar[now].sqrt()
            signal = self.abar[then] if then else torch.ones((), device=self.device)
            z = signal.sqrt() * clean + (1 - signal).sqrt() * eps
        return z

    @torch.no_grad()
    def encoded(self, images: Tensor) -> Tensor:
        """Latents of pictures ``[b, h, w, 3]``, 0..1."""
        z: Tensor = self.vae.encode(images.permute(0, 3, 1, 2).to(self.device) * 2 - 1).latent_dist.mode()
        return z * family.LATENT_SCALE

    @torch.no_grad()
    def decoded(self, z: Tensor) -> Tensor:
        """Pictures ``[b, h, w, 3]``, 0..1, of latents."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half_is_fast(self.device)):
            images: Tensor = self.vae.decode(z / family.LATENT_SCALE).sample.float()
        return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()
