"""SDXL from disk, as a diffusers folder or a single file, without the network.

The JSON files here are the configurations of SDXL's components, in the folders that diffusers expects. Together with
CLIP's tokenizer in the package they replace what diffusers would download to read a single file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...tensor_file import BadWeights, check_header
from ...types import MudiError
from .parts import BadModelFolder, check_numbers, read_parts, settings_of

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionXLPipeline

CONFIGS = Path(__file__).parent
LINK = "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0 (sd_xl_base_1.0.safetensors, 6.9 GB)"


class BadCheckpointFile(MudiError):
    """A base model that cannot be read, or of a kind that cannot be used."""


def read_folder(path: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Read SDXL from a diffusers folder; weights in ``dtype``. Raise `BadCheckpointFile`."""
    from diffusers import StableDiffusionXLPipeline

    kind = pipeline_kind(path)
    if kind != "StableDiffusionXLPipeline":
        raise BadCheckpointFile(
            f"{path} holds a {kind}; only SDXL (StableDiffusionXLPipeline) and SD 1.x and 2.x "
            "(StableDiffusionPipeline) can be used."
        )
    try:
        names = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        return StableDiffusionXLPipeline(**read_parts(path, names, dtype), add_watermarker=False)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise BadCheckpointFile(
            f"{path} could not be read ({first_line(error)}). Is a file missing or cut off?"
        ) from error


def pipeline_kind(path: Path) -> str:
    """Return the pipeline class that a diffusers folder names. Raise `BadCheckpointFile`."""
    index = path / "model_index.json"
    if not index.is_file():
        raise BadCheckpointFile(
            f"{path} is not a model folder in diffusers' layout: it has no model_index.json. Name the folder that has "
            f"it, or a single SDXL file, e.g. from {LINK}."
        )
    try:
        return str(settings_of(index)["_class_name"])
    except KeyError:
        raise BadCheckpointFile(f"{index} does not say what the folder holds. Download the folder again.") from None
    except BadModelFolder as error:
        raise BadCheckpointFile(str(error)) from error


def read_file(path: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Read SDXL from one ``.safetensors`` file with Stability's names; weights in ``dtype``. Raise `BadCheckpointFile`.

    Finetunes that predict v have a key "v_pred"; those whose noise schedule ends in pure noise have a key "ztsnr".
    """
    shapes = header(path)
    _check_file(path, shapes)
    from diffusers import StableDiffusionXLPipeline

    from ...vocabulary import tokenizer

    try:
        pipeline = StableDiffusionXLPipeline.from_single_file(
            str(path),
            config=str(CONFIGS),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer("!"),
            torch_dtype=dtype,
            local_files_only=True,
            add_watermarker=False,
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise BadCheckpointFile(
            f"{path} could not be read as SDXL ({first_line(error)}). Download it again."
        ) from error
    if any(p.is_meta for model in (pipeline.unet, pipeline.text_encoder_2) for p in model.parameters()):
        raise BadCheckpointFile(f"{path} lacks some of SDXL's weights. Use a complete checkpoint, e.g. from {LINK}.")
    if "v_pred" in shapes:
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr="ztsnr" in shapes
        )
    return pipeline


_SDXL_KEYS: Mapping[str, str] = {
    "model.diffusion_model.input_blocks.0.0.weight": "a U-Net",
    "model.diffusion_model.label_emb.0.0.weight": "SDXL's U-Net",
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": "SDXL's first text encoder",
    "conditioner.embedders.1.model.ln_final.weight": "SDXL's second text encoder",
    "first_stage_model.decoder.conv_in.weight": "a VAE",
}


_LORA = re.compile(r"\.(lora_(up|down|A|B)\b|alpha$|dora_scale$|hada_|lokr_)|^run\.")


def header(path: Path) -> dict[str, list[int]]:
    """Return the shapes in a ``.safetensors`` file by name, without reading its data. Raise `BadCheckpointFile`."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != path.suffix.lower() == ".safetensors":
        raise BadCheckpointFile(
            f"{path} ends in {path.suffix}, which libraries read as another format. Rename it to .safetensors."
        )
    if path.suffix != ".safetensors":
        raise BadCheckpointFile(
            f"{path} is not a .safetensors file. Other formats can run code when they are read; get the same model as "
            f".safetensors, e.g. from {LINK}."
        )
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}
    except (OSError, SafetensorError, BadWeights) as error:
        raise BadCheckpointFile(f"{path} is not a complete safetensors file ({error}). Download it again.") from error


def _check_file(path: Path, shapes: Mapping[str, list[int]]) -> None:
    lacking = [what for key, what in _SDXL_KEYS.items() if key not in shapes]
    if "conv_in.weight" in shapes and any(key.startswith("down_blocks.") for key in shapes):
        raise BadCheckpointFile(
            f"{path} is a part of a model, as the folders of a diffusers model hold it. Name the folder that holds "
            f"model_index.json, or use a complete checkpoint, e.g. from {LINK}."
        )
    if shapes and all(_LORA.search(key) for key in shapes):
        raise BadCheckpointFile(f"{path} is a LoRA, not a base model. Name the model that it was trained on.")
    if lacking:
        raise BadCheckpointFile(
            f"{path} has no {lacking[0].removeprefix('a ')}: it is not a complete SDXL checkpoint (perhaps a refiner "
            f"or another model). Use one, e.g. from {LINK}."
        )
    check_kind(path, shapes)


_OTHER_NOISE = {"edm_vpred.": "CosXL", "edm_": "Playground 2.5"}
"""How a key beside SDXL's own begins -> the model that has it: SDXL's architecture, trained with other noise (EDM)."""
QUANTIZED = ("scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant", ".absmax", ".quant_map")
"""Endings of keys beside weights that are stored in few bits with a scale."""


def check_kind(path: Path, shapes: Mapping[str, list[int]]) -> None:
    """Raise `BadCheckpointFile` when a file's other keys show a kind of model that cannot be used."""
    for begins, kind in _OTHER_NOISE.items():
        if any(key.startswith(begins) for key in shapes):
            raise BadCheckpointFile(
                f"{path} is a model like {kind}: SDXL's architecture, but trained with another kind of noise (EDM). It "
                f"cannot be used here. Use a plain SDXL checkpoint, e.g. from {LINK}."
            )
    scales = [key for key in shapes if key.endswith(QUANTIZED)]
    if scales:
        raise BadCheckpointFile(
            f"{path} is stored in few bits, with scales beside its weights (scaled fp8 or the like: {scales[0]}). Such "
            "files cannot be read here: use the same checkpoint in fp16, bf16, fp32 or plain fp8."
        )
    try:
        check_numbers(path)
    except BadModelFolder as error:
        raise BadCheckpointFile(str(error)) from None
    check_channels(path, shapes["model.diffusion_model.input_blocks.0.0.weight"])


def check_channels(path: Path, first_layer: Sequence[int]) -> None:
    """Raise `BadCheckpointFile` when the U-Net's first layer expects other channels than those of a picture."""
    if len(first_layer) != 4:
        raise BadCheckpointFile(f"{path} has a U-Net of another kind. Use a plain checkpoint, e.g. from {LINK}.")
    if first_layer[1] != 4:
        raise BadCheckpointFile(
            f"{path} needs more than noise as input ({first_layer[1]} channels instead of 4), like models for "
            "inpainting and for editing pictures. Use a plain checkpoint."
        )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name when it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
