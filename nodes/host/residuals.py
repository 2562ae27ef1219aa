"""The files of residual tokens in ComfyUI's folders."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths

from .folders import writable
from .listing import can_be_chosen
from .models import MissingModel

log = logging.getLogger(__name__)

FOLDER = "residual_tokens"
"""Inside models/."""
NO_RESIDUAL = "none"

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def residuals() -> list[str]:
    """Return the choices of a residual widget, `NO_RESIDUAL` first."""
    try:
        found = folder_paths.get_filename_list(FOLDER)
    except (OSError, ValueError) as error:  # ComfyUI walks every folder below it
        log.warning("the residual tokens in models/%s cannot be listed (%s)", FOLDER, error)
        found = []
    return [NO_RESIDUAL, *(name for name in found if name.lower().endswith(".safetensors") and can_be_chosen(name))]


def find_residual(choice: str | None) -> Path | None:
    """Return the path of a choice of `residuals`; None for `NO_RESIDUAL`, and for a file that is gone."""
    path = None if choice in (None, NO_RESIDUAL) else folder_paths.get_full_path(FOLDER, choice)
    return None if path is None else Path(path)


def residual_file(choice: str) -> Path | None:
    """Return the path of a choice of `residuals`; None for `NO_RESIDUAL`. Raise `MissingModel`."""
    path = find_residual(choice)
    if path is None and choice != NO_RESIDUAL:
        raise MissingModel(
            f"There is no residual token {choice!r} in ComfyUI's models/{FOLDER}. Choose another one, or put it there."
        )
    return path


def residuals_folder() -> Path:
    """Return the folder for new residual tokens. Raise `ReadOnly`."""
    return writable(FOLDER)
