"""What every diffusers network has in common as a `promise.Denoiser`: weights, precision, layers and names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..types import MudiError
from .quantize import BaseWeights, FrozenLinear, stored_as

KOHYA = "lora_unet_"
"""The prefix of kohya's name of a network layer, in every family."""


class BadPrecision(MudiError):
    """Weights of a type that the chosen precision cannot train."""


class DiffusersNetwork:
    """A frozen network of diffusers."""

    def __init__(self, network: Any) -> None:
        self.network = network
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
        """Inside the block the network is frozen and in training mode. Raise `BadPrecision`."""
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
                f"The model's weights are {found}, which precision '{'bf16' if bf16 else 'fp32'}' cannot train. Load "
                "it in float32, or in bfloat16 with precision 'bf16'."
            )

    def layers(self) -> dict[str, nn.Module]:
        return {name: layer for name, layer in self.network.named_modules() if isinstance(layer, nn.Linear)}

    def weight(self, layer: str) -> Tensor:
        module = self.network.get_submodule(layer)
        weight: Tensor = module.full() if isinstance(module, FrozenLinear) else module.weight
        return weight.detach().float()

    def file_name(self, layer: str) -> str:
        """Turn ``down_blocks.1.attentions.0...to_q`` into ``lora_unet_down_blocks_1_attentions_0_..._to_q``."""
        return KOHYA + layer.replace(".", "_")

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
