"""The components of a diffusers folder, each built by one fixed class.

A folder also names classes, and diffusers before 0.38 imports those from the folder itself. Here no file chooses a
class: only the classes in the table below are built, and settings that lead anywhere else are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import NotText, read_text
from ...tensor_file import BadWeights, check_header

if TYPE_CHECKING:
    import torch

COMPONENTS: dict[str, tuple[str, str]] = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}
"""Folder -> library and class. A folder that starts with "tokenizer" is a CLIPTokenizer."""
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""The samplers that a folder may name: with discrete timesteps, all from diffusers."""
_LEADS_AWAY = (
    "auto_map",
    "attn_implementation",
    "quantization_config",
    "custom_pipelines",
    "use_kernels",
    "trust_remote",
)
"""Parts of names of settings that make a library import, download or run something."""

MOST_TIMESTEPS = 10_000
MOST_LAYERS = 200
"""Most layers or blocks that settings may ask for, which are built before weights are read; SDXL has 32 at most."""


class BadModelFolder(BadWeights):
    """A model folder that lacks a part, or whose settings ask for more than reading."""


def settings_of(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file of a model folder, at most 1 MB. Raise `BadModelFolder`."""
    try:
        if path.stat().st_size > 2**20:
            raise BadModelFolder(f"{path} is not a settings file: it is larger than 1 MB. Download the folder again.")
        found = json.loads(read_text(path))
    except NotText as error:
        raise BadModelFolder(str(error)) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadModelFolder(f"{path} could not be read ({reason}). Download the folder again.") from error
    if not isinstance(found, dict):
        raise BadModelFolder(f"{path} is not a settings file. Download the folder again.")
    return found


def check_settings(path: Path) -> None:
    """Raise `BadModelFolder` for settings that would make a library import, download or run anything."""

    def look(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else ():
            # The library's own kinds of attention are harmless; those from a hub have a path.
            harmless = inner is None or inner in ("eager", "sdpa", "flash_attention_2", "flex_attention")
            if any(part in key for part in _LEADS_AWAY) and not harmless:
                raise BadModelFolder(
                    f"{path} asks to load or run something else ('{key}': {str(inner)[:80]!r}), which this pack never "
                    "does. Remove that line, or get the model from somewhere else."
                )
            if ("layers" in key or "block" in key) and _most(inner, key) > MOST_LAYERS:
                raise BadModelFolder(
                    f"{path} asks for more than {MOST_LAYERS} layers ('{key}'). It is damaged: download the folder "
                    "again."
                )
            look(inner)
        for inner in value if isinstance(value, list) else ():
            look(inner)

    look(settings_of(path))
    if path.read_bytes() != read_text(path).encode():
        raise BadModelFolder(
            f"{path} has a byte order mark, which libraries cannot read. Save it as UTF-8 without one."
        )
    if (path.parent / "adapter_config.json").exists():
        raise BadModelFolder(
            f"{path.parent} has an adapter (adapter_config.json), which would download another model. Remove that "
            "file, or use a complete model."
        )


def _most(value: Any, key: str) -> float:
    """Return the largest number of parts that a setting asks for: of entries in a list, and as numbers of layers."""
    if isinstance(value, list):
        return max([len(value), *(_most(one, key) for one in value)])
    return value if isinstance(value, int | float) and "layers" in key else 0


def read_parts(folder: Path, names: tuple[str, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Return the components of these names and the scheduler, built by the classes above, weights in ``dtype``.

    Weights are safetensors; a folder may have only the fp16 variant. Raise `BadModelFolder`, and the errors of
    diffusers and transformers for damaged files.
    """
    return {name: _component(folder / name, name, dtype) for name in names} | {"scheduler": _scheduler(folder)}


_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""safetensors' names for the kinds of numbers that weights are read in."""


def check_numbers(path: Path) -> None:
    """Raise `BadModelFolder` when a safetensors file holds weights in whole numbers, or in numbers of fewer bits.

    Such weights mean something only with scales, and would otherwise be read as if they were the weights themselves.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise BadModelFolder(f"{path} is not a complete safetensors file ({error}). Download it again.") from error
    for key, kind in kinds.items():
        if key.endswith(("weight", "bias")) and kind not in _FLOATS:
            raise BadModelFolder(
                f"{path} is stored in few bits: '{key}' holds numbers of the kind {kind}, which mean nothing by "
                "themselves. Such files cannot be read here: use the same model in fp16, bf16, fp32 or plain fp8."
            )


def _component(folder: Path, name: str, dtype: torch.dtype) -> Any:
    import importlib

    from transformers import CLIPTokenizer

    if not folder.is_dir():
        raise BadModelFolder(f"{folder.parent} has no folder '{name}'. Download the complete model again.")
    if name.startswith("tokenizer"):
        for path in sorted(folder.glob("*config*.json")):
            check_settings(path)
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    library, kind = COMPONENTS[name]
    built = getattr(importlib.import_module(library), kind)
    check_settings(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        check_header(file)
        check_numbers(file)
    variant = {"variant": "fp16"} if files and all(".fp16" in file.name for file in files) else {}
    return built.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, **variant)


def _scheduler(folder: Path) -> Any:
    import diffusers

    path = folder / "scheduler" / "scheduler_config.json"
    check_settings(path)
    settings = settings_of(path)
    name, timesteps = settings.get("_class_name"), settings.get("num_train_timesteps", 1000)
    if name not in SCHEDULERS:
        raise BadModelFolder(
            f"{path} asks for the sampler {str(name)[:80]!r}; known are {', '.join(SCHEDULERS)}. Use a model folder of "
            "SD or SDXL."
        )
    if not isinstance(timesteps, int) or not 1 < timesteps <= MOST_TIMESTEPS:
        raise BadModelFolder(
            f"{path} has {str(timesteps)[:20]!r} timesteps; a model is taught 2 to {MOST_TIMESTEPS}. Download the "
            "folder again."
        )
    scheduler = getattr(diffusers, name).from_config(settings)
    noise, signal = scheduler.betas, scheduler.alphas_cumprod
    falls = bool(((noise >= 0) & (noise <= 1)).all() and 1 >= signal[0] > signal[-1])  # False with NaN
    if len(signal) != timesteps or not falls:
        raise BadModelFolder(
            f"{path} describes a noise that no model is taught: the picture should fade from step to step, {timesteps} "
            "times. Download the folder again."
        )
    return scheduler
