"""Pictures on disk: PNGs that say how they were made, and a list of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..files import whole
from ..stage.layout_text import photo_number
from ..types import Layout, MudiError
from .generate import GenerateConfig, Picture

SIDECAR = "generate.json"


class CannotWritePictures(MudiError):
    """A folder that pictures cannot be written to."""


class PictureFolder:
    """Write pictures as they come: PNGs that say how they were made, and `generate.json` beside them."""

    def __init__(self, folder: Path, config: GenerateConfig, origin: Mapping[str, str]) -> None:
        """Make the folder. ``origin``: what else the pictures depend on, such as base model and LoRA, by name.

        Raise `CannotWritePictures`.
        """
        self.folder = folder
        self.settings: dict[str, Any] = {
            **origin,
            "prompt": config.prompt,
            "negative_prompt": config.negative_prompt,
            "seed": config.seed,
            "gamma": config.gamma,
            "steps": config.steps,
            "guidance": config.guidance,
        }
        self.written: list[dict[str, Any]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write_sidecar()
        except OSError as error:
            raise CannotWritePictures(_cannot_write(folder, error)) from error

    def add(self, picture: Picture) -> Path:
        """Write one picture and the list of all so far; return its path. Raise `CannotWritePictures`."""
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        height, width = picture.image.shape[:2]
        path = self.folder / f"{picture.seed}-{picture.number:03d}.png"
        about = {"file": path.name, "number": picture.number, "size": [width, height], "layout": _plain(picture.layout)}
        info = PngInfo()
        info.add_text("mudi", json.dumps({**self.settings, **about}))
        levels = (picture.image * 255).round().to(torch.uint8).numpy()
        try:
            Image.fromarray(levels).save(path, pnginfo=info)
            self.written.append(about)
            self._write_sidecar()
        except OSError as error:
            raise CannotWritePictures(_cannot_write(self.folder, error)) from error
        return path

    def _write_sidecar(self) -> None:
        text = json.dumps({**self.settings, "pictures": self.written}, indent=1) + "\n"
        with whole(self.folder / SIDECAR) as part:
            part.write_text(text, encoding="utf-8")


def _plain(layout: Layout) -> list[dict[str, Any]]:
    return [
        {
            "token": p.token,
            "xyxy": [round(value, 4) for value in p.xyxy],
            "photo": photo_number(p.photo),
            "mirror": p.mirror,
            "rotation": round(p.rotation, 2),
        }
        for p in layout.placements
    ]


def _cannot_write(folder: Path, error: OSError) -> str:
    return f"Pictures cannot be written to {folder}: {error.strerror or error}. Choose another folder with --out."
