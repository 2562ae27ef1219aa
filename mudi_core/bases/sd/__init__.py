"""Stable Diffusion 1.x and 2.x from disk, as a diffusers folder or a single file, without the network.

The JSON files here are the configurations of the components, as in `sdxl`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sdxl import BadCheckpointFile, check_channels, check_kind, first_line, header, pipeline_kind
from ..sdxl.parts import read_parts

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

CONFIGS = Path(__file__).parent

_MARKS = {
    "v1": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "v2": "cond_stage_model.model.ln_final.weight",
}
"""A key that only a file of this version has: from its text encoder, OpenAI's CLIP or OpenCLIP."""
_V_MARK = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_V_SPREAD = 0.09
"""The standard deviation of this bias is larger in SD 2.x models that predict v, and smaller in others; nothing else in
the file tells them apart. ComfyUI and the web UIs decide in the same way."""


def is_folder(path: Path) -> bool:
    """Return whether a diffusers folder holds SD 1.x or 2.x."""
    return pipeline_kind(path) == "StableDiffusionPipeline"


def is_file(path: Path) -> bool:
    """Return whether a single file holds SD 1.x or 2.x."""
    return path.suffix == ".safetensors" and any(mark in header(path) for mark in _MARKS.values())


def version(unet: Any) -> str:
    """Return "v1" or "v2" for a U-Net: v2 has linear layers where v1 has 1x1 convolutions."""
    return "v2" if unet.config.use_linear_projection else "v1"


def read_folder(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Read SD from a diffusers folder; weights in ``dtype``. Raise `sdxl.BadCheckpointFile`."""
    from diffusers import StableDiffusionPipeline

    try:
        parts = read_parts(path, ("unet", "vae", "text_encoder", "tokenizer"), dtype)
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise BadCheckpointFile(
            f"{path} could not be read ({first_line(error)}). Is a file missing or cut off?"
        ) from error
    check_channels(path, pipeline.unet.conv_in.weight.shape)
    return pipeline


def read_file(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Read SD from one ``.safetensors`` file with the original names; weights in ``dtype``.

    Raise `sdxl.BadCheckpointFile`.
    """
    shapes = header(path)
    kind = next(kind for kind, mark in _MARKS.items() if mark in shapes)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for key, what in ((first, "U-Net"), ("first_stage_model.decoder.conv_in.weight", "VAE")):
        if key not in shapes:
            raise BadCheckpointFile(f"{path} has no {what}: it is not a complete checkpoint. Download it again.")
    check_kind(path, shapes)
    from diffusers import StableDiffusionPipeline

    from ...vocabulary import tokenizer

    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(CONFIGS / kind),
            tokenizer=tokenizer() if kind == "v1" else tokenizer("!"),
            safety_checker=None,
            feature_extractor=None,
            torch_dtype=dtype,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise BadCheckpointFile(
            f"{path} could not be read as SD {kind} ({first_line(error)}). Download it again."
        ) from error
    if any(p.is_meta for model in (pipeline.unet, pipeline.text_encoder) for p in model.parameters()):
        raise BadCheckpointFile(f"{path} lacks some of the model's weights. Use a complete checkpoint.")
    if kind == "v2":
        if _predicts_v(path):
            scheduler = pipeline.scheduler
            pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type="v_prediction")
        else:  # models that predict noise were made for 512 px, the others for 768 px
            pipeline.unet.register_to_config(sample_size=64)
    return pipeline


def _predicts_v(path: Path) -> bool:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return bool(file.get_tensor(_V_MARK).float().std(unbiased=False) > _V_SPREAD)
