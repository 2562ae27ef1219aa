"""The toy world's characters as polygons in character units: feet at y = 0, up is negative, about 1.9 tall.

Big heads, ears, hats and stripes and soft edges: nothing is thinner than an 8x VAE can carry at 128 pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .pen import BODY, CLOTH, RGB, Shape, Sketch, block, curve, flip, oval, soft

if TYPE_CHECKING:
    from .character import Character

INK: RGB = (48, 38, 54)
CREAM: RGB = (255, 250, 240)
BLUSH: RGB = (255, 138, 140)
BEAK: RGB = (255, 158, 40)
NECK = -0.66


@lru_cache(maxsize=256)
def sketch(character: Character, arms: str, eyes: str) -> tuple[Shape, ...]:
    """Return the shapes of a character, back to front."""
    s = Sketch(BODY[character.color])
    _tail(s, character)
    _ears(s, character)
    torso = _torso(s, character)
    head = _head(s, character)
    _pattern(s, character.pattern, head, torso)
    _face(s, character, eyes, head)
    _arms(s, character, arms)
    if character.neckwear != "none":
        _neckwear(s, character.neckwear, *CLOTH[character.neckwear_color])
    if character.headwear != "none":
        _headwear(s, character.headwear, *CLOTH[character.headwear_color])
    return tuple(s.shapes)


def _tail(s: Sketch, character: Character) -> None:
    tip = s.belly if character.pattern == "plain" else s.pattern
    match character.species:
        case "cat":
            path = curve((0.25, -0.2), (0.85, 0.0), (0.5, -0.5), (0.82, -0.68))
            s.limb(path, 0.15)
            s.line(path[-4:], tip, 0.15)
        case "dog":
            s.limb(curve((0.25, -0.25), (0.5, -0.3), (0.62, -0.52)), 0.15)
        case "fox":
            s.plush(
                soft((0.2, -0.12), (0.55, 0.0), (0.86, -0.2), (0.9, -0.62), (0.74, -0.8), (0.55, -0.42)), convex=False
            )
            brush = soft((0.74, -0.82), (0.92, -0.6), (0.87, -0.38), (0.76, -0.5), (0.66, -0.48), (0.64, -0.62))
            s.fill(brush, CREAM, convex=False, inner=False)
        case "rabbit":
            s.plush(oval(0.36, -0.2, 0.15, 0.15), s.belly)


def _ears(s: Sketch, character: Character) -> None:
    for side in (-1, 1):
        marked = side == 1 and character.pattern == "patched"
        outer, inner = (s.pattern if marked else None), (s.belly if not marked else s.body)
        match character.species:
            case "cat":
                s.plush(soft((0.08, -1.44), (0.5, -1.98), (0.6, -1.1)) * (side, 1), outer)
                s.fill(soft((0.26, -1.46), (0.45, -1.8), (0.52, -1.3)) * (side, 1), inner)
            case "fox":
                s.plush(soft((0.04, -1.42), (0.52, -2.16), (0.66, -1.1)) * (side, 1), outer, convex=False)
                tip = soft((0.36, -1.75), (0.53, -2.2), (0.58, -1.7), (0.46, -1.66))
                s.fill(
                    tip * (side, 1), CREAM if character.color in ("brown", "gray") else INK, convex=False, inner=False
                )
                s.fill(soft((0.26, -1.42), (0.45, -1.76), (0.54, -1.3)) * (side, 1), CREAM)
            case "bear":
                s.plush(oval(0.4, -1.5, 0.2, 0.2) * (side, 1), outer)
                s.fill(oval(0.4, -1.48, 0.11, 0.11) * (side, 1), inner)
            case "rabbit":
                s.plush(oval(0.25, -1.8, 0.155, 0.5, 9) * (side, 1), outer)
                s.fill(oval(0.25, -1.78, 0.08, 0.36, 9) * (side, 1), inner)
            case "robot":
                s.plush(block(0.56, -1.12, 0.13, 0.2) * (side, 1), s.belly)
            case "alien":
                s.limb(curve((0.2, -1.45), (0.26, -1.75), (0.42, -1.86)) * (side, 1), 0.07)
                s.plush(oval(0.44, -1.86, 0.115, 0.115) * (side, 1), s.pattern)
    if character.species == "robot":
        s.limb(np.array(((0.34, -1.5), (0.4, -1.76))), 0.07)
        s.plush(oval(0.41, -1.8, 0.12, 0.12), (255, 196, 60) if character.color != "yellow" else (236, 80, 70))
    if character.species == "penguin":
        for tilt, x in ((-24, -0.08), (22, 0.1), (0, 0.0)):
            s.plush(oval(x, -1.6, 0.06, 0.15, tilt))


def _torso(s: Sketch, character: Character) -> int:
    feet = BEAK if character.species == "penguin" else None
    for x in (-0.2, 0.2):
        points = block(x, -0.1, 0.15, 0.1) if character.species == "robot" else oval(x, -0.09, 0.19, 0.095)
        s.plush(points, feet)
    match character.species:
        case "robot":
            torso = s.plush(block(0, -0.42, 0.38, 0.33))
        case "penguin":
            torso = s.plush(oval(0, -0.5, 0.47, 0.47))
        case "alien":
            torso = s.plush(oval(0, -0.4, 0.31, 0.36))
        case "bear":
            torso = s.plush(oval(0, -0.43, 0.44, 0.41))
        case _:
            torso = s.plush(oval(0, -0.42, 0.38, 0.4))
    if character.species == "penguin":
        s.fill(oval(0, -0.42, 0.33, 0.38), CREAM, clip=torso)
    elif character.species == "robot":
        s.fill(block(0, -0.38, 0.22, 0.17), s.belly)
        for x, color in ((-0.1, (240, 84, 84)), (0.1, (70, 190, 130))):
            s.fill(oval(x, -0.38, 0.07, 0.07), color)
    elif character.pattern != "striped":
        s.fill(oval(0, -0.36, 0.23, 0.27), s.belly, clip=torso)
    return torso


def _head(s: Sketch, character: Character) -> int:
    match character.species:
        case "fox":
            half = [(0.0, -1.6), (0.34, -1.57), (0.56, -1.26), (0.74, -0.9), (0.42, -0.72), (0.0, -0.6)]
            head = s.plush(soft(*half, *[(-x, y) for x, y in half[-2:0:-1]]), convex=False)
        case "robot":
            head = s.plush(block(0, -1.12, 0.55, 0.44, 5))
        case "alien":
            half = [(0.0, -1.62), (0.46, -1.62), (0.74, -1.22), (0.42, -0.74), (0.0, -0.6)]
            head = s.plush(soft(*half, *[(-x, y) for x, y in half[-2:0:-1]]))
        case "penguin":
            head = s.plush(oval(0, -1.1, 0.52, 0.47))
        case "cat":
            head = s.plush(oval(0, -1.1, 0.62, 0.47))
        case "rabbit":
            head = s.plush(oval(0, -1.06, 0.54, 0.45))
        case _:
            head = s.plush(oval(0, -1.1, 0.57, 0.49))
    if character.species == "dog":
        for side in (-1, 1):
            ear = oval(0.56, -1.1, 0.17, 0.36, -14)
            color = s.pattern if character.pattern == "patched" and side == 1 else s.shade
            s.plush(ear if side == 1 else flip(ear), color)
    return head


def _pattern(s: Sketch, pattern: str, head: int, torso: int) -> None:
    if pattern == "striped":
        for x, bottom, width in ((0.0, -1.32, 0.13), (-0.25, -1.36, 0.12), (0.25, -1.36, 0.12)):
            s.line(np.array(((x * 1.15, -1.7), (x, bottom))), s.pattern, width, clip=head)
        for side in (-1, 1):
            for y in (-1.14, -0.9):
                s.line(np.array(((side * 0.76, y - 0.04), (side * 0.48, y))), s.pattern, 0.12, clip=head)
        for y in (-0.56, -0.32, -0.08):
            s.line(curve((-0.6, y - 0.05), (0.0, y + 0.07), (0.6, y - 0.05)), s.pattern, 0.125, clip=torso)
    elif pattern == "spotted":
        for x, y, r in ((-0.27, -1.42, 0.15), (0.2, -1.5, 0.11), (0.46, -1.24, 0.13), (-0.5, -1.0, 0.1)):
            s.fill(oval(x, y, r, r), s.pattern, clip=head)
        for x, y, r in ((-0.28, -0.42, 0.11), (0.29, -0.5, 0.1), (0.24, -0.18, 0.11), (-0.16, -0.12, 0.08)):
            s.fill(oval(x, y, r, r), s.pattern, clip=torso)
    elif pattern == "patched":
        s.fill(oval(0.3, -1.22, 0.29, 0.33, 20), s.pattern, clip=head)
        s.fill(oval(-0.32, -0.26, 0.3, 0.3), s.pattern, clip=torso)


def _face(s: Sketch, character: Character, eyes: str, head: int) -> None:
    species, eye, spread = character.species, -1.1, 0.23
    match species:
        case "robot":
            s.fill(block(0, -1.1, 0.42, 0.28), (44, 58, 92))
        case "penguin":
            for x in (-0.17, 0.17):
                s.fill(oval(x, -1.04, 0.26, 0.3), CREAM, clip=head)
        case "fox":
            for side in (-1, 1):
                cheek = soft((side * 0.05, -1.0), (side * 0.5, -1.04), (side * 0.76, -0.88), (0, -0.5))
                s.fill(cheek, CREAM, clip=head)
        case "dog":
            s.fill(oval(0, -0.9, 0.27, 0.19), s.belly)
        case "bear":
            s.fill(oval(0, -0.9, 0.25, 0.18), s.belly)
        case "cat" | "rabbit":
            for x in (-0.1, 0.1):
                s.fill(oval(x, -0.9, 0.14, 0.11), s.belly)
    if species not in ("robot", "alien"):
        for x in (-0.41, 0.41):
            s.fill(oval(x, -0.93, 0.1, 0.07), BLUSH if character.color not in ("red", "pink") else (255, 112, 132))
    frame = None
    if character.glasses:
        frame = (30, 74, 170) if character.color in ("red", "orange", "pink", "brown") else (214, 36, 52)
        for x in (-0.24, 0.24):
            s.fill(oval(x, eye, 0.225, 0.225), CREAM if species != "robot" else (84, 104, 150))
    _eyes(s, species, eyes, eye, spread)
    match species:
        case "cat":
            s.fill(soft((-0.1, -1.0), (0.1, -1.0), (0, -0.88)), (236, 96, 120))
        case "rabbit":
            s.fill(oval(0, -0.97, 0.075, 0.055), (236, 96, 120))
            s.fill(block(0, -0.81, 0.07, 0.07), (255, 255, 255))
        case "bear":
            s.fill(oval(0, -0.97, 0.1, 0.07), INK)
        case "dog":
            s.fill(oval(0, -0.82, 0.08, 0.11), (244, 104, 122))
            s.fill(oval(0, -0.97, 0.13, 0.09), INK)
        case "fox":
            s.fill(oval(0, -0.78, 0.1, 0.075), INK)
        case "penguin":
            s.plush(soft((-0.19, -1.02), (0.19, -1.02), (0, -0.8)), BEAK)
        case "alien":
            s.line(curve((-0.1, -0.82), (0, -0.75), (0.1, -0.82)), s.edge, 0.05)
    if frame:
        for x in (-0.24, 0.24):
            ring = oval(x, eye, 0.225, 0.225)
            s.line(np.vstack([ring, ring[:1]]), frame, 0.08)
        s.line(np.array(((-0.05, eye - 0.05), (0.05, eye - 0.05))), frame, 0.08)


def _eyes(s: Sketch, species: str, eyes: str, y: float, spread: float) -> None:
    for side in (-1, 1):
        x = side * spread
        if eyes == "happy":
            color = (120, 240, 255) if species == "robot" else INK
            reach = 0.15 if species == "alien" else 0.1
            s.line(curve((x - reach, y + 0.05), (x, y - 0.13), (x + reach, y + 0.05)), color, 0.065)
        elif species == "robot":
            s.fill(block(x, y, 0.1, 0.14), (120, 240, 255))
            s.fill(oval(x - 0.03, y - 0.05, 0.04, 0.04), (235, 255, 255))
        elif species == "alien":
            s.fill(oval(side * 0.28, y, 0.17, 0.24, side * 22), INK)
            s.fill(oval(side * 0.28 - 0.05, y - 0.09, 0.06, 0.07), (255, 255, 255))
        else:
            s.fill(oval(x, y, 0.105, 0.135), INK)
            s.fill(oval(x - 0.035, y - 0.05, 0.045, 0.05), (255, 255, 255))


def _arms(s: Sketch, character: Character, arms: str) -> None:
    width = 0.2 if character.species == "penguin" else 0.17
    for side in (-1, 1):
        raised = arms == "up" or (arms == "waving" and side == 1)
        path = curve((0.34, -0.5), (0.56, -0.5), (0.7, -0.7))
        if not raised:
            path = curve((0.35, -0.52), (0.46, -0.42), (0.46, -0.28))
        s.limb(path if side == 1 else flip(path), width)


def _neckwear(s: Sketch, kind: str, front: RGB, dark: RGB) -> None:
    if kind == "scarf":
        s.line(np.array(((0.2, -0.58), (0.27, -0.26))), dark, 0.21)
        s.line(np.array(((0.2, -0.58), (0.26, -0.27))), front, 0.16)
        band = curve((-0.36, NECK - 0.03), (0, NECK + 0.13), (0.36, NECK - 0.03))
        s.line(band, dark, 0.24)
        s.line(band - (0, 0.015), front, 0.19)
    else:
        for side in (-1, 1):
            wing = soft((0.0, NECK + 0.05), (0.4, NECK - 0.16), (0.42, NECK + 0.28)) * (side, 1)
            s.plush(wing, front)
        s.fill(oval(0, NECK + 0.05, 0.085, 0.1), dark)


def _headwear(s: Sketch, kind: str, front: RGB, dark: RGB) -> None:
    light = (255, 255, 255) if front != CLOTH["white"][0] else (120, 140, 190)
    match kind:
        case "hat":
            s.plush(soft((-0.33, -2.05), (0.33, -2.05), (0.29, -1.5), (-0.29, -1.5)), front)
            s.fill(np.array(((-0.305, -1.68), (0.305, -1.68), (0.3, -1.54), (-0.3, -1.54))), light)
            s.plush(oval(0, -1.5, 0.5, 0.1), front)
        case "cap":
            dome = s.plush(_dome(), front, convex=False)
            s.fill(oval(0, -1.6, 0.14, 0.14), light, clip=dome)
            brim = soft((-0.36, -1.4), (0.1, -1.5), (0.78, -1.46), (0.86, -1.34), (0.4, -1.31), (0, -1.3))
            s.plush(brim, dark, convex=False)
        case "crown":
            s.plush(_crown(), front, convex=False)
            s.line(curve((-0.34, -1.5), (0, -1.42), (0.34, -1.5)), dark, 0.09)
            for x, y in ((-0.42, -1.9), (0, -1.96), (0.42, -1.9)):
                s.fill(oval(x, y, 0.075, 0.075), light, inner=False)
        case "bow":
            for side in (-1, 1):
                s.plush(soft((0, -1.56), (side * 0.46, -1.86), (side * 0.48, -1.28)), front)
            s.plush(oval(0, -1.57, 0.11, 0.13), dark)
        case "beanie":
            s.plush(oval(0, -1.92, 0.16, 0.16), light)
            s.plush(_dome(), front, convex=False)
            s.line(curve((-0.43, -1.4), (0, -1.52), (0.43, -1.4)), dark, 0.19)


def _dome() -> np.ndarray:
    return soft((-0.47, -1.36), (-0.43, -1.8), (0, -1.94), (0.43, -1.8), (0.47, -1.36), (0, -1.42))


def _crown() -> np.ndarray:
    side = [(-0.36, -1.46), (-0.44, -1.88), (-0.2, -1.68)]
    return np.array([*side, (0, -1.94), *[(-x, y) for x, y in side[::-1]], (0, -1.38)])
