"""Check what comes by a link. ComfyUI checks a widget's range only where the value was typed in, and a node of another
pack may send anything through a socket."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io

from ..mudi_core.bases.residual import Residual
from ..mudi_core.types import MudiError, SubjectSet, readable
from . import host
from .sockets import PlacedSubjects, SubjectLora, TrainingSet, TrainPreview, TrainSettings


class OutOfRange(MudiError):
    """A number outside a widget's range."""


class HalfLetter(MudiError):
    """A text that cannot be stored, sent or printed."""


class BadLink(MudiError):
    """A value that is not of its socket's kind, or no value."""


class Unforeseen(Exception):
    """An error of another library whose text had markup in it."""


def _is_latent(value: Any) -> bool:
    samples = value.get("samples") if isinstance(value, dict) else None
    return isinstance(samples, torch.Tensor) and samples.ndim >= 4 and samples.numel() > 0 and bool(_finite(samples))


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_condition, value))


def _is_condition(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[1], dict)
    return pair and isinstance(value[0], torch.Tensor) and value[0].ndim == 3 and value[0].numel() > 0


def _is_loras(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(one, SubjectLora) for one in value)


def _are_residuals(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(one, Residual) for one in value)


def _finite(values: torch.Tensor) -> torch.Tensor:
    return values.isfinite().all()


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "STRING": ("a text", lambda value: isinstance(value, str)),
    "COMBO": ("one of its choices", lambda value: isinstance(value, str)),
    "BOOLEAN": ("true or false", lambda value: isinstance(value, bool | int)),
    "INT": ("a whole number", lambda value: isinstance(value, int)),
    "FLOAT": ("a number", lambda value: isinstance(value, int | float)),
    "IMAGE": ("pictures", lambda value: isinstance(value, torch.Tensor)),
    "MASK": ("masks", lambda value: isinstance(value, torch.Tensor)),
    "LATENT": ("a latent of numbers", _is_latent),
    "CONDITIONING": ("a conditioning", _is_conditioning),
    "SIGMAS": (
        "noise levels",
        lambda value: isinstance(value, torch.Tensor) and value.ndim == 1 and bool(_finite(value)),
    ),
    "MODEL": ("a model", lambda value: hasattr(value, "get_model_object")),
    "CLIP": ("a CLIP", lambda value: hasattr(value, "cond_stage_model")),
    "CLIP_VISION": ("a CLIP vision model", lambda value: hasattr(value, "encode_image")),
    "VAE": ("a VAE", lambda value: hasattr(value, "latent_channels")),  # also other packs' own
    "BOUNDING_BOX": ("boxes", lambda value: value is not None),
    "LAYERS": ("layers", lambda value: isinstance(value, dict) and isinstance(value.get("layers"), list)),
    "MUDI_SUBJECTS": ("subjects", lambda value: isinstance(value, SubjectSet)),
    "MUDI_LAYOUT": ("a layout", lambda value: isinstance(value, PlacedSubjects)),
    "MUDI_LORAS": ("LoRAs with their subjects", _is_loras),
    "MUDI_RESIDUALS": ("residual tokens", _are_residuals),
    "MUDI_DATASET": ("a dataset", lambda value: isinstance(value, TrainingSet)),
    "MUDI_TRAIN_SETTINGS": ("training settings", lambda value: isinstance(value, TrainSettings)),
    "MUDI_TRAIN_PREVIEW": ("a training preview", lambda value: isinstance(value, TrainPreview)),
}
"""By the type of a socket or widget: what is expected, in words, and the check of a value."""


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Return the same node with checked inputs and plain texts of errors.

    Before it begins it raises `BadLink`, `OutOfRange` or `HalfLetter` for an input that is wrong.
    """
    begin = node.execute.__func__

    def execute(cls: type[io.ComfyNode], /, **inputs: Any) -> Any:
        try:
            return run(cls, inputs)
        except Exception as error:
            plain = _plainly(error)
            if plain is error:
                raise
            raise plain from error

    def run(cls: type[io.ComfyNode], inputs: dict[str, Any]) -> Any:
        schema = cls.define_schema()
        for widget in schema.inputs:
            if widget.optional and inputs.get(widget.id) is None:
                inputs.pop(widget.id, None)  # as if nothing were connected
            if widget.id not in inputs:
                continue
            given = inputs[widget.id]
            if schema.is_input_list and not given:
                raise BadLink(f"Nothing comes by the link of {widget.id}. Look at the node before this one.")
            if isinstance(widget, io.Int.Input):  # nodes that calculate hand on 4.0
                given = inputs[widget.id] = [*map(_whole, given)] if schema.is_input_list else _whole(given)
            for value in given if schema.is_input_list else [given]:
                _check(widget, value)
        return begin(cls, **inputs)

    node.execute = classmethod(execute)
    if "validate_inputs" in vars(node):
        node.validate_inputs = classmethod(_plain_judge(node.validate_inputs.__func__))
    return node


def _plainly(error: Exception) -> Exception:
    """Return the same error with a text that no page reads as markup, or an `Unforeseen` if its class makes it."""
    words = str(error)
    plain = host.plain(words, links=True)
    if plain != words:
        error.args = (plain,)
        if str(error) != plain:
            return Unforeseen(f"{type(error).__name__}: {plain}").with_traceback(error.__traceback__)
    return error


def _plain_judge(judge: Callable[..., bool | str]) -> Callable[..., bool | str]:
    """Return a ``validate_inputs`` whose refusals are plain. ComfyUI gives it the inputs that its signature names."""

    def judged(*given: Any, **inputs: Any) -> bool | str:
        answer = judge(*given, **inputs)
        return host.plain(answer, links=True) if isinstance(answer, str) else answer

    judged.__signature__ = inspect.signature(judge)  # type: ignore[attr-defined]
    return judged


def _what(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else type(value).__name__


def _whole(value: Any) -> Any:
    """A whole number as an int; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check(widget: Any, value: Any) -> None:
    wanted, is_right = KINDS.get(widget.get_io_type(), ("something", lambda value: value is not None))
    if not is_right(value):
        got = "nothing" if value is None else f"something else ({_what(value)})"
        raise BadLink(f"{widget.id} must be {wanted}; by its link comes {got}. Look at the node before this one.")
    if isinstance(value, str) and value != readable(value):
        raise HalfLetter(f"{widget.id} holds half of a letter, which no file and no model takes. Type the text again.")
    if isinstance(widget, (io.Int.Input, io.Float.Input)) and not widget.min <= value <= widget.max:
        raise OutOfRange(f"{widget.id} is {value}; it must be {widget.min} to {widget.max}.")
