"""Train the mini VAE's decoder further while its latents stay the same: a U-Net trained on them stays valid."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mudi_core.bases import embedded as family

from .data import crowded, pool, to_tensor
from .loop import Recipe, fit
from .unet import SCENES, encoded
from .vae import NOISE, reconstruction_loss

RECIPE = Recipe(steps=2000, learning_rate=1.0e-3, cooldown=0.7, weight_decay=0.001)
BATCH = 8


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the whole VAE's state dict under the name of its file."""
    torch.manual_seed(recipe.seed)
    pictures, latents = pool(work, SCENES, family.SIZE, crowded), encoded(work, device)
    vae = family.load_vae().to(device)
    model = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder}).requires_grad_(True)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=generator).sort().values
        z = latents[index].float()
        z = (z + NOISE * torch.randn(z.shape, generator=generator)).to(device) / family.LATENT_SCALE
        y = model["decoder"](model["post_quant_conv"](z)).float()
        return reconstruction_loss(y, to_tensor(pictures[index.numpy()]).to(device))

    average = fit(model, loss, recipe, work / "decoder.pt")
    vae.load_state_dict({**vae.state_dict(), **average.state_dict()})
    return {"vae": vae.state_dict()}
