"""Watermark and Find Watermark: the paper asks for an invisible mark against misuse, which its key finds again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..mudi_core.subjects.watermark import KEY, SURE
from ..mudi_core.types import MudiError
from . import convert, host

if TYPE_CHECKING:
    from torch import Tensor

CATEGORY = "MuDI/5 mark"


class NoKey(MudiError):
    """A mark without a key."""


class TooSmall(MudiError):
    """A picture that has no room for a mark."""


def _key() -> io.String.Input:
    return io.String.Input(
        "key",
        default=KEY,
        tooltip="Any words. With these everybody can find the mark; with your own words, only you can. Remember them.",
    )


def _check_key(key: str | None) -> bool | str:
    return True if key is None or key.strip() else "The mark needs a key: any words, such as 'made with MuDI'."


class AddWatermark(io.ComfyNode):  # type: ignore[misc]
    """Mark pictures as generated."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiWatermark",
            display_name="Watermark (MuDI)",
            category=CATEGORY,
            description="Puts an invisible mark into pictures, before Save Image. It survives JPEG and resizing, not "
            "cropping or rotation. Nothing is marked unless this node is wired in.",
            search_aliases=["invisible watermark", "provenance", "mark as generated", "signature"],
            inputs=[
                io.Image.Input("images", tooltip="Finished pictures, in their final size."),
                _key(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.1,
                    max=4.0,
                    step=0.1,
                    tooltip="1 is invisible and survives JPEG quality 80 and half the size. Higher survives more.",
                ),
            ],
            outputs=[io.Image.Output("marked", display_name="images", tooltip="The same pictures with the mark.")],
        )

    @classmethod
    def validate_inputs(cls, key: str | None = None) -> bool | str:
        return _check_key(key)

    @classmethod
    def execute(cls, images: Tensor, key: str, strength: float) -> io.NodeOutput:
        from ..mudi_core.subjects.watermark import add_mark, holds_mark

        if not key.strip():
            raise NoKey(str(_check_key(key)))
        pictures = convert.pictures(images)
        for number, one in enumerate(pictures, start=1):
            if not holds_mark(one):
                raise TooSmall(
                    f"Picture {number} is {one.shape[1]}x{one.shape[0]} px, too small to hold a mark: 16 px a side are "
                    "the least. Leave it out."
                )
        return io.NodeOutput(convert.image_batch([add_mark(one, key, strength) for one in pictures]))


class FindWatermark(io.ComfyNode):  # type: ignore[misc]
    """Find the mark in pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiFindWatermark",
            display_name="Find Watermark (MuDI)",
            category=CATEGORY,
            description="Says of each picture whether it carries the mark of a key, and how surely.",
            search_aliases=["detect watermark", "is it generated", "provenance"],
            is_output_node=True,
            inputs=[io.Image.Input("images", tooltip="Pictures from anywhere, but not cropped."), _key()],
            outputs=[
                io.Boolean.Output("all_marked", display_name="all_marked", tooltip="Whether every picture has it."),
                io.String.Output(
                    "verdicts",
                    display_name="verdicts",
                    tooltip=f"A line for each picture with its score, in standard deviations; {SURE:g} and more is a "
                    "mark.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, key: str | None = None) -> bool | str:
        return _check_key(key)

    @classmethod
    def execute(cls, images: Tensor, key: str) -> io.NodeOutput:
        from ..mudi_core.subjects.watermark import find_mark, holds_mark

        if not key.strip():
            raise NoKey(str(_check_key(key)))
        pictures = convert.pictures(images)
        marks = [find_mark(one, key) for one in pictures]
        verdicts = [
            f"{'marked' if mark.found else 'no mark'} ({mark.score:.1f})" if holds_mark(one) else "too small for a mark"
            for one, mark in zip(pictures, marks, strict=True)
        ]
        lines = [f"picture {number}: {verdict}" for number, verdict in enumerate(verdicts, start=1)]
        text = "\n".join(lines)
        found = all(mark.found and holds_mark(one) for one, mark in zip(pictures, marks, strict=True))
        return io.NodeOutput(found, text, ui=host.preview([], cls, text))
