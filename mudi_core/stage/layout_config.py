"""How large the subjects of a layout are, and where they may stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..types import MudiError


class BadLayoutConfig(MudiError):
    """Settings of a layout that contradict each other or leave their range."""


class BadRelativeScale(MudiError):
    """Relative heights written as text that cannot be read."""


@dataclass(frozen=True)
class LayoutConfig:
    """How large the figures are and how far apart. The defaults are the official code's at 1024 px."""

    width_fraction: float = 480 / 1024
    """Largest width of one of two figures, in canvas widths."""
    height_fraction: float = 992 / 1024
    """Largest height of a figure, in canvas heights."""
    scale: tuple[float, float] = (0.75, 1.0)
    """Each figure is drawn at this range of the largest size that fits."""
    margin: tuple[float, float] = (1 / 1024, 256 / 1024)
    """Range of a pair's distance from the left and right border, in canvas widths."""
    relative_scale: Mapping[str, float] | None = None
    """Relative heights by token, e.g. {"olis": 1, "hta": 2}: hta is twice as tall. Tokens not named count as 1.
    It takes the place of `scale`: the figures are as large as the ratio lets them be."""
    max_overlap: float = 1.0
    """Largest allowed overlap of two boxes, as a share of the smaller one: 0 keeps the boxes apart, 1 allows all."""
    min_visible: float = 0.6
    """`random_layout` leaves at least this share of every box uncovered."""
    shared_y: bool = False
    """Both figures of a pair start at one height, as the official code does for prior images."""

    def __post_init__(self) -> None:
        for name, value in (("width_fraction", self.width_fraction), ("height_fraction", self.height_fraction)):
            if not 0 < value <= 1:
                raise BadLayoutConfig(f"{name} must lie above 0 and at most at 1, got {value}.")
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
    """Relative heights by token from ``olis:hta=1:2``: hta is twice as tall. Raises `BadRelativeScale`."""
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
        raise BadRelativeScale(f"{text!r} should look like olis:hta=1:2, a number above 0 for each token.")
    return dict(zip(names, values, strict=True))
