"""What a base model promises to the rest of the library.

A `Base` takes images and captions, as its VAE and text encoders read them; its `Denoiser` is the network that a LoRA is
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
"""The text encoders' output for one caption: tensors without a batch dimension; only the model reads them."""
EncodeText = Callable[[list[str]], list[Conditions]]
"""``n`` captions -> the conditions of each, all with the same names."""


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """How noisy each of ``b`` samples is, and what the network should predict for it. Every tensor is float ``[b]``.

    The network sees ``signal * z0 + noise * eps`` and should predict ``of_latent * z0 + of_noise * eps``, in every
    family: noise (eps, DDPM), velocity (v, Salimans and Ho 2022) or flow (Lipman et al. 2023).
    """

    at: Tensor
    """What the network gets as its noise level: a timestep, or a sigma."""
    signal: Tensor
    noise: Tensor
    of_latent: Tensor
    of_noise: Tensor
    moves: Tensor
    """How far the clean latent moves when the prediction changes by 1."""

    def noisy(self, z0: Tensor, eps: Tensor) -> Tensor:
        """Return what the network sees: clean latents ``[b, c, ...]`` mixed with noise of the same shape."""
        return _spread(self.signal, z0) * z0 + _spread(self.noise, z0) * eps

    def wanted(self, z0: Tensor, eps: Tensor) -> Tensor:
        """Return what the network should predict, ``[b, c, ...]``, for clean latents and noise of that shape."""
        return _spread(self.of_noise, z0) * eps + _spread(self.of_latent, z0) * z0

    def min_snr(self, gamma: float) -> Tensor:
        """Return the weights ``[b]`` of the squared errors that cap the signal-to-noise ratio at ``gamma`` (Min-SNR).

        They stand for ``min(snr, gamma)`` on the error of the clean latent (Hang et al. 2023): ``min(snr, gamma) /
        snr`` when the network predicts noise, ``/ (snr + 1)`` when it predicts velocity.
        """
        # A schedule may end in pure noise or begin without noise.
        snr = (self.signal.square() / self.noise.square().clamp(min=1e-8)).clamp(min=1e-8)
        return snr.clamp(max=gamma) * self.moves.square()

    def as_noise(self) -> Tensor:
        """Return how much a squared error of the prediction counts as a squared error of the noise, ``[b]``.

        It is 1 where the network predicts noise, ``signal^2`` for velocities, ``(1 - sigma)^2`` for flows.
        """
        share = (self.signal * self.moves / self.noise.clamp(min=1e-8)).square()
        return torch.where((share - 1).abs() < 1e-3, 1.0, share)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values ``[b]`` to ``[b, 1, ...]``, so that they can be multiplied with ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class Denoiser(Protocol):
    """The network of a base model that a LoRA is trained on: noise in, a prediction out."""

    @property
    def network(self) -> nn.Module:
        """Its modules. Whoever changes one must restore it."""

    @property
    def device(self) -> torch.device:
        """The device on which it computes."""

    @property
    def stored_as(self) -> BaseWeights:
        """The format of its frozen weights."""

    @property
    def is_flow(self) -> bool:
        """Whether it was taught a flow (Lipman et al. 2023), whose noise levels have no timesteps of a schedule."""

    def ready(self, bf16: bool) -> AbstractContextManager[None]:
        """Inside the block the network is on its device and `predict` has a gradient; afterwards it is as before.

        ``bf16``: compute in bfloat16 instead of float32.
        """

    def draw_level(self, generator: torch.Generator) -> Tensor:
        """Draw one of the noise levels that the network was trained on, ``[1]``."""

    def level(self, drawn: Tensor) -> NoiseLevel:
        """Return the noise level of values from `draw_level`, ``[b]``."""

    def latents(self, encoded: Tensor) -> Tensor:
        """Return a VAE's latents ``[b, c, ...]`` as the network sees them, without noise."""

    def predict(self, x: Tensor, level: NoiseLevel, conditions: Sequence[Conditions], sizes: Tensor) -> Tensor:
        """Predict from noisy latents of one size: return the network's output ``[b, c, ...]``.

        ``conditions``: one for each sample. ``sizes``: float ``[b, 6]``, for each sample the original height and width,
        the top and left of the crop, and the target height and width in pixels, for networks that read these.
        """

    def layers(self) -> dict[str, nn.Module]:
        """Return the linear layers by name, always in the same order."""

    def weight(self, layer: str) -> Tensor:
        """Return the weight ``[out, in]`` that one of the `layers` multiplies with, float32, LoRAs on it included."""

    def file_name(self, layer: str) -> str:
        """Return the name of a layer in a LoRA file: kohya's name, as other programs read it."""

    def blocks(self) -> list[nn.Module]:
        """Return the parts that gradient checkpointing may compute twice: the smallest that repeat."""

    def repeatable(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a ``forward`` that works like that of one of the `blocks` but does not change its arguments."""

    def fingerprint(self) -> str:
        """Return a text that differs for every other network or other weights."""


class Base(Protocol):
    """A base model: takes images and captions, and has a network that a LoRA is trained on."""

    @property
    def name(self) -> str:
        """Its name for users."""

    @property
    def family(self) -> str:
        """kohya's name of its architecture, as LoRA files have it."""

    @property
    def usual(self) -> Family:
        """The usual settings of its kind."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images; see `EncodeImage`."""

    def condition(self, captions: list[str]) -> list[Conditions]:
        """Encode captions; see `EncodeText`."""

    def denoiser(self) -> Denoiser:
        """Return its network."""


class TextEncoders(Protocol):
    """The text encoders of a base model, to be tuned, and to find words in what they read."""

    @property
    def context(self) -> str:
        """The name, among the conditions, of what cross-attention reads: ``[n, d]``, a row for each token."""

    @property
    def widths(self) -> tuple[int, ...]:
        """How many of the ``d`` values each encoder gives, in their order: 768 and 1280 for SDXL."""

    def modules(self) -> list[nn.Module]:
        """Return the encoders; `text.tuned` changes their weights."""

    def encode(self, captions: list[str]) -> list[Conditions]:
        """Encode captions as samplers do; inside of `text.tuned` with gradients."""

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text as the encoders read it, a row of the context for each."""

    def word(self, text: str) -> list[int]:
        """Return the tokens of some words alone, without begin and end."""
