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
    """A choice that a widget does not have: ComfyUI lets any pass in a prompt that was written by hand."""


def schema(**settings: Any) -> io.Schema:
    """An `io.Schema`; settings that this ComfyUI does not know yet, such as search_aliases, are left out."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in settings.items() if name in known})


def check_choice(what: str, choice: str, choices: Sequence[str]) -> None:
    """Raises `BadChoice` for one that is not among a widget's."""
    if choice not in choices:
        raise BadChoice(f"There is no {what} {choice!r}. Choose one of: {', '.join(choices)}.")


def seed(tooltip: str) -> io.Int.Input:
    """A seed, which the frontend may change after each run."""
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip=tooltip)


def size(tooltip: str) -> list[io.Int.Input]:
    """Width and height of a picture, in pixels."""
    return [io.Int.Input(side, default=1024, min=64, max=4096, step=8, tooltip=tooltip) for side in ("width", "height")]


def threshold(tooltip: str) -> io.Float.Input:
    """The least confidence of a detection."""
    return io.Float.Input("threshold", default=0.25, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def model(role: Role, tooltip: str) -> io.Combo.Input:
    """A choice of models of a role; one that knows photos stands first, and is the default."""
    choices = eye_choices(role)
    said = f"{tooltip} The embedded one knows the drawings of Mini Photos only, nothing in photos."
    return io.Combo.Input(role, options=choices, default=choices[0], tooltip=said)


def download() -> io.Boolean.Input:
    """Whether models may be fetched that are not there."""
    return io.Boolean.Input(
        "download", default=False, tooltip="Fetch into ComfyUI's models folder what is not there yet."
    )
