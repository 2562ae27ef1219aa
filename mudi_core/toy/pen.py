"""A pen for toys: colours, rounded outlines, and a recorder of shapes with soft edges and two tones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RGB = tuple[int, int, int]

# body colour -> (body, shade, edge, pattern, belly); the pattern differs in lightness, which survives a VAE best
BODY: dict[str, tuple[RGB, RGB, RGB, RGB, RGB]] = {
    "red": ((226, 58, 56), (200, 42, 48), (168, 34, 44), (255, 190, 168), (255, 206, 190)),
    "orange": ((250, 146, 44), (232, 122, 30), (204, 98, 24), (158, 74, 22), (255, 226, 178)),
    "yellow": ((253, 214, 62), (242, 192, 42), (214, 160, 34), (196, 124, 22), (255, 244, 190)),
    "green": ((84, 180, 76), (64, 158, 66), (48, 130, 58), (206, 240, 150), (216, 242, 180)),
    "blue": ((66, 124, 226), (52, 102, 204), (42, 82, 172), (178, 218, 255), (196, 224, 255)),
    "purple": ((146, 88, 206), (124, 70, 184), (102, 56, 154), (224, 190, 255), (230, 206, 255)),
    "pink": ((252, 152, 190), (240, 126, 170), (214, 98, 146), (206, 62, 122), (255, 220, 232)),
    "brown": ((146, 92, 56), (124, 76, 46), (100, 60, 38), (226, 182, 128), (232, 196, 150)),
    "gray": ((154, 160, 172), (134, 140, 154), (108, 114, 130), (86, 92, 110), (218, 222, 230)),
    "white": ((250, 248, 244), (228, 226, 230), (184, 184, 198), (142, 146, 164), (255, 232, 214)),
}
# accessory colour -> (front, dark)
CLOTH: dict[str, tuple[RGB, RGB]] = {
    "red": ((218, 40, 46), (164, 24, 40)),
    "yellow": ((255, 208, 40), (216, 150, 20)),
    "green": ((44, 158, 84), (26, 116, 64)),
    "blue": ((44, 98, 214), (28, 66, 160)),
    "pink": ((255, 126, 178), (218, 84, 142)),
    "white": ((252, 252, 252), (200, 204, 218)),
}
_TURN = np.linspace(0, 2 * math.pi, 40, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)


@dataclass(frozen=True)
class Shape:
    """One polygon or stroke."""

    points: np.ndarray
    color: RGB
    width: float = 0.0  # 0 fills the polygon, otherwise a stroke with round ends
    convex: bool = False
    inner: bool = False  # lies inside what was drawn before, so it adds nothing to the mask
    clip: int = -1  # index of the shape it is cut to, for patterns


def oval(x: float, y: float, rx: float, ry: float, angle: float = 0) -> np.ndarray:
    """Return an ellipse, rotated by angle in degrees."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    points: np.ndarray = (_CIRCLE * (rx, ry)) @ np.array(((c, s), (-s, c))) + (x, y)
    return points


def block(x: float, y: float, rx: float, ry: float, power: float = 4.0) -> np.ndarray:
    """Return a superellipse: a rectangle with soft corners."""
    points: np.ndarray = np.sign(_CIRCLE) * np.abs(_CIRCLE) ** (2 / power) * (rx, ry) + (x, y)
    return points


def flip(points: np.ndarray) -> np.ndarray:
    """Swap left and right."""
    return points * (-1, 1)


def soft(*corners: tuple[float, float]) -> np.ndarray:
    """Return a closed curve through rounded corners (three rounds of corner cutting)."""
    p = np.array(corners)
    for _ in range(3):
        q = np.roll(p, -1, 0)
        p = np.stack([0.8 * p + 0.2 * q, 0.2 * p + 0.8 * q], 1).reshape(-1, 2)
    return p


def curve(*p: tuple[float, float]) -> np.ndarray:
    """Return a quadratic or cubic Bezier curve."""
    t = np.linspace(0, 1, 12)[:, None]
    degree = len(p) - 1
    weights = [math.comb(degree, i) * t**i * (1 - t) ** (degree - i) for i in range(degree + 1)]
    points: np.ndarray = np.concatenate(weights, 1) @ np.array(p)
    return points


def _darker(color: RGB, keep: float) -> RGB:
    r, g, b = color
    return int(r * keep), int(g * keep), int(b * keep)


class Sketch:
    """Records shapes back to front."""

    def __init__(self, palette: tuple[RGB, RGB, RGB, RGB, RGB]):
        self.shapes: list[Shape] = []
        self.body, self.shade, self.edge, self.pattern, self.belly = palette

    def fill(self, points: np.ndarray, color: RGB, *, convex: bool = True, inner: bool = True, clip: int = -1) -> int:
        """Add a filled polygon; return its index."""
        self.shapes.append(Shape(points, color, convex=convex, inner=inner, clip=clip))
        return len(self.shapes) - 1

    def line(self, points: np.ndarray, color: RGB, width: float, *, inner: bool = False, clip: int = -1) -> None:
        """Add a stroke with round ends."""
        self.shapes.append(Shape(points, color, width, inner=inner, clip=clip))

    def plush(self, points: np.ndarray, color: RGB | None = None, *, convex: bool = True) -> int:
        """Add a volume with a soft edge, a shaded side and a lit front; return its index, to clip patterns with."""
        shade, edge = self.shade, self.edge
        if color is not None:
            shade, edge = _darker(color, 0.9), _darker(color, 0.78)
        low, high = points.min(0), points.max(0)
        middle = (low + high) / 2
        self.line(np.vstack([points, points[:1]]), edge, 0.06)
        whole = self.fill(points, shade, convex=convex, inner=False)
        lit = (points - middle) * 0.93 + middle - (high - low) * (0.008, 0.024)
        self.fill(lit, color or self.body, convex=convex)
        return whole

    def limb(self, points: np.ndarray, width: float, color: RGB | None = None) -> None:
        """Add a stroke with a soft edge."""
        self.line(points, self.edge, width + 0.06)
        self.line(points, color or self.body, width, inner=True)
