"""Layout Parts: what a layout knows, for the nodes of other packs: masks, boxes, canvas and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import convert, drawing, host, layer_editor
from .generate import CATEGORY, drawn_layout
from .sockets import BoundingBoxes, LayersSocket, LayoutSocket, PlacedSubjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import Mix

SHAPES = FIGURE, BOX = "figure", "box"


class LayoutParts(io.ComfyNode):  # type: ignore[misc]
    """Take a layout apart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiLayoutParts",
            display_name="Layout Parts (MuDI)",
            category=CATEGORY,
            description="Gives what Layout shows to other nodes: a mask and a box of each subject for regional "
            "prompts, the canvas for ControlNet and image to image, and layers for the Layer Editor.",
            search_aliases=["regional", "mask from layout", "bounding box", "layers", "controlnet", "attention couple"],
            is_output_node=True,
            inputs=[
                LayoutSocket.Input("layout", tooltip="From Layout."),
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default=FIGURE,
                    tooltip="figure: masks are the visible outlines of the subjects. box: their whole boxes.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Pixels by which every mask grows; below 0 it shrinks. Regional prompts want some room.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "masks", display_name="masks", tooltip="A batch with one mask for each subject, in their order."
                ),
                io.Mask.Output(
                    "mask_list",
                    display_name="mask_list",
                    is_output_list=True,
                    tooltip="The same masks one by one.",
                ),
                BoundingBoxes.Output(
                    "boxes", display_name="boxes", tooltip="A box for each subject, in their order, in pixels."
                ),
                io.Image.Output(
                    "canvas", display_name="canvas", tooltip="The subjects in the scene or on white, as in Layout."
                ),
                io.String.Output(
                    "names",
                    display_name="names",
                    is_output_list=True,
                    tooltip="Token and class noun of each subject, one by one, in the order of the masks.",
                ),
                LayersSocket.Output(
                    "layers",
                    display_name="layers",
                    tooltip="For the Layer Editor of newer ComfyUI.",
                ),
            ],
        )

    @classmethod
    def execute(cls, layout: PlacedSubjects, shape: str, grow: int) -> io.NodeOutput:
        import torch

        host.check_choice("shape", shape, SHAPES)
        mix = layout.canvas(drawn_layout(layout, layout.config.seed, 0))
        subjects = [
            subject
            for subject in layout.cutouts.subjects
            if any(placement.token == subject.token for placement in mix.layout.placements)
        ]
        rows = [_row(mix, subject.token) for subject in subjects]
        boxes = [_box(mix, row) for row in rows]
        masks = [_mask(mix, row, shape, grow) for row in rows]
        names = [subject.name for subject in subjects]
        previews = [drawing.small(mix.image), *(drawing.cut_out(mix.image, mask) for mask in masks)]
        return io.NodeOutput(
            torch.stack(masks),
            [mask[None] for mask in masks],
            boxes,
            convert.image_batch([mix.image]),
            names,
            layer_editor.document(layout, mix.layout),
            ui=host.preview(previews, cls, ", ".join(names)),
        )


def _row(mix: Mix, token: str) -> int:
    """Return the place of a subject among the masks of a composition, which are from back to front."""
    return next(row for row, placement in enumerate(mix.layout.placements) if placement.token == token)


def _box(mix: Mix, row: int) -> dict[str, float]:
    width, height = mix.layout.size
    x0, y0, x1, y1 = mix.layout.placements[row].xyxy
    return {
        "x": round(x0 * width), "y": round(y0 * height), "width": round((x1 - x0) * width),
        "height": round((y1 - y0) * height), "score": 1.0,
    }  # fmt: skip


def _mask(mix: Mix, row: int, shape: str, grow: int) -> Tensor:
    """Return the mask of one subject ``[h, w]``, 0..1: its visible outline or its box, grown by some pixels."""
    import cv2
    import numpy as np
    import torch

    mask = mix.masks[row]
    if shape == BOX:
        box = _box(mix, row)
        x, y = int(box["x"]), int(box["y"])
        mask = torch.zeros_like(mask)
        mask[max(0, y) : y + int(box["height"]), max(0, x) : x + int(box["width"])] = 1.0
    if grow == 0:
        return mask
    side = 2 * abs(grow) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    change = cv2.dilate if grow > 0 else cv2.erode
    return torch.from_numpy(change(np.ascontiguousarray(mask.numpy()), disc))
