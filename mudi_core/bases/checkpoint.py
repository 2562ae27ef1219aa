"""A base model behind one interface: an embedded one, a diffusers folder, or a single file.

SDXL, SD 1.x and 2.x, and the mini FLUX can be trained and can make pictures. Nothing is ever downloaded here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import vocabulary
from ..types import MudiError
from . import sd, sdxl
from .families import EMBEDDED, EMBEDDED_FLUX, Family, usual
from .flux import FluxDenoiser
from .promise import Conditions
from .tokens import TokenVectors
from .unet import UNetDenoiser
from .vae import at_once_of, check_decoded, check_encoded, in_parts

if TYPE_CHECKING:
    from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

log = logging.getLogger(__name__)

NEGATIVE_PROMPT = "sticker, collage"
"""The paper's negative prompt: the training images of Seg-Mix are collages, the pictures should not be."""


class MissingCheckpoint(MudiError):
    """There is no such base model; the sentence names the folder searched and where to get one."""


class NoPictures(MudiError):
    """A base model that cannot make pictures with the diffusers that is installed."""


class EncodersReleased(MudiError):
    """The VAE or the text encoders were used after `Checkpoint.release_encoders`."""


@dataclass(frozen=True)
class _Parts:
    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    vae: Any


class Checkpoint:
    """A base model of SDXL's architecture, with two text encoders, or of SD's, with one; or the mini FLUX.

    The network is a public part; functions of plain tensors hide everything else.
    """

    def __init__(
        self,
        name: str,
        unet: Any,
        vae: Any,
        tokenizers: tuple[Any, ...],
        text_encoders: tuple[Any, ...],
        scheduler: Any,
        side: int | None = None,
    ) -> None:
        self.name = name
        """ "mini", or the file or folder's name."""
        self.unet = unet.eval().requires_grad_(False)
        self.scheduler = scheduler
        self.latent_scale = float(vae.config.scaling_factor)
        """The U-Net sees a latent multiplied by this (0.13025 for SDXL, 0.18215 for SD)."""
        self.vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels per cell of a latent, along a side: 8."""
        self.side = side or int(unet.config.sample_size) * self.vae_factor
        """Side in pixels of the square pictures for which this model was made."""
        self.negative_prompt = NEGATIVE_PROMPT
        """The negative prompt when the user gives none."""
        self.is_flow = hasattr(unet.config, "joint_attention_dim")
        """Whether it is a FLUX transformer."""
        self.family = "flux1" if self.is_flow else _family(unet, text_encoders, scheduler)
        """kohya's name of the architecture, as LoRA files have it."""
        for model in (vae, *text_encoders):
            model.eval().requires_grad_(False)
        self._parts: _Parts | None = _Parts(tokenizers, text_encoders, vae)

    @property
    def usual(self) -> Family:
        """The usual settings of this kind of base model; SDXL that predicts v has an entry of its own."""
        predicts_v = self.scheduler.config.get("prediction_type") == "v_prediction" and not self.family.endswith("_v")
        return usual(self.name, self.family + ("_v" if predicts_v else ""))

    @property
    def text_encoders(self) -> tuple[Any, ...]:
        """The text encoders, as long as they are not released."""
        return self._encoders().text_encoders

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizer of each text encoder."""
        return self._encoders().tokenizers

    @property
    def device(self) -> torch.device:
        """The device on which the U-Net computes."""
        return torch.device(self.unet.device)

    def encode_text(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions: return the U-Net's context ``[n, 77, d]`` and pooled vectors ``[n, p]``.

        SDXL's context is the last layer but one of both encoders, side by side. SD's context is the output of its only
        encoder, without pooled vectors (``p`` is 0). Tokens after the 77th are cut off, with a warning. Gradients flow
        only to the `token_vectors` in use.
        """
        parts = self._encoders()
        alone = len(parts.text_encoders) == 1
        contexts, pooled = [], torch.empty(0)
        for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
            for caption in captions:
                if len(tokenizer(caption).input_ids) > tokenizer.model_max_length:
                    log.warning("only the first %d tokens are read of '%s'", tokenizer.model_max_length - 2, caption)
            ids = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
            answer = encoder(ids.to(encoder.device), output_hidden_states=True)
            contexts.append(answer[0] if alone else answer.hidden_states[-2])
            pooled = answer[0][:, 0, :0] if alone else answer[0]
        return torch.cat(contexts, dim=-1), pooled

    def condition(self, captions: Sequence[str]) -> list[Conditions]:
        """Return what the U-Net reads of each caption: ``context [77, d]`` and ``pooled [p]``, from `encode_text`."""
        contexts, pooled = self.encode_text(captions)
        return [{"context": context, "pooled": pool} for context, pool in zip(contexts, pooled, strict=True)]

    def denoiser(self) -> UNetDenoiser | FluxDenoiser:
        """Return the network that a LoRA is trained on. Raise `unet.BadSchedule`."""
        if self.is_flow:
            return FluxDenoiser(self.unet, self.latent_scale)
        kind = self.scheduler.config.prediction_type
        return UNetDenoiser(self.unet, self.scheduler.alphas_cumprod, kind, self.latent_scale)

    def token_vectors(self, tokens: Sequence[str]) -> TokenVectors:
        """Return the text encoders' vectors of some tokens, to learn or replace them. Raise `tokens.BadTokens`."""
        parts = self._encoders()
        return TokenVectors(tokens, parts.tokenizers, parts.text_encoders, self.condition)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images ``[b, h, w, 3]``, 0..1, to the mode of the VAE's latents ``[b, 4, h/8, w/8]``, unscaled."""
        vae = self._encoders().vae
        pixels = (images.movedim(-1, 1).contiguous() * 2 - 1).to(vae.device, vae.dtype)
        at_once = at_once_of(pixels.shape[0], pixels.shape[2] * pixels.shape[3])
        return check_encoded(in_parts(vae, lambda part: vae.encode(part).latent_dist.mode(), pixels, at_once))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a sampler's scaled latents ``[b, 4, h/8, w/8]`` to images ``[b, h, w, 3]``, 0..1, on the CPU."""
        vae = self._encoders().vae
        unscaled = latents.to(vae.device, vae.dtype) / self.latent_scale
        at_once = at_once_of(latents.shape[0], latents.shape[2] * latents.shape[3] * self.vae_factor**2)
        pixels = in_parts(vae, lambda part: vae.decode(part).sample, unscaled, at_once)
        return check_decoded((pixels / 2 + 0.5).clamp(0, 1).movedim(1, -1).float().cpu().contiguous(), latents)

    def pipeline(self, reads: bool = True) -> StableDiffusionXLPipeline | StableDiffusionPipeline:
        """Return this model as a diffusers pipeline that shares the weights and has its own scheduler.

        ``reads``: with the text encoders; without them the pipeline takes vectors and stays on the U-Net's device.
        """
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        parts = self._encoders()
        if len(parts.text_encoders) == 1:
            return StableDiffusionPipeline(
                vae=parts.vae,
                text_encoder=parts.text_encoders[0] if reads else None,
                tokenizer=parts.tokenizers[0],
                unet=self.unet,
                scheduler=type(self.scheduler).from_config(self.scheduler.config),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        return StableDiffusionXLPipeline(
            vae=parts.vae,
            text_encoder=parts.text_encoders[0] if reads else None,
            text_encoder_2=parts.text_encoders[1] if reads else None,
            tokenizer=parts.tokenizers[0],
            tokenizer_2=parts.tokenizers[1],
            unet=self.unet,
            scheduler=type(self.scheduler).from_config(self.scheduler.config),
            add_watermarker=False,
        )

    def flux_pipeline(self) -> FluxPipeline:
        """Return the mini FLUX as a diffusers pipeline that takes vectors, with the same weights.

        Raise `NoPictures` with a diffusers whose pipeline has no negative prompt.
        """
        import diffusers
        from diffusers import FluxPipeline

        if "true_cfg_scale" not in signature(FluxPipeline.__call__).parameters:
            raise NoPictures(
                f"FLUX cannot make pictures with diffusers {diffusers.__version__}, whose FLUX has no negative prompt. "
                "Install a newer one: pip install -U diffusers."
            )
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        return FluxPipeline(scheduler, self._encoders().vae, None, None, None, None, self.unet)

    def move_encoders(self, device: torch.device) -> None:
        """Move the VAE and the text encoders to a device, for example off the card until the next pictures."""
        self.move_vae(device)
        for encoder in self._encoders().text_encoders:
            encoder.to(device)

    def move_vae(self, device: torch.device) -> None:
        """Move only the VAE to a device."""
        self._encoders().vae.to(device)

    def release_encoders(self) -> None:
        """Free the VAE and the text encoders: training does not need them once it has its plan."""
        self._parts = None

    def _encoders(self) -> _Parts:
        if self._parts is None:
            raise EncodersReleased(f"{self.name}: the VAE and the text encoders were freed. Open the base model again.")
        return self._parts


def open_checkpoint(
    base: str | Path,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    unet_device: torch.device | None = None,
) -> Checkpoint:
    """Read a base model: "mini", or SDXL or SD 1.x or 2.x as a diffusers folder or a single ``.safetensors`` file.

    ``dtype`` is for the U-Net and the text encoders; the VAE stays in float32 because SDXL's VAE overflows in float16.
    ``unet_device`` keeps the U-Net on another device until it is needed. Raise `MissingCheckpoint`,
    `sdxl.BadCheckpointFile` or `embedded.MissingMiniWeights`.
    """
    device = device or torch.device("cpu")
    path = Path(base)
    if (built_in := _BUILT_IN.get(str(base))) is not None:
        checkpoint = built_in()
    elif path.is_dir():
        reader = sd.read_folder if sd.is_folder(path) else sdxl.read_folder
        checkpoint = _of_pipeline(path.name, reader(path, dtype))
    elif path.is_file():
        reader = sd.read_file if sd.is_file(path) else sdxl.read_file
        checkpoint = _of_pipeline(path.name, reader(path, dtype))
    else:
        raise MissingCheckpoint(
            f"There is no base model {path} (looked in {path.absolute().parent}). Use 'mini', a folder in diffusers' "
            f"layout, or a single SDXL file, e.g. from {sdxl.LINK}."
        )
    if built_in is None:
        _check_values(path, checkpoint)
    parts = checkpoint._encoders()
    _move(checkpoint.unet, unet_device or device, dtype)
    for model in parts.text_encoders:
        _move(model, device, dtype)
    _move(parts.vae, device, torch.float32)
    return checkpoint


def _check_values(path: Path, checkpoint: Checkpoint) -> None:
    """Raise `sdxl.BadCheckpointFile` when a weight is NaN or infinite: every picture would be black."""
    parts = checkpoint._encoders()
    encoders = [("text encoder", encoder) for encoder in parts.text_encoders]
    for what, model in [("U-Net", checkpoint.unet), ("VAE", parts.vae), *encoders]:
        for name, weight in model.named_parameters():
            if weight.numel() and not all(math.isfinite(float(value)) for value in weight.aminmax()):
                raise sdxl.BadCheckpointFile(
                    f"{path}: the {what} has weights that are not numbers (NaN or infinity, in {name}). The file is "
                    "damaged, or a merge of models went wrong: download it again, or use another model."
                )


def _move(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    model.to(device)
    if model.dtype != dtype:
        model.to(dtype)


def _open_mini() -> Checkpoint:
    from . import embedded as family

    checkpoint = Checkpoint(
        EMBEDDED,
        family.load_unet(),
        family.load_vae(),
        (vocabulary.tokenizer(), vocabulary.tokenizer("!")),
        family.load_text_encoders(),
        family.scheduler(),
    )
    # It never saw these words, so they would only disturb its pictures; it did learn the empty caption.
    checkpoint.negative_prompt = ""
    return checkpoint


def open_mini_flux(folder: Path | None = None) -> Checkpoint:
    """Return "mini-flux", whose transformer's weights lie in ``folder``. Raise `embedded.MissingMiniWeights`."""
    from . import embedded as family

    checkpoint = Checkpoint(
        EMBEDDED_FLUX,
        family.load_flux(folder),
        family.load_vae(),
        (vocabulary.tokenizer(), vocabulary.tokenizer("!")),
        family.load_text_encoders(),
        family.flow_scheduler(),
        side=family.SIZE,
    )
    checkpoint.negative_prompt = ""  # as for the other embedded model
    return checkpoint


_BUILT_IN: dict[str, Callable[[], Checkpoint]] = {EMBEDDED: _open_mini, EMBEDDED_FLUX: open_mini_flux}
"""Base models that come with the package, by name."""


def _of_pipeline(name: str, pipeline: Any) -> Checkpoint:
    names = ("", "_2") if hasattr(pipeline, "text_encoder_2") else ("",)
    return Checkpoint(
        name,
        pipeline.unet,
        pipeline.vae,
        tuple(getattr(pipeline, f"tokenizer{number}") for number in names),
        tuple(getattr(pipeline, f"text_encoder{number}") for number in names),
        pipeline.scheduler,
    )


def _family(unet: Any, text_encoders: Sequence[Any], scheduler: Any) -> str:
    if len(text_encoders) == 2:
        return "sdxl_base_v1-0"
    return f"sd_{sd.version(unet)}" + ("_v" if scheduler.config.prediction_type == "v_prediction" else "")
