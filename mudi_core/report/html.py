"""Pieces of one-file pages: the frame, pictures that contain their own bytes, a picture with its verdicts."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from ..types import Comparison

STYLE = Path(__file__).parent / "page.css"
SIGNS = {"found": "✓", "unlike": "~", "mixed": "≈", "missing": "–", "duplicated": "×2"}


def frame(title: str, body: str) -> str:
    """Return a whole HTML file. ``title`` is text, ``body`` is markup."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def scored(pixels: Tensor, comparison: Comparison, photo: bool = False, side: int | None = None) -> str:
    """Return a picture (see `image`) with its score, a verdict for each subject, and its boxes.

    The boxes show when the mouse is over the picture.
    """
    height, width = pixels.shape[:2]
    boxes = ""
    for x0, y0, x1, y1 in comparison.detections.xyxy.tolist():
        place = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
        boxes += f'<rect class="under" {place}/><rect {place}/>'
    pills = "".join(
        f'<span class="pill {v.status}" title="{escape(v.text)}">{SIGNS[v.status]} {escape(v.token)}'
        f"{'' if v.status == 'missing' else f' {v.share:.0%}'}</span>"
        for v in comparison.verdicts
    )
    if comparison.reason:
        expected = f"{comparison.figures}, {len(comparison.tokens)} expected"
        pills = f'<span class="pill missing" title="{escape(comparison.reason)}">{expected}</span>{pills}'
    words = " ".join([comparison.reason, *(verdict.text for verdict in comparison.verdicts)]).strip()
    overlay = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{boxes}</svg>'
    return (
        f'<figure><div class="picture">{image(pixels, words, photo, side)}{overlay}</div>'
        f'<div class="result"><b>{comparison.score:.2f}</b>{pills}</div></figure>'
    )


def image(pixels: Tensor | np.ndarray[Any, Any], words: str, photo: bool = False, side: int | None = None) -> str:
    """Return an ``<img>`` that contains its own bytes: JPEG for photos, else PNG, enlarged without blur.

    ``pixels``: float ``[h, w, 3]``, 0..1, or uint8. ``side``: make the picture smaller until no side is longer than
    this.
    """
    levels = pixels if isinstance(pixels, np.ndarray) else (pixels.numpy() * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(levels)
    if side is not None:
        picture.thumbnail((side, side))
    if photo:
        picture.save(buffer, "JPEG", quality=88)
    else:
        picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = "jpeg" if photo else "png"
    crisp = "" if photo else ' class="crisp"'
    return f'<img{crisp} src="data:image/{kind};base64,{data}" alt="{escape(words)}">'
