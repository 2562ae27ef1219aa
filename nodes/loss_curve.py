"""A training's losses as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..mudi_core.demo.statistics import smoothed

SIZE = (640, 320)
POINTS = 60
LEFT, TOP, RIGHT, BOTTOM = 64, 16, 24, 40
INK, GRID, CURVE = "#444444", "#dddddd", "#0072b2"


def loss_curve(losses: Sequence[float], steps: int) -> Image.Image:
    """Means of equal stretches of the losses so far, over all ``steps`` of the run: one loss alone says little."""
    picture = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    curve = smoothed(losses, POINTS)
    low, high = min(curve), max(curve)
    room = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room

    def x(step: float) -> float:
        return LEFT + step / steps * (SIZE[0] - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - loss) / (high - low) * (SIZE[1] - TOP - BOTTOM)

    for share in (0.0, 0.5, 1.0):
        level = low + share * (high - low)
        pen.line((LEFT, y(level), SIZE[0] - RIGHT, y(level)), GRID)
        pen.text((LEFT - 8, y(level)), f"{level:.3g}", INK, font, anchor="rm")
        pen.text((x(share * steps), SIZE[1] - BOTTOM + 8), f"{round(share * steps)}", INK, font, anchor="mt")
    pen.text((SIZE[0] - RIGHT, TOP), "loss over steps", INK, font, anchor="rt")
    width = len(losses) / len(curve)
    points = [(x((i + 0.5) * width), y(loss)) for i, loss in enumerate(curve)]
    if len(points) > 1:
        pen.line(points, CURVE, width=3, joint="curve")
    last = points[-1]
    pen.ellipse((last[0] - 4, last[1] - 4, last[0] + 4, last[1] + 4), CURVE)
    return picture
