"""Numbers that come by a link: ComfyUI holds a widget to its range only where the number was typed into it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..mudi_core.types import MudiError


class OutOfRange(MudiError):
    """A number that a widget would not take."""


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The same node, which raises `OutOfRange` before it begins."""
    begin = node.execute.__func__

    def execute(cls: type[io.ComfyNode], /, **inputs: Any) -> Any:
        schema = cls.define_schema()
        for widget in schema.inputs:
            if isinstance(widget, (io.Int.Input, io.Float.Input)) and widget.id in inputs:
                given = inputs[widget.id]
                for number in given if schema.is_input_list else [given]:
                    if not widget.min <= number <= widget.max:
                        raise OutOfRange(f"{widget.id} is {number}; it must be {widget.min} to {widget.max}.")
        return begin(cls, **inputs)

    node.execute = classmethod(execute)
    return node
