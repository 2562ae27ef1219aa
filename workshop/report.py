"""`python -m workshop.report [--json] [--out DIR]`: the quality of the embedded family on what it never saw.

Prints a table, paints what was measured, and exits with 1 when a figure misses its goal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mudi_core.types import MudiError

from . import figures, pictures
from .figures import Figure

Pixels = NDArray[Any]
BOX = (236, 60, 60)
GAP = 4


def measure() -> list[Figure]:
    """Return every figure, in the order of the table."""
    return [
        figures.vae_psnr(),
        figures.identity_lost_by_vae(),
        pictures.captions_followed(),
        pictures.captions_of_three_followed(),
        figures.detection(),
        *figures.everybody_found(),
        *figures.segmentation(),
        figures.identity_top_1(),
        *figures.told_apart(),
        pictures.seconds_of_picture(),
        pictures.seconds_of_lora(),
    ]


def table(measured: Sequence[Figure]) -> str:
    """Return the figures in Markdown."""
    lines = ["| figure | measured | wanted | | |", "|---|---|---|---|---|"]
    for f in measured:
        sign = "at least" if f.at_least else "at most"
        note = ", ".join(part for part in (f"{f.samples} samples" if f.samples > 1 else "", f.note) if part)
        digits = 3 if not f.unit else 1
        met = "yes" if f.met else "**missed**"
        lines.append(f"| {f.name} | {f.value:.{digits}f} {f.unit} | {sign} {f.bound:g} {f.unit} | {met} | {note} |")
    return "\n".join(lines)


def as_json(measured: Sequence[Figure]) -> str:
    return json.dumps([{**asdict(f), "met": f.met} for f in measured], indent=1)


def levels(image: Tensor) -> Pixels:
    """Return a float picture as uint8, in new memory."""
    drawn: Pixels = (image * 255).round().clamp(0, 255).to(torch.uint8).numpy().copy()
    return drawn


def boxed(image: Tensor, xyxy: Tensor) -> Pixels:
    """Return a picture at twice its size with boxes on it."""
    drawn = cv2.resize(levels(image), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    for x0, y0, x1, y1 in (xyxy * 2).round().int().tolist():
        cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), BOX, 2)
    return drawn


def sheet(tiles: Sequence[Pixels], columns: int) -> Pixels:
    """Put pictures of one size side by side, row by row."""
    h, w = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    page: Pixels = np.full((rows * (h + GAP) - GAP, columns * (w + GAP) - GAP, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (h + GAP), i % columns * (w + GAP)
        page[y : y + h, x : x + w] = tile
    return page


def draw_reconstructions() -> Pixels:
    """Held-out scenes, and below each what the VAE gives back."""
    images = torch.stack([figures.pixels(r) for r in figures.held_out(8)])
    none = torch.zeros(0, 4)
    tiles = [boxed(image, none) for image in (*images, *figures.reconstructed(images))]
    return sheet(tiles, 8)


def draw_captions(painted: Sequence[pictures.Captioned]) -> Pixels:
    """Pictures of captions with what the detector found; red frames where the answer is not what was asked for."""
    tiles = []
    for picture in painted[:24]:
        tile = boxed(picture.image, picture.xyxy)
        if not picture.right:
            cv2.rectangle(tile, (0, 0), (tile.shape[1] - 1, tile.shape[0] - 1), BOX, 8)
        asked = " + ".join(f"{color} {species}" for species, color in picture.wanted)
        strip = np.full((26, tile.shape[1], 3), 255, np.uint8)
        cv2.putText(strip, asked, (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
        tiles.append(np.vstack([tile, strip]))
    return sheet(tiles, 6)


def draw_detections() -> Pixels:
    """Held-out scenes with detected boxes and the masks of what stands in them: all else is pale."""
    tiles = []
    for rendered in figures.held_out(16):
        image = figures.pixels(rendered)
        found = figures.detector()(image, ["character"], figures.THRESHOLD).xyxy
        inside = figures.segmenter()(image, found).amax(0) if len(found) else torch.zeros(image.shape[:2])
        tiles.append(boxed(image * (0.3 + 0.7 * inside[..., None]) + 0.7 * (1 - inside[..., None]), found))
    return sheet(tiles, 8)


def draw(folder: Path, flux: int | None = None) -> None:
    """Write the pictures behind the figures; ``flux``: behind that of the mini FLUX alone, on so many captions."""
    painted = pictures.captioned_by_flux(flux) if flux else pictures.captioned()
    drawings = {"captions": draw_captions(painted)}
    if not flux:
        drawings |= {"reconstructions": draw_reconstructions(), "detections": draw_detections()}
    for name, drawn in drawings.items():
        cv2.imwrite(str(folder / f"{name}.png"), drawn[..., ::-1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workshop.report", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="folder for report.md, report.json and pictures of what was measured")
    parser.add_argument("--flux", type=int, metavar="COUNT", help="measure the mini FLUX alone, on so many captions")
    options = parser.parse_args(arguments)
    try:
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
        measured = [pictures.captions_followed_by_flux(options.flux)] if options.flux else measure()
        if options.out:
            (options.out / "report.md").write_text(table(measured) + "\n", encoding="utf-8")
            (options.out / "report.json").write_text(as_json(measured) + "\n", encoding="utf-8")
            draw(options.out, options.flux)
    except (MudiError, OSError) as error:
        print(f"The report was not made: {error}", file=sys.stderr)
        return 2
    print(as_json(measured) if options.json else table(measured))
    return 0 if all(f.met for f in measured) else 1


if __name__ == "__main__":
    raise SystemExit(main())
