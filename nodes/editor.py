"""What the layout editor in the browser needs: the subjects' cut-outs, where the node has put them, and the scene."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from PIL import Image

from ..mudi_core.jobs.generate import draw_layout
from ..mudi_core.levels import to_bytes
from .drawing import small
from .sockets import PlacedSubjects

if TYPE_CHECKING:
    from ..mudi_core.stage.cut import CutOut, Pixels
    from ..mudi_core.types import Layout

KEY = "mudi_layout"
"""Of the node's UI output; `web/layout_editor.js` reads it there."""
SHARP = 192
"""Pixels: the copy of a cut-out that is shown is the smallest of at least this longer side."""


def shown(placed: PlacedSubjects, layout: Layout, mode: str) -> dict[str, Any]:
    """Return the node's UI output: the drawn layout, the one that the seed alone gives, and all cut-outs as files."""
    config = placed.config
    assert config.size is not None
    at_random = replace(config, places=None, arrangement="random")
    by_seed = layout if config == at_random else draw_layout(placed.cutouts, at_random, 0, config.size)
    subjects = {
        subject.token: {
            "name": subject.name,
            "photos": [
                {"file": _file_of(cut_out), "aspect": round(cut_out.aspect, 5)}
                for cut_out in placed.cutouts.by_token[subject.token]
            ],
        }
        for subject in placed.cutouts.subjects
    }
    layouts = {"size": config.size, "mode": mode, "drawn": _plain(layout), "by_seed": _plain(by_seed)}
    behind = {} if placed.scene is None else {"scene": _written(to_bytes(small(placed.scene)))}
    return {KEY: [{**layouts, "subjects": subjects, **behind}]}


def _file_of(cut_out: CutOut) -> str:
    return _written(next((copy for copy in reversed(cut_out.sizes) if max(copy.shape) >= SHARP), cut_out.sizes[0]))


def _written(pixels: Pixels) -> str:
    """Write a picture into ComfyUI's temp folder, once, and return the name of the file."""
    digest = hashlib.sha256(pixels.tobytes() + str(pixels.shape).encode()).hexdigest()
    folder = Path(folder_paths.get_temp_directory())
    path = folder / f"mudi_{digest[:16]}.webp"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90, method=0)
    return path.name


def _plain(layout: Layout) -> list[dict[str, Any]]:
    """Return the placements as JSON, from back to front."""
    return [
        {"token": p.token, "box": p.xyxy, "photo": p.photo, "mirror": p.mirror, "rotation": p.rotation}
        for p in layout.placements
    ]
