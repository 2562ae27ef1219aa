"""A diffusers FLUX transformer on SDXL-like latents as a `promise.Denoiser`, and its sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .network import DiffusersNetwork
from .promise import Conditions, NoiseLevel


def packed(z: Tensor) -> Tensor:
    """Turn latents ``[b, c, h, w]`` into FLUX's tokens of 2 x 2 cells, ``[b, h w / 4, 4 c]``."""
    b, c, h, w = z.shape
    return z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Turn tokens ``[b, h w / 4, 4 c]`` back into latents ``[b, c, h, w]``."""
    b, _, channels = tokens.shape
    z = tokens.reshape(b, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(b, channels // 4, height, width)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """Return where each token of a latent of this size stands, as the transformer reads it: ``[h w / 4, 3]``."""
    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 1] = torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(width // 2, device=device)
    return ids.reshape(-1, 3)


class FluxDenoiser(DiffusersNetwork):
    """A FLUX transformer, taught the flow ``x = (1 - sigma) z0 + sigma eps`` (Lipman et al. 2023)."""

    def __init__(self, transformer: Any, latent_scale: float) -> None:
        super().__init__(transformer)
        self.latent_scale = latent_scale

    @property
    def is_flow(self) -> bool:
        """Always."""
        return True

    def draw_level(self, generator: torch.Generator) -> Tensor:
        """Draw one sigma from a logistic normal, float ``[1]`` (SD 3, equation 19)."""
        return torch.randn(1, generator=generator).sigmoid()

    def level(self, drawn: Tensor) -> NoiseLevel:
        """Return the level of sigmas: the network should predict ``eps - z0``."""
        sigma = drawn.to(self.device)
        return NoiseLevel(sigma, 1 - sigma, sigma, -torch.ones_like(sigma), torch.ones_like(sigma), sigma)

    def latents(self, encoded: Tensor) -> Tensor:
        """Scale the VAE's latents."""
        return encoded * self.latent_scale

    def predict(self, x: Tensor, level: NoiseLevel, conditions: Sequence[Conditions], sizes: Tensor) -> Tensor:
        """Predict the velocity of noisy latents with ``context [n, d]`` and ``pooled [p]``; sizes are not read."""
        context, pooled = (
            torch.stack([one[name] for one in conditions]).to(self.device) for name in ("context", "pooled")
        )
        height, width = x.shape[-2:]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            tokens: Tensor = self.network(
                hidden_states=packed(x),
                encoder_hidden_states=context,
                pooled_projections=pooled,
                timestep=level.at,
                img_ids=places(height, width, self.device),
                txt_ids=torch.zeros(context.shape[1], 3, device=self.device),
            ).sample
        return unpacked(tokens, height, width)

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of both kinds."""
        return [*self.network.transformer_blocks, *self.network.single_transformer_blocks]
