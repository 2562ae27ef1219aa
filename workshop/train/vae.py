"""Train the mini VAE: reconstruct the toy world's pictures from an eighth of their side and four channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, l1_loss, mse_loss

from mudi_core.bases import embedded as family

from .data import pool, to_tensor
from .loop import Recipe, fit

RECIPE = Recipe(steps=4000, learning_rate=1.2e-3, cooldown=0.5, weight_decay=0.001)
BATCH = 4
"""Whole pictures in a step; every other step sees four times as many crops of half the side instead."""
NOISE = 0.08
"""Noise on latents of standard deviation 1: the decoder must bear a sampler's small errors."""
COLORS = 0.5
"""Weight of the loss that keeps three channels near the patch's mean colour, as SDXL's latents are nearly linear in it.
Without it pale colours of the same brightness share a code, and pink characters come back peach."""
SCENES = 12_000


def opponent(x: Tensor) -> Tensor:
    """RGB ``[b, 3, h, w]``, -1..1, as lightness, red against green and yellow against blue, each of mean 0 and standard
    deviation 1 over the world's pictures."""
    red, green, blue = x.unbind(1)
    lightness, warm, yellow = (red + green + blue) / 3, red - green, (red + green) / 2 - blue
    return torch.stack([(lightness - 0.34) / 0.44, (warm + 0.04) / 0.39, (yellow + 0.03) / 0.49], 1)


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L2 for the PSNR, again on means of 4 and 16 px so that colours come first, L1 of the gradients for edges; in
    -1..1."""
    colors = sum(weight * mse_loss(avg_pool2d(y, side), avg_pool2d(x, side)) for side, weight in ((4, 8), (16, 24)))
    gradients = sum(l1_loss(a, b) for a, b in zip(_edges(y), _edges(x), strict=True))
    return 4 * mse_loss(y, x) + colors + 0.25 * gradients


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file, latents scaled to a standard deviation of 1 / 0.13025."""
    torch.manual_seed(recipe.seed)
    pictures = pool(work, SCENES, family.SIZE)
    model = family.build_vae().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        crop = int(torch.randint(2, (1,), generator=generator))
        side, count = (family.SIZE // 2, 4 * BATCH) if crop else (family.SIZE, BATCH)
        index = torch.randint(len(pictures), (count,), generator=generator).sort().values.numpy()
        x0, y0 = torch.randint(0, family.SIZE - side + 1, (2,), generator=generator).tolist()
        x = to_tensor(pictures[index, y0 : y0 + side, x0 : x0 + side]).to(device)
        z: Tensor = model.encode(x).latent_dist.mean.float()
        noise = torch.randn(z.shape, generator=generator).to(device)
        y: Tensor = model.decode(z + NOISE * noise).sample.float()
        colors = mse_loss(z[:, :3], opponent(avg_pool2d(x, 8)))
        # Keeps every channel near a standard deviation of 1 without a posterior's variance to learn.
        moments = z.mean((0, 2, 3)).square().sum() + (z.std((0, 2, 3)) - 1).square().sum()
        return reconstruction_loss(y, x) + COLORS * colors + 0.02 * moments

    average: Any = fit(model, loss, recipe, work / "vae.pt")
    with torch.inference_mode():
        x = [to_tensor(pictures[i : i + 16]).to(device) for i in range(0, 512, 16)]
        latents = torch.cat([average.encode(part).latent_dist.mean for part in x]).clone()
    fold_scale(average, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    return {"vae": average.state_dict()}


def fold_scale(model: Any, mean: Tensor, std: Tensor) -> None:
    """Give the latents mean 0 and standard deviation 1 / 0.13025, within the last and first convolutions."""
    factor = 1 / (family.LATENT_SCALE * std)
    with torch.no_grad():
        after, before = model.quant_conv, model.post_quant_conv
        after.weight[:4] *= factor[:, None, None, None]
        after.bias[:4] = (after.bias[:4] - mean) * factor
        # The variance is not used; a small constant keeps `latent_dist.sample` near the mode.
        after.weight[4:] = 0
        after.bias[4:] = -6.0
        before.bias += (before.weight[:, :, 0, 0] * mean).sum(1)
        before.weight /= factor[None, :, None, None]
