"""ComfyUI's input and user folders: what lies there, and that nothing leads out of them."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...mudi_core.names import BadName, plain_name
from ...mudi_core.subjects.metadata import CLASS_METADATA
from ...mudi_core.subjects.photos import OTHER_PICTURES, SUFFIXES
from ...mudi_core.subjects.saving import METADATA, take_up_all
from ...mudi_core.types import readable
from .listing import entries, is_file, is_folder


def input_folder(name: str, what: str) -> Path:
    """Where the folder of this name lies, or will lie, in ComfyUI's input folder; no link in it leads out of there.

    Raises `BadName`.
    """
    folder = input_root() / plain_name(name, what)
    _check_links(folder, input_root())
    return folder


def is_plain_name(name: str | None, what: str) -> bool | str:
    """Return True, or what is wrong with a name, for ``validate_inputs``; a linked name, None, is not known yet."""
    if name is not None:
        try:
            plain_name(name, what)
        except BadName as error:
            return str(error)
    return True


def input_root() -> Path:
    """ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory())


def _check_links(folder: Path, root: Path) -> None:
    """Raises `BadName` for a link out of ``root``, also behind links that lead inside; each folder is seen once."""
    inside = os.path.realpath(root)
    if os.path.realpath(folder) == inside:
        raise BadName(f"{folder} is a link to {root} itself. Remove it, and choose a folder of its own.")
    seen: set[str] = set()

    def check(path: str) -> None:
        if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise BadName(f"{readable(path)} is a link that leads out of {root}. Put there what it leads to.")

    check(str(folder))
    for place, folders, files in os.walk(folder, followlinks=True):
        for one in [*folders, *files]:
            check(os.path.join(place, one))
        seen.add(os.path.realpath(place))
        folders[:] = [one for one in folders if os.path.realpath(os.path.join(place, one)) not in seen]


def datasets() -> list[str]:
    """The names of the datasets in ComfyUI's input folder, priors of the official code among them."""
    take_up_all(input_root())
    return [one.name for one in _input_folders() if is_file(one / METADATA) or is_file(one / CLASS_METADATA)]


def photo_folders() -> list[str]:
    """The names of the folders of pictures in ComfyUI's input folder; datasets are none."""
    return [
        folder.name
        for folder in _input_folders()
        if not is_file(folder / METADATA) and any(_is_photo(path) for path in entries(folder, shown=False))
    ]


def _is_photo(path: Path) -> bool:
    """Whether a file is a photo, or one of a kind that Load Photos names as not readable; masks are none."""
    return path.suffix.lower() in (*SUFFIXES, *OTHER_PICTURES) and not path.name.lower().startswith("mask_")


def _input_folders() -> list[Path]:
    every = entries(input_root())
    return [path for path in every if not path.name.startswith(".") and is_folder(path)]


def cache_folder() -> Path:
    """Where things are kept that can be made again: in ComfyUI's user folder, which outlives a restart."""
    return Path(folder_paths.get_user_directory()) / "__mudi"
