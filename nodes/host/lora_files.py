"""The LoRA files in ComfyUI's folders: the choices, the path of one, and the path of a new one."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import folder_paths

from ...mudi_core.types import MudiError
from .folders import writable
from .listing import can_be_chosen, entries

log = logging.getLogger(__name__)

NO_LORA = "none"
"""The choice of a LoRA widget that needs none."""


class MissingLora(MudiError):
    """A LoRA that is no longer in any of ComfyUI's folders."""


def loras() -> list[str]:
    """Return the choices of a LoRA widget, `NO_LORA` first."""
    try:
        found = folder_paths.get_filename_list("loras")
    except (OSError, ValueError) as error:  # ComfyUI walks every folder below it
        log.warning("the LoRAs cannot be listed (%s)", error)
        found = []
    return [NO_LORA, *filter(can_be_chosen, found)]


def find_lora(choice: str | None) -> Path | None:
    """Return the path of a choice of `loras`; None for `NO_LORA`, and for a file that is gone."""
    path = None if choice in (None, NO_LORA) else folder_paths.get_full_path("loras", choice)
    return None if path is None else Path(path)


def newer_lora(choice: str | None) -> str | None:
    """Return the choice with the same name and the highest number, such as "cats_00003.safetensors".

    None where the given choice has the highest number already, or no number."""
    path = find_lora(choice)
    match = path and re.fullmatch(r"(.+)_(\d{5,9})((-\d+|-best)?)\.safetensors", path.name)
    if path is None or choice is None or not match:
        return None
    done = re.compile(re.escape(match[1]) + r"_(\d{5,9})\.safetensors", re.IGNORECASE)
    numbered = {int(found[1]): other for other in entries(path.parent) if (found := done.fullmatch(other.name))}
    if max(numbered, default=0) <= int(match[2]):
        return None
    return str(PurePath(choice).with_name(numbered[max(numbered)].name))


def lora(choice: str | None) -> Path | None:
    """Return the path of a choice of `loras`; None for `NO_LORA`. Raise `MissingLora`."""
    if choice in (None, NO_LORA):
        return None
    path = find_lora(choice)
    if path is None:
        raise MissingLora(
            f"There is no LoRA {choice!r} in ComfyUI's models/loras. Choose another one, or put it there."
        )
    return path


def loras_folder() -> Path:
    """Return the folder for new LoRAs. Raise `ReadOnly`, so ask before hours of training."""
    return writable("loras")


def numbers(folder: Path, name: str, suffix: str) -> list[int]:
    """Return the numbers of the files "<name>_00001<suffix>" in a folder.

    Files with a step after the number, "<name>_00001-000200<suffix>", count too.
    """
    pattern = re.compile(re.escape(name) + r"_(\d{1,9})(-\d+)?" + re.escape(suffix), re.IGNORECASE)
    return [int(match[1]) for path in entries(folder) if (match := pattern.fullmatch(path.name))]


def numbered(folder: Path, name: str, suffix: str, reserved: Sequence[int] = ()) -> Path:
    """Return the path "<name>_00001<suffix>" in a folder with the number after all numbers there and ``reserved``."""
    return folder / f"{name}_{max([*numbers(folder, name, suffix), *reserved], default=0) + 1:05d}{suffix}"
