"""The running ComfyUI, as the nodes use it: this is the only part of the pack's face that knows no task."""

from __future__ import annotations

from .folders import cache_folder, datasets, input_folder, input_root, photo_folders
from .lora_files import (
    NO_LORA,
    MissingLora,
    ReadOnly,
    find_lora,
    lora,
    loras,
    loras_folder,
    newer_lora,
    numbered,
)
from .models import MINI, MissingModel, detector, device, embedder, eye_choices, segmenter
from .page import log, plain, preview, progress, say
from .widgets import BadChoice, check_choice, schema

__all__ = [
    "MINI",
    "NO_LORA",
    "BadChoice",
    "MissingLora",
    "MissingModel",
    "ReadOnly",
    "cache_folder",
    "check_choice",
    "datasets",
    "detector",
    "device",
    "embedder",
    "eye_choices",
    "find_lora",
    "input_folder",
    "input_root",
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
    "say",
    "schema",
    "segmenter",
]
