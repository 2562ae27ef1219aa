"""How large the subjects of a layout are, and where they may stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..types import MudiError


class BadLayoutConfig(MudiError):
    """Layout settings that contradict each other or are out of range."""


class BadRelativeScale(MudiError):
    """Relative heights in a text that cannot be read."""


@dataclass(frozen=True)
class LayoutConfig:
    """How large the figures are and how far apart. The defaults are those of the official code at 1024 px."""

    width_fraction: float = 480 / 1024
    """Largest width of a figure of a pair, as a share of the canvas width."""
    height_fraction: float = 992 / 1024
    """Largest height of a figure, as a share of the canvas height."""
    scale: tuple[float, float] = (0.75, 1.0)
    """Range of the random size of a figure, as a share of the largest size that fits."""
    margin: tuple[float, float] = (1 / 1024, 256 / 1024)
    """Range of the distance of a pair from the left and right border, as a share of the canvas width."""
    relative_scale: Mapping[str, float] | None = None
    """Relative heights by token, e.g. {"olis": 1, "hta": 2}: hta is twice as tall. Tokens not named count as 1.
    It replaces `scale`: the figures are as large as the ratio allows."""
    max_overlap: float = 1.0
    """Largest allowed overlap of two boxes, as a share of the smaller one: 0 keeps the boxes apart, 1 allows all."""
    min_visible: float = 0.6
    """Share of every box that `random_layout` leaves uncovered, at least."""
    shared_y: bool = False
    """The tops of both figures of a pair are at the same height, as in the official code for prior images."""

    def __post_init__(self) -> None:
        for name, value in (("width_fraction", self.width_fraction), ("height_fraction", self.height_fraction)):
            if not 0 < value <= 1:
                raise BadLayoutConfig(f"{name} must be above 0 and at most 1, got {value}.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise BadLayoutConfig(f"scale must be a range inside 0..1, got {self.scale}.")
        if not 0 <= self.margin[0] <= self.margin[1] <= 1:
            raise BadLayoutConfig(f"margin must be a range inside 0..1, got {self.margin}.")
        for name, value in (("max_overlap", self.max_overlap), ("min_visible", self.min_visible)):
            if not 0 <= value <= 1:
                raise BadLayoutConfig(f"{name} must lie in 0..1, got {value}.")
        for token, factor in (self.relative_scale or {}).items():
            if not 1e-3 <= factor <= 1e3:
                raise BadLayoutConfig(f"relative_scale of '{token}' must lie in 0.001..1000, got {factor}.")


def parse_relative_scale(text: str) -> dict[str, float]:
    """Read relative heights by token from ``olis:hta=1:2``: hta is twice as tall. Raise `BadRelativeScale`."""
    tokens, _, numbers = text.partition("=")
    names, parts = [name.strip() for name in tokens.split(":")], numbers.split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if (
        len(names) != len(values)
        or not all(names)
        or len(set(names)) != len(names)
        or not all(0 < value < float("inf") for value in values)
    ):
        raise BadRelativeScale(
            f"{text!r} cannot be read. Write it like olis:hta=1:2, with a number above 0 for each token."
        )
    return dict(zip(names, values, strict=True))
