"""Pictures that were tried, in a folder: a line for each with its score and seed, and those to keep as PNGs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import whole
from ..subjects.picture_file import BadPhoto, read_photo
from ..types import MudiError
from .best_pictures import Tried

LIST = "pictures.jsonl"


class CannotWriteShelf(MudiError):
    """A folder that pictures cannot be written to."""


class FolderShelf:
    """A `best_pictures.Shelf` that another process can go on with after this one has ended anywhere."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, or read what is there. Raise `CannotWriteShelf`."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = (folder / LIST).read_text(encoding="utf-8") if (folder / LIST).exists() else ""
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._there = {one.number: one for one in map(self._read, text.splitlines()) if one is not None}
        self._whole_lines(text)
        self.begun = len(self._there)

    def get(self, number: int, prompt: str, seed: int) -> Tried | None:
        """Return what came of a picture; None where it was not tried, or its file is gone."""
        one = self._there.get(number)
        if one is None or (one.prompt, one.seed) != (prompt, seed):
            return None
        return one if one.path is None or one.path.is_file() else None

    def add(self, one: Tried, keep: bool) -> Tried:
        """Write the picture where it is to be kept, and then its line. Raise `CannotWriteShelf`."""
        path = self.folder / f"{one.number:04d}.png" if keep else None
        try:
            if path is not None:
                assert one.image is not None
                _write(path, one.image)
            kept = replace(one, image=None, path=path)
            with (self.folder / LIST).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(_row(kept)) + "\n")
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._there[one.number] = kept
        return kept

    def image(self, one: Tried) -> Tensor:
        """Read a picture that was kept. Raise `BadPhoto`."""
        if one.path is None:
            raise BadPhoto(f"Picture {one.number} of {self.folder} was not kept.")
        return read_photo(self.folder / one.path.name).image

    def move(self, folder: Path) -> None:
        """Give the folder another name, which none has, on the same disk. Raise `CannotWriteShelf`."""
        try:
            self.folder.rename(folder)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self.folder = folder

    def _read(self, line: str) -> Tried | None:
        """Return a line's picture; None for one that a killed process or another hand left."""
        try:
            row = json.loads(line)
            boxes = tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in row["boxes"])
            numbers = (int(row["number"]), str(row["prompt"]), int(row["seed"]))
            path = self.folder / f"{numbers[0]:04d}.png" if row["file"] else None
            return Tried(*numbers, float(row["score"]), len(boxes), int(row["themselves"]), boxes, None, path)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _whole_lines(self, text: str) -> None:
        """Write the list anew where its last line was cut off, so that the next one begins on its own."""
        if text and not text.endswith("\n"):
            try:
                with whole(self.folder / LIST) as part:
                    rows = (json.dumps(_row(one)) + "\n" for one in self._there.values())
                    part.write_text("".join(rows), encoding="utf-8")
            except OSError as error:
                raise cannot_write(self.folder, error) from error


def cannot_write(folder: Path, error: OSError) -> CannotWriteShelf:
    """Return what to raise for a folder of pictures that cannot be written."""
    return CannotWriteShelf(
        f"Pictures cannot be written to {folder}: {error.strerror or error}. Make room there and start the same again: "
        "it goes on with what is there."
    )


def _row(one: Tried) -> dict[str, Any]:
    return {
        "number": one.number,
        "prompt": one.prompt,
        "seed": one.seed,
        "score": one.score,
        "themselves": one.themselves,
        "boxes": [list(box) for box in one.boxes],
        "file": None if one.path is None else one.path.name,
    }


def _write(path: Path, image: Tensor) -> None:
    from PIL import Image

    levels = (image.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    with whole(path) as part:
        Image.fromarray(levels).save(part, format="PNG")
