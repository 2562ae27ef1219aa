"""The files of reference adapters in ComfyUI's folders, and the embedded one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from ...mudi_core.bases import embedded
from . import written
from .listing import can_be_chosen
from .models import MINI, MissingModel
from .page import progress

if TYPE_CHECKING:
    from ...mudi_core.attention.references.adapter import Adapter

log = logging.getLogger(__name__)

FOLDERS = ("ms_diffusion", "ipadapter")
"""Inside models/; the second is the one of ComfyUI_IPAdapter_plus."""
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

for _folder in FOLDERS:
    folder_paths.add_model_folder_path(_folder, str(Path(folder_paths.models_dir) / _folder))


def adapters() -> list[str]:
    """Return the choices of an adapter widget, those of safetensors first, the embedded one last."""
    found = dict.fromkeys(name for folder in FOLDERS for name in _files(folder))
    return [*sorted(found, key=lambda name: not name.lower().endswith(_SUFFIXES[0])), MINI]


def find_adapter(choice: str | None) -> Path | None:
    """Return the path of a choice of `adapters`; None for what is gone."""
    if choice == MINI:
        return embedded.WEIGHTS / "reference.safetensors"
    for folder in FOLDERS:
        if choice in _files(folder) and (path := folder_paths.get_full_path(folder, choice)):
            return Path(path)
    return None


_last: list[tuple[object, Adapter]] = []
"""The one that was read last, and the state of its file."""


def adapter(choice: str) -> Adapter:
    """Return an adapter of the choices. Raise `MissingModel`, and what `read` raises."""
    from ...mudi_core.attention.references.adapter import read

    path = find_adapter(choice)
    if path is None:
        where = " or models/".join(FOLDERS)
        raise MissingModel(f"There is no adapter {choice!r} in models/{where}. Choose another one, or put it there.")
    state = (path, written.state_of([path]))
    if not _last or _last[0][0] != state:
        _last.clear()
        with progress()("loading the adapter"):
            _last.append((state, read(path)))
    return _last[0][1]


def _files(folder: str) -> list[str]:
    try:
        found = folder_paths.get_filename_list(folder)
    except (OSError, ValueError) as error:  # ComfyUI walks every folder below it
        log.warning("the adapters in models/%s cannot be listed (%s)", folder, error)
        return []
    return [name for name in found if name.lower().endswith(_SUFFIXES) and can_be_chosen(name)]
