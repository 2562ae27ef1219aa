"""The embedded model family: small models of the real architectures, in the classes of the real libraries.

Every `build_*` makes a model with fresh weights (training starts there), every `load_*` the trained model. The widths
are chosen so that the whole family takes a few tens of megabytes in fp16 and one picture takes seconds on two CPU
cores.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...types import MudiError

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        FluxTransformer2DModel,
        UNet2DConditionModel,
    )
    from torch import Tensor, nn
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

WEIGHTS = Path(__file__).parent / "weights"
SIZE = 192
"""Side of the embedded model's pictures in pixels."""
LATENT_SCALE = 0.13025
"""SDXL's factor: a VAE latent times this has a standard deviation of about 1."""


class MissingMiniWeights(MudiError):
    """The embedded weights are not in the package: the clone or archive is incomplete."""


def build_vae() -> AutoencoderKL:
    """Build a small SDXL VAE: 8x, 4 channels, groups of 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=LATENT_SCALE,
    )


def build_unet() -> UNet2DConditionModel:
    """Build a small SDXL U-Net: attention below the first resolution, linear projections, size conditioning."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 4, 6),  # the number of heads, despite diffusers' name: 32 channels each
        cross_attention_dim=TEXT_WIDTH + TEXT_2_WIDTH,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + TEXT_2_WIDTH,
    )


def build_flux() -> FluxTransformer2DModel:
    """Build a small FLUX transformer (1 + 8 blocks, 6 heads of 32) for latents of the family's VAE and its two text
    encoders: 2 x 2 latent pixels of 4 channels a token, the penultimate states of both encoders as context."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=TEXT_WIDTH + TEXT_2_WIDTH,
        pooled_projection_dim=TEXT_2_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


FLOW_SHIFT = 1.0
"""How far the FLUX transformer's noise levels are moved towards noise in sampling (SD 3, equation 23)."""
TEXT_WIDTH = 96
TEXT_2_WIDTH = 160
WORD_STD = 0.3
"""Standard deviation of the word vectors."""


def _text_config(width: int, activation: str) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 32,
        projection_dim=width,
        hidden_act=activation,
        pad_token_id=0 if activation == "gelu" else 49407,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def build_text_encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Build two CLIP text encoders over CLIP's whole vocabulary, with fixed random word vectors.

    The vectors are never trained, so they are not stored. To the next layer a rare token that no picture ever had looks
    like any other word, so a LoRA can give it a meaning.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    encoders = (
        CLIPTextModel(_text_config(TEXT_WIDTH, "quick_gelu")),
        CLIPTextModelWithProjection(_text_config(TEXT_2_WIDTH, "gelu")),
    )
    for seed, encoder in enumerate(encoders):
        set_word_vectors(encoder, seed)
    return encoders


def set_word_vectors(model: nn.Module, seed: int) -> None:
    """Fill the token embedding with the fixed random vectors of the family and freeze it."""
    import numpy as np
    import torch

    (table,) = [m for name, m in model.named_modules() if name.endswith("token_embedding")]
    weight = table.weight
    assert isinstance(weight, torch.Tensor)
    # numpy's legacy generator never changes: the same numbers on every machine and version.
    rows = np.random.RandomState(seed).standard_normal(tuple(weight.shape)).astype(np.float32) * WORD_STD
    with torch.no_grad():
        weight.copy_(torch.from_numpy(rows))
    weight.requires_grad_(False)


def scheduler() -> EulerDiscreteScheduler:
    """Return the sampler and noise schedule of SDXL's own checkpoint."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
    )


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the sampler of the FLUX transformer: Euler, its noise levels moved by `FLOW_SHIFT`."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)


def without_word_vectors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state dict that is stored: everything but the fixed word vectors."""
    return {name: value for name, value in state.items() if not name.endswith("token_embedding.weight")}


_NAMES_BEFORE = {
    "attention.q_proj.": "attention.attention.query.",
    "attention.k_proj.": "attention.attention.key.",
    "attention.v_proj.": "attention.attention.value.",
    "attention.o_proj.": "attention.output.dense.",
}
"""DINOv2's tensors: their names in the files, and in older releases of transformers."""


def _name_among(names: Collection[str], key: str) -> str:
    """Return how the installed transformers names a tensor; older versions put ``text_model.`` before CLIP's names."""
    before = key
    for new, old in _NAMES_BEFORE.items():
        before = before.replace(new, old)
    return next((name for name in (key, before, f"text_model.{key}") if name in names), key)


def fill(model: nn.Module, name: str, folder: Path | None = None) -> None:
    """Load the weights of a file of the family into a model from ``build_*``; it already has its word vectors.

    Raise `MissingMiniWeights` when the file is missing or does not fit.
    """
    from safetensors.torch import load_file

    path = (folder or WEIGHTS) / f"{name}.safetensors"
    if not path.is_file():
        if name == "flux":
            raise MissingMiniWeights(
                "The mini FLUX is not part of this version, because its training is not finished. Use 'mini'."
            )
        raise MissingMiniWeights(
            f"The embedded model's file {path} is missing. Clone the repository again, or train it: "
            "python -m workshop.train --help"
        )
    names = model.state_dict().keys()
    state = {
        _name_among(names, key): value.float() if value.is_floating_point() else value
        for key, value in load_file(path).items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [key for key in missing if not key.endswith(("token_embedding.weight", "position_ids"))] + list(unexpected)
    if wrong:
        raise MissingMiniWeights(f"The embedded model's file {path} does not fit this version: {wrong[0]}.")


def load(model: nn.Module, name: str, folder: Path | None = None) -> Any:
    """`fill` a model, freeze it and return it."""
    fill(model, name, folder)
    return model.eval().requires_grad_(False)


def load_vae() -> AutoencoderKL:
    """Return the trained VAE."""
    return load(build_vae(), "vae")


def load_unet() -> UNet2DConditionModel:
    """Return the trained U-Net."""
    return load(build_unet(), "unet")


def load_flux(folder: Path | None = None) -> FluxTransformer2DModel:
    """Return the FLUX transformer. Raise `MissingMiniWeights` without a folder: it is still being trained."""
    return load(build_flux(), "flux", folder)


def load_text_encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Return the two trained text encoders."""
    first, second = build_text_encoders()
    return load(first, "text_encoder"), load(second, "text_encoder_2")
