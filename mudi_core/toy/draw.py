"""Paint the toy world at any size: a background, then every character back to front, with exact masks.

Everything is painted two or three times as large without antialiasing and averaged: a pixel belongs to whom it shows
most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .backdrop import paint_background
from .figure import sketch
from .pen import RGB, Shape

if TYPE_CHECKING:
    from .character import Actor, Character, Pose, Scene

_SHIFT = 4  # binary places of the drawing's coordinates
SOFTNESS = 0.8 / 192
"""Sigma of the world's soft focus, as a share of the picture's longer side: a small VAE keeps soft edges best."""


@dataclass(frozen=True)
class Rendered:
    """A picture with the truth about it; masks and boxes contain only visible pixels."""

    image: np.ndarray  # uint8 [h, w, 3], RGB
    masks: np.ndarray  # bool [n, h, w], disjoint
    boxes: np.ndarray  # float32 [n, 4], xyxy in pixels
    scene: Scene


@lru_cache(maxsize=256)
def _posed(character: Character, pose: Pose) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The recorded points after the pose, in one array, and their extent."""
    shapes = sketch(character, pose.arms, pose.eyes)
    c, n = math.cos(math.radians(pose.tilt)), math.sin(math.radians(pose.tilt))
    scale = np.array((-pose.squash if pose.mirror else pose.squash, 1 / pose.squash))
    points = (np.concatenate([s.points for s in shapes]) * scale) @ np.array(((c, n), (-n, c)))
    starts = np.cumsum([0] + [len(s.points) for s in shapes[:-1]])
    margin = np.array([-np.inf if s.inner or s.clip >= 0 else s.width / 2 for s in shapes])[:, None]
    low = (np.minimum.reduceat(points, starts) - margin).min(0)
    high = (np.maximum.reduceat(points, starts) + margin).max(0)
    return points, (*low.tolist(), *high.tolist())


def aspect(character: Character, pose: Pose) -> float:
    """Return width divided by height of the full extent."""
    x0, y0, x1, y1 = _posed(character, pose)[1]
    return (x1 - x0) / (y1 - y0)


def render(scene: Scene, size: int | tuple[int, int]) -> Rendered:
    """Paint a scene; size is the side of a square or (width, height), in pixels."""
    import cv2

    w, h = (size, size) if isinstance(size, int) else size
    fine = 3 if max(w, h) < 384 else 2
    canvas = paint_background(scene.background, scene.background_seed, w * fine, h * fine)
    owner = np.zeros(canvas.shape[:2], np.uint8)
    for number, actor in enumerate(scene.actors, 1):
        _draw(actor, canvas, owner, number)
    image = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), SOFTNESS * max(w, h))
    masks = np.zeros((len(scene.actors), h, w), bool)
    boxes = np.zeros((len(scene.actors), 4), np.float32)
    for i in range(len(scene.actors)):
        cover = cv2.resize((owner == i + 1).view(np.uint8) * np.uint8(255), (w, h), interpolation=cv2.INTER_AREA)
        masks[i] = cover > 127
        x, y, bw, bh = cv2.boundingRect(masks[i].view(np.uint8))
        boxes[i] = x, y, x + bw, y + bh
    return Rendered(image, masks, boxes, scene)


def _draw(actor: Actor, canvas: np.ndarray, owner: np.ndarray, number: int) -> None:
    h, w = owner.shape
    shapes = sketch(actor.character, actor.pose.arms, actor.pose.eyes)
    points, (x0, y0, x1, y1) = _posed(actor.character, actor.pose)
    left, top, right, bottom = np.array(actor.xyxy) * (w, h, w, h)
    unit = min((right - left) / (x1 - x0), (bottom - top) / (y1 - y0))
    origin = np.array(((left + right) / 2 - unit * (x0 + x1) / 2, bottom - unit * y1))
    if actor.grounded:
        _shadow(canvas, origin[0], bottom - 0.04 * unit, unit)
    fixed = np.round((points * unit + origin - 0.5) * (1 << _SHIFT)).astype(np.int32)
    parts, start = [], 0
    for s in shapes:
        parts.append(fixed[start : start + len(s.points)])
        start += len(s.points)
    for s, part in zip(shapes, parts, strict=True):
        if s.clip < 0:
            _paint(canvas, s, part, s.color, unit)
            if not s.inner:
                _paint(owner, s, part, number, unit)
        else:
            _paint_clipped(canvas, s, part, parts[s.clip], unit)


def _paint(target: np.ndarray, shape: Shape, points: np.ndarray, color: RGB | int, unit: float) -> None:
    import cv2

    if shape.width:
        cv2.polylines(target, [points], False, color, max(1, round(shape.width * unit)), cv2.LINE_8, _SHIFT)
    elif shape.convex:
        cv2.fillConvexPoly(target, points, color, cv2.LINE_8, _SHIFT)
    else:
        cv2.fillPoly(target, [points], color, cv2.LINE_8, _SHIFT)


def _paint_clipped(canvas: np.ndarray, shape: Shape, points: np.ndarray, clip: np.ndarray, unit: float) -> None:
    import cv2

    h, w = canvas.shape[:2]
    pad = int(shape.width * unit) + 1
    low = np.maximum(np.maximum(points.min(0) >> _SHIFT, clip.min(0) >> _SHIFT) - pad, 0)
    high = np.minimum(np.minimum(points.max(0) >> _SHIFT, clip.max(0) >> _SHIFT) + pad + 2, (w, h))
    if (high <= low).any():
        return
    inside = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    cv2.fillPoly(inside, [clip - (low << _SHIFT).astype(np.int32)], 255, cv2.LINE_8, _SHIFT)
    ink = np.zeros_like(inside)
    _paint(ink, shape, points - (low << _SHIFT).astype(np.int32), 255, unit)
    cv2.bitwise_and(inside, ink, inside)
    roi = canvas[low[1] : high[1], low[0] : high[0]]
    colored = np.empty_like(roi)
    colored[:] = shape.color
    cv2.copyTo(colored, inside, roi)


def _shadow(canvas: np.ndarray, x: float, y: float, unit: float) -> None:
    import cv2

    h, w = canvas.shape[:2]
    for reach, keep in ((0.62, 0.93), (0.5, 0.9)):
        rx, ry = max(2, int(reach * unit)), max(1, int(0.13 * reach / 0.5 * unit))
        x0, y0, x1, y1 = max(0, int(x) - rx), max(0, int(y) - ry), min(w, int(x) + rx), min(h, int(y) + ry)
        if x1 <= x0 or y1 <= y0:
            continue
        roi = canvas[y0:y1, x0:x1]
        mask = np.zeros(roi.shape[:2], np.uint8)
        cv2.ellipse(mask, (int(x) - x0, int(y) - y0), (rx, ry), 0, 0, 360, 255, -1)
        cv2.copyTo(cv2.convertScaleAbs(roi, alpha=keep), mask, roi)
