"""The pictures that nodes show of their work: boxes on a photo, a cut-out before its faded photo, a score card."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps
from torch.nn import functional

from ..mudi_core.levels import to_bytes
from ..mudi_core.masks import resize
from ..mudi_core.report.statistics import running_mean

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.jobs.previews import Preview
    from ..mudi_core.types import Comparison

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SIDE = 512
"""Pixels of a preview's longer side, at most."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#a5aa99", "#e68310", "#008695")
"""Colour-blind people can tell them apart, too. After the last the first is used again."""
STATUS = {"found": "#1b7837", "unlike": "#7d7a1c", "mixed": "#b35806", "missing": "#b2182b", "duplicated": "#b2182b"}
GAP = 16
CARD_LETTERS = 96
"""Longest line of what a card says."""
GRID_GAP = 4
CURVE_SIZE, CURVE_MARGINS = (640, 320), (64, 16, 24, 40)
WINDOWS, SHORTEST_WINDOW = 20, 5
"""So many windows of the running mean are as long as a run; and steps in one, at least."""
CURVE_DOTS = 400
"""Single losses that are drawn, at most."""
PALE, GREY = "#c9d6ea", "#777777"


def small(image: Tensor) -> Tensor:
    """Return a picture ``[h, w, 3]`` with at most `SIDE` pixels on each side."""
    picture = pil(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _tensor(picture)


def boxed(image: Tensor, xyxy: Tensor, captions: Sequence[str]) -> Tensor:
    """Draw boxes ``[n, 4]`` (pixels of the original) on a copy of `SIDE` pixels, each with a caption."""
    return _tensor(_boxed(image, xyxy, captions, COLOURS, SIDE))


def cut_out(image: Tensor, mask: Tensor) -> Tensor:
    """Return a small copy of a picture, faded outside the mask ``[h, w]``, 0..1."""
    shown = small(image)
    share = resize(mask.float(), (shown.shape[1], shown.shape[0]))[..., None]
    return shown * share + (0.2 * shown + 0.8) * (1 - share)


def score_card(image: Tensor, comparison: Comparison, title: str, warnings: Sequence[str] = ()) -> Tensor:
    """Draw a card: picture, both similarity matrices, warnings, verdicts, then the score and what it means."""
    from ..mudi_core.score.compare import ANCHORS

    font, large = ImageFont.load_default(14), ImageFont.load_default(20)
    names = [_short(token, 12) for token in comparison.tokens]
    figures = [str(number) for number in range(1, len(comparison.detections) + 1)]
    owners = [COLOURS[i % len(COLOURS)] for i in range(len(figures))] if comparison.count_is_right else ["#555555"]
    picture = _boxed(image, comparison.detections.xyxy, figures, owners, 360)

    left = _matrix(comparison.s_gt, "the subjects' photos", names, names, font)
    right = _matrix(comparison.s_dc, "the figures in this picture", figures, names, font)
    said = [(comparison.reason, "black"), *((one.text, STATUS[one.status]) for one in comparison.verdicts)]
    said = [*((warning, "black") for warning in warnings), *said, (f"Score {comparison.score:.2f}. {ANCHORS}", GREY)]
    lines = [(line, colour) for words, colour in said for line in textwrap.wrap(words, CARD_LETTERS)]
    text_width = int(max(large.getlength(title), *(font.getlength(line) for line, _ in lines)))
    x = picture.width + 2 * GAP
    top = GAP + 20 + GAP
    below = top + max(left.height, right.height) + GAP
    width = x + max(left.width + GAP + right.width, text_width) + GAP
    height = max(below + 22 * len(lines), picture.height + GAP) + GAP

    card = Image.new("RGB", (width, height), "white")
    card.paste(picture, (GAP, GAP))
    card.paste(left, (x, top))
    card.paste(right, (x + left.width + GAP, top))
    pen = ImageDraw.Draw(card)
    pen.text((x, GAP), title, "black", large)
    for number, (line, colour) in enumerate(lines):
        pen.text((x, below + 22 * number), line, colour, font)
    return _tensor(card)


def stacked(cards: Sequence[Tensor]) -> list[Tensor]:
    """Fill pictures up with white at the right and the bottom, so that all have one size."""
    height, width = (max(card.shape[side] for card in cards) for side in (0, 1))
    canvases = torch.ones(len(cards), height, width, 3)
    for canvas, card in zip(canvases, cards, strict=True):
        canvas[: card.shape[0], : card.shape[1]] = card
    return list(canvases)


def grid(images: Sequence[Tensor], columns: int) -> Tensor:
    """Put pictures of one size in rows of ``columns``, with grey between them."""
    height, width = (side + GRID_GAP for side in images[0].shape[:2])
    rows = -(-len(images) // columns)
    sheet = torch.full((rows * height - GRID_GAP, columns * width - GRID_GAP, 3), 0.5)
    for number, image in enumerate(images):
        y, x = number // columns * height, number % columns * width
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def loss_curve(losses: Sequence[float], steps: int) -> Tensor:
    """Draw the losses so far over all ``steps`` of the run: pale dots for single steps, and a line for their running
    mean, since one loss alone says little. The axis begins at 0, or lower where DCO with priors goes below it."""
    picture = Image.new("RGB", CURVE_SIZE, "white")
    (width, height), (left, top, right, bottom) = CURVE_SIZE, CURVE_MARGINS
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    window = min(steps, max(SHORTEST_WINDOW, round(steps / WINDOWS)))
    curve = running_mean(losses, window)
    # A few steps far from all others shall not press the rest flat; the last mean is always in the picture.
    least, most = (sorted(losses)[int(share * (len(losses) - 1))] for share in (0.03, 0.97))
    low, high = min(0.0, 1.1 * min(least, curve[-1])), 1.1 * max(most, curve[-1], 0.0) or 1.0

    def x(step: float) -> float:
        return left + step / steps * (width - left - right)

    def y(loss: float) -> float:
        return top + (high - min(max(loss, low), high)) / (high - low) * (height - top - bottom)

    for share in (0.0, 0.5, 1.0):
        level = low + share * (high - low)
        pen.line((left, y(level), width - right, y(level)), "#dddddd")
        pen.text((left - 8, y(level)), f"{level:.3g}", "#444444", font, anchor="rm")
        pen.text((x(share * steps), height - bottom + 8), f"{round(share * steps)}", "#444444", font, anchor="mt")
    for i in range(0, len(losses), max(1, len(losses) // CURVE_DOTS)):
        at = x(i + 0.5), y(losses[i])
        pen.ellipse((at[0] - 1.5, at[1] - 1.5, at[0] + 1.5, at[1] + 1.5), PALE)
    points = [(x(i + 0.5), y(loss)) for i, loss in enumerate(curve)]
    pen.line(points, COLOURS[0], width=3, joint="curve")
    last = points[-1]
    pen.ellipse((last[0] - 4, last[1] - 4, last[0] + 4, last[1] + 4), COLOURS[0])
    words = f"loss (mean of the last {window} steps): {curve[-1]:.3g}"
    pen.text((width - right, top), words, "#444444", font, anchor="rt")
    return _tensor(picture)


def preview_sheet(preview: Preview, title: str) -> Tensor:
    """Draw a training's preview: a row for each start, whose name is on it, a picture for each seed with its score,
    and the mean scores above."""
    from ..mudi_core.jobs.previews import STARTS

    font, rows = ImageFont.load_default(14), []
    for start, row in preview.pictures.items():
        scores = preview.scores[start]
        words = [f"{STARTS[start]}, {scores[0]:.2f}", *(f"{score:.2f}" for score in scores[1:])]
        rows.append([_labelled(picture, said, font) for picture, said in zip(row, words, strict=True)])
    sheet = pil(grid([picture for row in rows for picture in row], len(rows[0])))
    head = f"{title}: {preview.words}"
    whole = Image.new("RGB", (max(sheet.width, round(font.getlength(head)) + GAP), sheet.height + 2 * GAP), "white")
    ImageDraw.Draw(whole).text((GAP // 2, GAP // 2), head, "black", font)
    whole.paste(sheet, (0, 2 * GAP))
    return _tensor(whole)


def _labelled(image: Tensor, words: str, font: Font) -> Tensor:
    """Return a small copy of a picture with words on white under it."""
    picture = pil(small(image))
    whole = Image.new("RGB", (picture.width, picture.height + 2 * GAP), "white")
    whole.paste(picture)
    ImageDraw.Draw(whole).text((GAP // 2, picture.height + GAP // 2), words, "black", font)
    return _tensor(whole)


def column(pictures: Sequence[Tensor]) -> Tensor:
    """Put pictures one above the other, filled up with white at the right."""
    width = max(picture.shape[1] for picture in pictures)
    return torch.cat([functional.pad(one, (0, 0, 0, width - one.shape[1]), value=1.0) for one in pictures])


def _boxed(image: Tensor, xyxy: Tensor, captions: Sequence[str], colours: Sequence[str], side: int) -> Image.Image:
    picture = ImageOps.contain(pil(image), (side, side), Image.Resampling.LANCZOS)
    scale = picture.width / image.shape[1]
    line = max(2, round(max(picture.size) / 160))
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(12, round(max(picture.size) / 28)))
    for number, (box, caption) in enumerate(zip((xyxy * scale).tolist(), captions, strict=True)):
        colour = colours[number % len(colours)]
        pen.rectangle(box, outline=colour, width=line)
        ground = pen.textbbox((box[0], box[1]), caption, font)
        pen.rectangle((ground[0], ground[1], ground[2] + 6, ground[3] + 6), fill=colour)
        pen.text((box[0] + 3, box[1] + 2), caption, "white", font)
    return picture


def _matrix(values: Tensor, title: str, rows: Sequence[str], columns: Sequence[str], font: Font) -> Image.Image:
    """Draw similarities as a heat map with names at its top and left. Darker is more alike."""
    cell = max(26, min(64, 264 // max(len(rows), len(columns), 1)))
    margin = int(max((font.getlength(name) for name in rows), default=0)) + 8
    slanted = max(font.getlength(name) for name in columns) > cell
    head = 20 + (int(max(font.getlength(name) for name in columns)) + 6 if slanted else 20)
    size = (
        int(max(margin + cell * len(columns), font.getlength(title))) + 1,
        head + cell * max(len(rows), 1),
    )
    drawn = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(drawn)
    pen.text((0, 0), title, "#555555", font)
    for j, name in enumerate(columns):
        _column_name(drawn, name, (margin + cell * j, head), cell, slanted, font)
    for i, name in enumerate(rows):
        pen.text((0, head + cell * (i + 0.5)), name, "black", font, anchor="lm")
        for j in range(len(columns)):
            value = float(values[i, j])
            depth = min(max(value, 0.0), 1.0)
            ground = tuple(round(242 - depth * (242 - end)) for end in ImageColor.getrgb("#08306b"))
            x, y = margin + cell * j, head + cell * i
            pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=ground, outline="white")
            ink = "white" if depth > 0.5 else "black"
            pen.text((x + cell / 2, y + cell / 2), f"{value:.2f}".replace("0.", "."), ink, font, anchor="mm")
    if not rows:
        pen.text((0, head), "no figure was found", "#b2182b", font)
    return drawn


def _column_name(drawn: Image.Image, name: str, corner: tuple[int, int], cell: int, upright: bool, font: Font) -> None:
    """Write a name above a column, turned by 90 degrees where the column is too narrow for it."""
    x, bottom = corner
    if not upright:
        ImageDraw.Draw(drawn).text((x + cell / 2, bottom - 4), name, "black", font, anchor="mb")
        return
    word = Image.new("RGB", (int(font.getlength(name)) + 1, 20), "white")
    ImageDraw.Draw(word).text((0, 0), name, "black", font)
    word = word.rotate(90, expand=True)
    drawn.paste(word, (x + (cell - word.width) // 2, bottom - 4 - word.height))


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


def pil(image: Tensor) -> Image.Image:
    """Return a picture ``[h, w, 3]``, 0..1, as a Pillow image."""
    return Image.fromarray(to_bytes(image))


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
