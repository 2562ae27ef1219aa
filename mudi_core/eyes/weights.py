"""Where the weights of the open models lie: a name becomes a path, and nothing is downloaded unless asked for.

The SHA-256 of a file is checked during the download.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from ..files import forget_halves, whole
from ..lock import claimed, sweep
from ..types import MudiError
from .pins import TABLE, WeightFile, Weights

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "MUDI_MODELS"
BLOCK = 1 << 20
TIMEOUT = 30.0
"""Seconds without data after which a download has failed."""
PAUSE = 0.5
"""Seconds between two checks of a download by another process."""


Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class UnknownWeights(MudiError):
    """A name that is not in the table of weights."""


class MissingWeights(MudiError):
    """Weights that are in none of the folders searched; the sentence names the folder and the link."""


class DownloadFailed(MudiError):
    """A download that failed: no connection, a refusal, a broken connection, or a full disk."""


class WrongHash(MudiError):
    """A downloaded file that is not exactly the pinned one. It is never kept."""


def default_folder() -> Path:
    """Return the folder in the environment variable MUDI_MODELS, or ~/.cache/mudi."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "mudi")


def weights(name: str) -> Weights:
    """Return the entry of this name in `TABLE`. Raise `UnknownWeights` with the names in it."""
    if name not in TABLE:
        raise UnknownWeights(f"No weights are called '{name}'; there are: {', '.join(TABLE)}.")
    return TABLE[name]


def find(wanted: Weights, folders: Sequence[Path]) -> Path | None:
    """Return the path that a model's `load` takes (a file when there is one file, else a folder), or None."""
    for folder in folders:
        for place in (folder / wanted.folder, folder):
            if all((place / file.name).is_file() for file in wanted.files):
                return place / wanted.files[0].name if len(wanted.files) == 1 else place
    return None


def locate(name: str, folders: Sequence[Path] = (), download: bool = False, on_step: Progress | None = None) -> Path:
    """Find the weights called `name` in `folders` (default: `default_folder()`), or download them to the first folder.

    ``on_step``: called with bytes done and bytes in all. Raise `MissingWeights` when they are in no folder and
    `download` is off, `UnknownWeights`, `DownloadFailed` or `WrongHash`.
    """
    wanted, folders = weights(name), list(folders) or [default_folder()]
    for folder in folders:
        place = folder / wanted.folder
        forget_halves(place)
        sweep(lock for file in wanted.files if (lock := place / f".{file.name}.lock").exists())
    found = find(wanted, folders)
    if found is not None:
        return found
    if download:
        return fetch(wanted, folders[0], on_step)
    raise MissingWeights(
        f"The weights '{name}' are not in {' or '.join(map(str, folders))}. {_by_hand(wanted, folders[0])} "
        "Or allow the download."
    )


def fetch(wanted: Weights, folder: Path, on_step: Progress | None = None) -> Path:
    """Download the missing files of `wanted` into its subfolder of `folder`; return the path that `load` takes.

    A file gets its name only when it is complete and its SHA-256 is the pinned one. Raise `MissingWeights` for a file
    without a pin, `DownloadFailed` or `WrongHash`.
    """
    place = folder / wanted.folder
    for file in wanted.files:
        if file.sha256 is None:
            raise MissingWeights(f"{file.name} has no pinned hash, so it is not downloaded. {_by_hand(wanted, folder)}")
        if not (place / file.name).is_file():
            log.info("downloading %s (%.0f MB) from %s", file.name, file.size / 1e6, file.url)
            _download(file, place, _by_hand(wanted, folder), on_step)
    return place / wanted.files[0].name if len(wanted.files) == 1 else place


def _by_hand(wanted: Weights, folder: Path) -> str:
    links = " and ".join(file.url for file in wanted.files)
    return f"Download {links} ({wanted.megabytes} MB; about them: {wanted.page}) into {folder / wanted.folder}."


def _download(file: WeightFile, place: Path, by_hand: str, on_step: Progress | None) -> None:
    """Download a file, or wait for another process that is downloading it."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        while not (place / file.name).is_file():
            with claimed(place / f".{file.name}.lock") as ours:
                if ours and not (place / file.name).is_file():
                    _receive(file, place, on_step)
            if not ours:
                time.sleep(PAUSE)
                if on_step is not None:
                    on_step(0, file.size)
    except (OSError, HTTPException) as error:  # urllib's URLError is an OSError, and so is a full disk
        raise DownloadFailed(f"{file.name} could not be downloaded to {place}: {error}. {by_hand}") from error


def _receive(file: WeightFile, place: Path, on_step: Progress | None) -> None:
    digest, done = hashlib.sha256(), 0
    with whole(place / file.name) as part:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT) as source, part.open("wb") as target:
            expected = int(source.headers.get("Content-Length") or file.size)
            while block := source.read(BLOCK):
                target.write(block)
                digest.update(block)
                done += len(block)
                if done > file.size:
                    break  # too many bytes: it is another file
                if on_step is not None:
                    on_step(done, expected)
        if done < expected:
            raise DownloadFailed(f"The download of {file.name} broke off after {done} of {expected} bytes. Try again.")
        if digest.hexdigest() != file.sha256:
            raise WrongHash(
                f"{file.url} is not the file that this version expects: the SHA-256 of its first {done} bytes is "
                f"{digest.hexdigest()}, expected are {file.size} bytes and {file.sha256}. The file was not kept. "
                "Either the host or something on the way has changed it."
            )
