"""What a base model promises to the rest of the library.

Images and captions go into a `Base` as a VAE and text encoders read them; its `Denoiser` is the network that a LoRA is
trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .families import Family
from .quantize import BaseWeights

EncodeImage = Callable[[Tensor], Tensor]
"""Float ``[b, h, w, 3]``, 0..1 -> the VAE's mode ``[b, c, ..., h/f, w/f]``, unscaled; ``f`` is 8 for SD and SDXL."""
Conditions = Mapping[str, Tensor]
"""What the text encoders say of one caption, as float tensors without a batch; only the model itself reads them."""
EncodeText = Callable[[list[str]], list[Conditions]]
"""``n`` captions -> of each its conditions, all by the same names."""


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """How noisy each of ``b`` samples is, and what the network should answer to it. Every tensor is float ``[b]``.

    The network sees ``signal * z0 + noise * eps`` and should answer ``of_latent * z0 + of_noise * eps``, whatever its
    family: noise (eps, DDPM), velocity (v, Salimans and Ho 2022) or flow (Lipman et al. 2023).
    """

    at: Tensor
    """What the network is told: a timestep, or a sigma."""
    signal: Tensor
    noise: Tensor
    of_latent: Tensor
    of_noise: Tensor
    moves: Tensor
    """How far the clean latent moves where the answer changes by 1."""

    def noisy(self, z0: Tensor, eps: Tensor) -> Tensor:
        """What the network sees of clean latents ``[b, c, ...]`` and noise of that shape."""
        return _spread(self.signal, z0) * z0 + _spread(self.noise, z0) * eps

    def wanted(self, z0: Tensor, eps: Tensor) -> Tensor:
        """What it should answer: ``[b, c, ...]``."""
        return _spread(self.of_noise, z0) * eps + _spread(self.of_latent, z0) * z0

    def min_snr(self, gamma: float) -> Tensor:
        """Return the weight ``[b]`` of squared errors of the answer that caps the signal-to-noise ratio at ``gamma``.

        ``min(snr, gamma)`` of the error of the clean latent (Hang et al. 2023): ``min(snr, gamma) / snr`` where the
        network answers with the noise, ``/ (snr + 1)`` with a velocity.
        """
        # A schedule may end in pure noise or begin without any.
        snr = (self.signal.square() / self.noise.square().clamp(min=1e-8)).clamp(min=1e-8)
        return snr.clamp(max=gamma) * self.moves.square()


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """Values ``[b]`` as ``[b, 1, ...]``, to be multiplied with ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class Denoiser(Protocol):
    """The network of a base model that a LoRA is trained on: noise in, a prediction out."""

    @property
    def network(self) -> nn.Module:
        """Its modules. Whoever changes one gives it back as it was."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def stored_as(self) -> BaseWeights:
        """How its frozen weights are kept."""

    def ready(self, bf16: bool) -> AbstractContextManager[None]:
        """Within the block the network is on its device and `predict` has a gradient; afterwards it is as before.

        ``bf16``: compute in bfloat16 instead of float32.
        """

    def draw_level(self, generator: torch.Generator) -> Tensor:
        """Return one random level, ``[1]``, of those that the network was taught."""

    def level(self, drawn: Tensor) -> NoiseLevel:
        """Return what levels of `draw_level`, ``[b]``, mean."""

    def latents(self, encoded: Tensor) -> Tensor:
        """A VAE's latents ``[b, c, ...]`` as the network sees them, without noise."""

    def predict(self, x: Tensor, level: NoiseLevel, conditions: Sequence[Conditions], sizes: Tensor) -> Tensor:
        """Return the network's answer ``[b, c, ...]`` to noisy latents of one size.

        ``conditions``: of each sample; ``sizes``: float ``[b, 6]``, of each the original height and width, the crop's
        top and left, and the target height and width in pixels, for networks that read these.
        """

    def layers(self) -> dict[str, nn.Module]:
        """Return the linear layers by name, always in the same order."""

    def file_name(self, layer: str) -> str:
        """Return what a LoRA's file calls a layer: kohya's name, as other programs read it."""

    def blocks(self) -> list[nn.Module]:
        """Return the parts that gradient checkpointing may compute twice: the smallest that repeat."""

    def repeatable(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return the ``forward`` of one of the `blocks` as one that leaves its arguments as they are."""

    def fingerprint(self) -> str:
        """Return what tells this network, weights and all, from any other."""


class Base(Protocol):
    """A base model: images and captions in, and a network that a LoRA is trained on."""

    @property
    def name(self) -> str:
        """What its users call it."""

    @property
    def family(self) -> str:
        """Kohya's name for its architecture, as LoRA files say it."""

    @property
    def usual(self) -> Family:
        """What is usual for its kind."""

    def encode_image(self, images: Tensor) -> Tensor:
        """An `EncodeImage`."""

    def condition(self, captions: list[str]) -> list[Conditions]:
        """An `EncodeText`."""

    def denoiser(self) -> Denoiser:
        """Return its network."""
