"""A diffusers U-Net of SD or SDXL as a `promise.Denoiser`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..types import MudiError
from .network import DiffusersNetwork
from .promise import Conditions, NoiseLevel


class BadSchedule(MudiError):
    """A noise schedule that training cannot use."""


class UNetDenoiser(DiffusersNetwork):
    """A U-Net, its noise schedule and the scale of its latents."""

    def __init__(self, unet: Any, alphas_cumprod: Tensor, prediction_type: str, latent_scale: float) -> None:
        """Make one.

        ``alphas_cumprod``: float ``[T]``, the share of signal in the variance of a noisy latent, from 1 to 0.

        ``prediction_type``: "epsilon" or "v_prediction". ``latent_scale``: the factor of the VAE's latents (0.13025 for
        SDXL). Raise `BadSchedule` for another prediction type.
        """
        if prediction_type not in ("epsilon", "v_prediction"):
            raise BadSchedule(
                f"The model predicts '{prediction_type}'; training knows 'epsilon' and 'v_prediction'. Choose a "
                "checkpoint of one of these kinds."
            )
        super().__init__(unet)
        self.latent_scale = latent_scale
        self._abar, self._predicts_noise = alphas_cumprod.float(), prediction_type == "epsilon"

    @property
    def is_flow(self) -> bool:
        return False

    def draw_level(self, generator: torch.Generator) -> Tensor:
        """Draw one timestep of the schedule, long ``[1]``."""
        return torch.randint(0, len(self._abar), (1,), generator=generator)

    def level(self, drawn: Tensor) -> NoiseLevel:
        """Return the level of timesteps: ``z_t = sqrt(abar) z0 + sqrt(1-abar) eps`` (DDPM, equation 4).

        Velocity is ``v = sqrt(abar) eps - sqrt(1-abar) z0``.
        """
        abar = self._abar[drawn.cpu()].to(self.device)
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        if self._predicts_noise:
            none, one = torch.zeros_like(abar), torch.ones_like(abar)
            return NoiseLevel(drawn.to(self.device), signal, noise, none, one, noise / signal.clamp(min=1e-4))
        return NoiseLevel(drawn.to(self.device), signal, noise, -noise, signal, noise)

    def latents(self, encoded: Tensor) -> Tensor:
        return encoded * self.latent_scale

    def predict(self, x: Tensor, level: NoiseLevel, conditions: Sequence[Conditions], sizes: Tensor) -> Tensor:
        """Predict from noisy latents with the conditions of `Checkpoint.condition`.

        These are ``context [77, d]`` and ``pooled [p]``. SD ignores the sizes.
        """
        context, pooled = (
            torch.stack([one[name] for one in conditions]).to(self.device) for name in ("context", "pooled")
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            prediction: Tensor = self.network(
                sample=x,
                timestep=level.at,
                encoder_hidden_states=context,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes.to(self.device)},
            ).sample
        return prediction

    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks, and the blocks of each transformer."""
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D

        kinds = (ResnetBlock2D, BasicTransformerBlock)
        return [module for module in self.network.modules() if isinstance(module, kinds)]
