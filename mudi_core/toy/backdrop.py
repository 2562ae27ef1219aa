"""Backgrounds of the toy world: a few large, flat shapes whose tones and places vary with a seed."""

from __future__ import annotations

import random

import numpy as np

BACKGROUNDS = ("beach", "meadow", "desert", "snow", "night", "room", "studio", "white")
RGB = tuple[int, int, int]
_PAPERS = ((244, 214, 206), (206, 226, 244), (214, 236, 214), (246, 236, 200), (226, 214, 240), (214, 214, 218))


def paint_background(kind: str, seed: int, width: int, height: int) -> np.ndarray:
    """Return uint8 ``[height, width, 3]``, RGB; the same seed gives the same picture at every size."""
    rng = random.Random(f"{kind}-{seed}")
    return _PAINTERS[kind](rng, width, height)


def _near(rng: random.Random, color: RGB, spread: int = 10) -> RGB:
    r, g, b = (max(0, min(255, c + rng.randint(-spread, spread))) for c in color)
    return r, g, b


def _fade(width: int, height: int, top: RGB, bottom: RGB) -> np.ndarray:
    import cv2

    t = np.linspace(0, 1, height)[:, None]
    rows = np.round(np.array(top) * (1 - t) + np.array(bottom) * t).astype(np.uint8)
    return cv2.resize(rows[:, None], (width, height), interpolation=cv2.INTER_NEAREST)


def _below(canvas: np.ndarray, level: float, swing: float, phase: float, color: RGB, waves: float = 1.0) -> None:
    """Fill everything under a gentle wave; level and swing are fractions of the height."""
    import cv2

    h, w = canvas.shape[:2]
    x = np.linspace(0, 1, 33)
    y = level + swing * np.sin(2 * np.pi * (waves * x + phase))
    points = np.stack([x * w, y * h], 1).round().astype(np.int32)
    cv2.fillPoly(canvas, [np.vstack([points, ((w, h), (0, h))]).astype(np.int32)], color)


def _disc(canvas: np.ndarray, x: float, y: float, rx: float, ry: float, color: RGB) -> None:
    """Draw an ellipse; x in widths, y and the radii in heights."""
    import cv2

    h, w = canvas.shape[:2]
    radii = (max(1, round(rx * h)), max(1, round(ry * h)))
    cv2.ellipse(canvas, (round(x * w), round(y * h)), radii, 0, 0, 360, color, -1)


def _box(canvas: np.ndarray, x0: float, y0: float, x1: float, y1: float, color: RGB) -> None:
    import cv2

    h, w = canvas.shape[:2]
    cv2.rectangle(canvas, (round(x0 * w), round(y0 * h)), (round(x1 * w), round(y1 * h)), color, -1)


def _cloud(canvas: np.ndarray, x: float, y: float, color: RGB) -> None:
    for dx, dy, r in ((-0.08, 0.015, 0.05), (0.0, -0.01, 0.07), (0.08, 0.015, 0.05)):
        _disc(canvas, x + dx, y + dy, r * 1.3, r, color)


def _beach(rng: random.Random, w: int, h: int) -> np.ndarray:
    canvas = _fade(w, h, _near(rng, (116, 196, 246)), _near(rng, (206, 238, 252)))
    sea = rng.uniform(0.42, 0.55)
    _disc(canvas, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.22), 0.09, 0.09, (255, 226, 110))
    _below(canvas, sea, 0, 0, _near(rng, (54, 156, 204)))
    shore, phase = sea + rng.uniform(0.1, 0.16), rng.random()
    _below(canvas, shore - 0.025, 0.02, phase, (232, 248, 250))
    _below(canvas, shore, 0.02, phase, _near(rng, (246, 222, 164)))
    return canvas


def _meadow(rng: random.Random, w: int, h: int) -> np.ndarray:
    canvas = _fade(w, h, _near(rng, (130, 200, 250)), _near(rng, (212, 238, 254)))
    for _ in range(rng.randint(1, 2)):
        _cloud(canvas, rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.24), (255, 255, 255))
    level = rng.uniform(0.5, 0.6)
    _below(canvas, level, 0.04, rng.random(), _near(rng, (158, 212, 118)), 0.8)
    _below(canvas, level + 0.1, 0.03, rng.random(), _near(rng, (122, 190, 92)), 0.7)
    return canvas


def _desert(rng: random.Random, w: int, h: int) -> np.ndarray:
    canvas = _fade(w, h, _near(rng, (252, 192, 118)), _near(rng, (255, 232, 190)))
    level = rng.uniform(0.5, 0.6)
    _disc(canvas, rng.uniform(0.1, 0.9), rng.uniform(0.15, 0.3), 0.1, 0.1, (255, 246, 208))
    _below(canvas, level, 0.05, rng.random(), _near(rng, (236, 168, 104)), 0.7)
    x, green = rng.choice((0.12, 0.88)), _near(rng, (92, 154, 96))
    _box(canvas, x - 0.028, level - 0.16, x + 0.028, level + 0.1, green)
    _disc(canvas, x, level - 0.16, 0.028, 0.03, green)
    _box(canvas, x - 0.08, level - 0.05, x + 0.08, level - 0.01, green)
    for side in (-0.08, 0.08):
        _box(canvas, x + side - 0.02, level - 0.11, x + side + 0.02, level - 0.01, green)
    _below(canvas, level + 0.1, 0.03, rng.random(), _near(rng, (222, 146, 86)), 0.8)
    return canvas


def _snow(rng: random.Random, w: int, h: int) -> np.ndarray:
    import cv2

    canvas = _fade(w, h, _near(rng, (168, 196, 222)), _near(rng, (214, 228, 240)))
    level = rng.uniform(0.5, 0.6)
    _below(canvas, level, 0.04, rng.random(), (226, 234, 244), 0.8)
    for x in (rng.uniform(0.05, 0.3), rng.uniform(0.7, 0.95)):
        for lift, reach in ((0.0, 0.11), (0.1, 0.085), (0.19, 0.06)):
            base = level + 0.06 - lift
            tree = np.array(((x - reach, base), (x + reach, base), (x, base - 0.15))) * (w, h)
            cv2.fillConvexPoly(canvas, tree.round().astype(np.int32), (92, 148, 136))
    _below(canvas, level + 0.07, 0.02, rng.random(), _near(rng, (242, 246, 250), 4), 0.7)
    return canvas


def _night(rng: random.Random, w: int, h: int) -> np.ndarray:
    canvas = _fade(w, h, _near(rng, (30, 36, 92)), _near(rng, (72, 74, 146)))
    moon = rng.uniform(0.12, 0.88)
    _disc(canvas, moon, 0.17, 0.1, 0.1, (255, 244, 200))
    for _ in range(4):
        x, y = rng.uniform(0.04, 0.96), rng.uniform(0.05, 0.42)
        if abs(x - moon) > 0.15:
            _disc(canvas, x, y, 0.014, 0.014, (236, 232, 190))
    level = rng.uniform(0.55, 0.65)
    _below(canvas, level, 0.04, rng.random(), _near(rng, (50, 60, 112), 6), 0.8)
    _below(canvas, level + 0.1, 0.03, rng.random(), _near(rng, (40, 52, 92), 6), 0.7)
    return canvas


def _room(rng: random.Random, w: int, h: int) -> np.ndarray:
    wall = _near(rng, rng.choice(((238, 212, 196), (206, 218, 232), (220, 206, 232), (208, 226, 204))), 8)
    canvas = _fade(w, h, wall, wall)
    floor = rng.uniform(0.62, 0.7)
    x, y = rng.choice((rng.uniform(0.06, 0.2), rng.uniform(0.55, 0.68))), rng.uniform(0.07, 0.13)
    _box(canvas, x, y, x + 0.28, y + 0.3, (252, 250, 246))
    for i in (0, 1):
        _box(canvas, x + 0.03 + 0.125 * i, y + 0.03, x + 0.125 + 0.125 * i, y + 0.27, (158, 212, 240))
    _below(canvas, floor, 0, 0, _near(rng, (204, 158, 116)))
    _below(canvas, floor - 0.035, 0, 0, (250, 246, 238))
    _below(canvas, floor, 0, 0, _near(rng, (204, 158, 116)))
    _disc(canvas, 0.5, 0.86, 0.42, 0.1, _near(rng, rng.choice(((196, 104, 100), (110, 140, 180), (230, 206, 160)))))
    return canvas


def _studio(rng: random.Random, w: int, h: int) -> np.ndarray:
    top = _near(rng, rng.choice(_PAPERS), 8)
    canvas = _fade(w, h, top, top)
    r, g, b = (int(c * 0.95) for c in top)
    _below(canvas, 0.72, 0, 0, (r, g, b))
    return canvas


def _white(rng: random.Random, w: int, h: int) -> np.ndarray:
    tone = rng.randint(240, 253)
    return np.full((h, w, 3), tone, np.uint8)


_PAINTERS = dict(zip(BACKGROUNDS, (_beach, _meadow, _desert, _snow, _night, _room, _studio, _white), strict=True))
