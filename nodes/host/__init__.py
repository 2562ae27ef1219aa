"""The running ComfyUI as the nodes use it. Nothing here knows what a node is for."""

from __future__ import annotations

from .adapters import adapter, adapters, find_adapter
from .folders import ReadOnly, cache_folder, datasets, input_folder, input_root, is_plain_name, photo_folders
from .graphs import running
from .lora_files import (
    NO_LORA,
    MissingLora,
    find_lora,
    lora,
    loras,
    loras_folder,
    newer_lora,
    numbered,
)
from .models import MINI, MissingModel, detector, device, embedder, eye_choices, segmenter
from .page import hear_cancel, log, plain, preview, progress, say
from .residuals import find_residual, residual_file, residuals, residuals_folder
from .sampling import AUTO, Sampler, check_sampler, sampler_widgets
from .widgets import BadChoice, check_choice, schema

__all__ = [
    "AUTO",
    "MINI",
    "NO_LORA",
    "BadChoice",
    "MissingLora",
    "MissingModel",
    "ReadOnly",
    "Sampler",
    "adapter",
    "adapters",
    "cache_folder",
    "check_choice",
    "check_sampler",
    "datasets",
    "detector",
    "device",
    "embedder",
    "eye_choices",
    "find_adapter",
    "find_lora",
    "find_residual",
    "hear_cancel",
    "input_folder",
    "input_root",
    "is_plain_name",
    "log",
    "lora",
    "loras",
    "loras_folder",
    "newer_lora",
    "numbered",
    "photo_folders",
    "plain",
    "preview",
    "progress",
    "residual_file",
    "residuals",
    "residuals_folder",
    "running",
    "sampler_widgets",
    "say",
    "schema",
    "segmenter",
]
