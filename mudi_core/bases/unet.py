"""A diffusers U-Net of SD or SDXL as a `promise.Denoiser`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..types import MudiError
from .promise import Conditions, NoiseLevel
from .quantize import BaseWeights, stored_as

KOHYA = "lora_unet_"
"""The prefix of kohya's name of a network layer, in every family."""


class BadSchedule(MudiError):
    """A noise schedule that training cannot use."""


class BadPrecision(MudiError):
    """Weights of a type that the chosen precision cannot train."""


class UNetDenoiser:
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
        self.network, self.latent_scale = unet, latent_scale
        self._abar, self._predicts_noise = alphas_cumprod.float(), prediction_type == "epsilon"
        self._bf16 = False

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def stored_as(self) -> BaseWeights:
        return stored_as(self.network)

    @contextmanager
    def ready(self, bf16: bool) -> Iterator[None]:
        """Inside the block the U-Net is frozen and in training mode. Raise `BadPrecision`."""
        self._check_precision(bf16)
        was_training, self._bf16 = self.network.training, bf16
        trained = [(parameter, parameter.requires_grad) for parameter in self.network.parameters()]
        with torch.inference_mode(False), torch.enable_grad():
            self.network.train().requires_grad_(False)
            try:
                yield
            finally:
                self.network.train(was_training)
                for parameter, was_trained in trained:
                    parameter.requires_grad_(was_trained)
                self._bf16 = False

    def _check_precision(self, bf16: bool) -> None:
        dtypes = {parameter.dtype for parameter in self.network.parameters() if parameter.is_floating_point()}
        if not dtypes <= ({torch.float32, torch.bfloat16} if bf16 else {torch.float32}):
            found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise BadPrecision(
                f"The U-Net's weights are {found}, which precision '{'bf16' if bf16 else 'fp32'}' cannot train. Load "
                "it in float32, or in bfloat16 with precision 'bf16'."
            )

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

    def layers(self) -> dict[str, nn.Module]:
        return {name: layer for name, layer in self.network.named_modules() if isinstance(layer, nn.Linear)}

    def file_name(self, layer: str) -> str:
        """Turn ``down_blocks.1.attentions.0...to_q`` into ``lora_unet_down_blocks_1_attentions_0_..._to_q``."""
        return KOHYA + layer.replace(".", "_")

    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks, and the blocks of each transformer."""
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D

        kinds = (ResnetBlock2D, BasicTransformerBlock)
        return [module for module in self.network.modules() if isinstance(module, kinds)]

    def repeatable(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        return forward  # diffusers changes nothing in place

    def fingerprint(self) -> str:
        return weights_fingerprint(self.network)


def weights_fingerprint(network: nn.Module, beneath: Mapping[str, Tensor] | None = None) -> str:
    """Return a hash of the names, shapes, types and first values of a network's weights.

    ``beneath``: the original weights, by name, where others replace them at the moment.
    """
    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        value = (beneath or {}).get(name, parameter).detach()
        first = value.reshape(-1)[:8].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + first)
    return digest.hexdigest()
