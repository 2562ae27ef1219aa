"""ComfyUI's folders: what lies in input and user, that no link leads out of them, and where new models go."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import folder_paths

from ...mudi_core.names import BadName, plain_name
from ...mudi_core.subjects.metadata import CLASS_METADATA
from ...mudi_core.subjects.photos import OTHER_PICTURES
from ...mudi_core.subjects.picture_file import SUFFIXES
from ...mudi_core.subjects.saving import METADATA, take_up_all
from ...mudi_core.types import MudiError, readable
from .listing import entries, is_file, is_folder


class ReadOnly(MudiError):
    """A folder of ComfyUI that cannot be written."""


def writable(kind: str) -> Path:
    """Return ComfyUI's first folder for a kind of models, such as "loras", where new files go. Raise `ReadOnly`."""
    folder = Path(folder_paths.get_folder_paths(kind)[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ReadOnly(f"{folder} cannot be written: {error.strerror or error}. Make it writable.") from error
    return folder


def input_folder(name: str, what: str) -> Path:
    """Return the path of a folder inside ComfyUI's input folder, whether it exists or not.

    ``what`` the folder is, such as "dataset", stands in the message. Raise `BadName` for a name that is a path, and
    for a link that leads out of the input folder.
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
    """Return ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory())


def _check_links(folder: Path, root: Path) -> None:
    """Raise `BadName` for a link that leads out of ``root``. Follow links that stay inside, each folder once."""
    inside = os.path.realpath(root)
    if os.path.realpath(folder) == inside:
        raise BadName(f"{folder} is a link to {root} itself. Remove the link and use a folder of its own.")
    seen: set[str] = set()

    def check(path: str) -> None:
        if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise BadName(f"{readable(path)} is a link that leads out of {root}. Copy what it leads to into its place.")

    check(str(folder))
    for place, folders, files in os.walk(folder, followlinks=True):
        for one in [*folders, *files]:
            check(os.path.join(place, one))
        seen.add(os.path.realpath(place))
        folders[:] = [one for one in folders if os.path.realpath(os.path.join(place, one)) not in seen]


def datasets() -> list[str]:
    """Return the names of the datasets in ComfyUI's input folder, with the priors of the official code."""
    take_up_all(input_root())
    return [one.name for one in _input_folders() if is_file(one / METADATA) or is_file(one / CLASS_METADATA)]


def photo_folders() -> list[str]:
    """Return the names of the folders of photos in ComfyUI's input folder, without datasets."""
    return [
        folder.name
        for folder in _input_folders()
        if not is_file(folder / METADATA) and any(_is_photo(path) for path in entries(folder, shown=False))
    ]


def _is_photo(path: Path) -> bool:
    """Whether a file is a photo, or of a kind that Load Photos reports as not readable. A mask is not a photo."""
    return path.suffix.lower() in (*SUFFIXES, *OTHER_PICTURES) and not path.name.lower().startswith("mask_")


def _input_folders() -> list[Path]:
    every = entries(input_root())
    return [path for path in every if not path.name.startswith(".") and is_folder(path)]


def cache_folder() -> Path:
    """Return the folder for things that can be made again: in ComfyUI's user folder, so that they survive a restart."""
    return Path(folder_paths.get_user_directory()) / "__mudi"
