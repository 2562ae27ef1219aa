"""How nodes are declared: their schema, and the widgets that several of them have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ...mudi_core.eyes import Role
from ...mudi_core.types import MudiError
from .models import eye_choices


class BadChoice(MudiError):
    """A choice that a widget does not have. In a prompt that was written by hand, ComfyUI lets any pass."""


def schema(**settings: Any) -> io.Schema:
    """Return an `io.Schema`, without settings that this ComfyUI does not know yet, such as search_aliases.

    Newer ones show a node's words again when it is served from the cache, if it says ``has_intermediate_output``.
    """
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in settings.items() if name in known})


def check_choice(what: str, choice: str, choices: Sequence[str]) -> None:
    """Raise `BadChoice` for a choice that is not among a widget's; ``what`` it is stands in the message."""
    if choice not in choices:
        raise BadChoice(f"There is no {what} {choice!r}. Choose one of: {', '.join(choices)}.")


def seed(tooltip: str) -> io.Int.Input:
    """Return a seed widget, which the frontend may change after each run."""
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def size(tooltip: str) -> list[io.Int.Input]:
    """Return the widgets width and height of a picture, in pixels."""
    return [io.Int.Input(side, default=1024, min=64, max=4096, step=8, tooltip=tooltip) for side in ("width", "height")]


def gamma() -> io.Float.Input:
    """Return the widget for the strength of the start of pictures that a node samples itself."""
    words = "As in Init Latent. -1: chosen by the number of subjects."
    return io.Float.Input("gamma", default=-1.0, min=-1.0, max=10.0, step=0.1, tooltip=words)


def threshold(tooltip: str, default: float = 0.25) -> io.Float.Input:
    """Return the widget for the least confidence of a detection, 0 to 1."""
    return io.Float.Input("threshold", default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def model(role: Role, tooltip: str) -> io.Combo.Input:
    """Return the widget that chooses a model of a role. The default is one that knows photos."""
    choices = eye_choices(role)
    words = f"{tooltip} The embedded one knows the drawings of Mini Photos only, nothing in photos."
    return io.Combo.Input(role, options=choices, default=choices[0], tooltip=words)


def query() -> io.String.Input:
    """Return the widget "query" of Detect-and-Compare: words separated by commas."""
    return io.String.Input(
        "query",
        default="",
        placeholder="dog, cat",
        tooltip="What to look for, several separated by commas. Empty: the subjects' class nouns.",
    )


def cut_out(tooltip: str) -> io.Boolean.Input:
    """Return the widget "cut_out": whether pictures are compared with cut-out subjects."""
    return io.Boolean.Input("cut_out", default=False, tooltip=tooltip)


def download() -> io.Boolean.Input:
    """Return the widget that allows fetching missing models."""
    return io.Boolean.Input("download", default=False, tooltip="Fetch missing models into ComfyUI's models folder.")


def judging(*, asks: bool = True) -> list[Any]:
    """Return the widgets of a node that judges pictures as D&C Score does.

    Their values are a `compare.Judging`. ``asks``: whether "query" is among them.
    """
    return [
        model("detector", "The model that finds the figures."),
        model("embedder", "The model that compares them."),
        threshold("Least confidence of a figure, as in D&C Score."),
        *([query()] if asks else []),
        cut_out("Compare with the cut-out subjects, as in D&C Score."),
        download(),
    ]
