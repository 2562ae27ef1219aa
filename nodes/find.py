"""Detect Subjects and SAM Mask: find a subject in each of its photos, as a box and then as a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.types import BadSubject, Photo
from . import convert, drawing, host
from .given_boxes import BoxesDoNotFit, GivenBoxes, check_inside
from .host import widgets
from .sockets import BoundingBoxes, boxes_input

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.eyes import Detector

CATEGORY = "MuDI/1 subjects"
WHICH = ("exactly one", "best", "all")


class DetectSubjects(io.ComfyNode):  # type: ignore[misc]
    """Find the subject in each of its photos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiDetectSubjects",
            display_name="Detect Subjects (MuDI)",
            category=CATEGORY,
            description="Finds a subject in each of its photos by a word, with OWLv2.",
            search_aliases=["OWLv2", "detect", "bounding box", "find subject", "grounding"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "photos", tooltip="Photos of one subject, as a batch or a list; they may differ in size."
                ),
                io.String.Input(
                    "query",
                    default="",
                    placeholder="dog",
                    tooltip="What to look for, rather general: 'dog' finds more than 'corgi'.",
                ),
                widgets.model("detector", "The model that finds it."),
                widgets.threshold("Least confidence of a box that counts. Lower it when nothing is found."),
                io.Combo.Input(
                    "which",
                    options=list(WHICH),
                    default="exactly one",
                    tooltip="exactly one: a photo with none or several is an error that names it. best: the surest "
                    "box. all: every box.",
                ),
                widgets.download(),
                boxes_input(
                    "Boxes of another node, such as SAM3 Detect, for each photo: they are chosen from, and no detector "
                    "is loaded.",
                    optional=True,
                    name="found",
                ),
            ],
            outputs=[
                BoundingBoxes.Output(
                    "boxes",
                    display_name="boxes",
                    is_output_list=True,
                    tooltip="For each photo its boxes, in pixels, with their scores.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, query: list[str | None]) -> bool | str:
        if query[0] is not None and not query[0].strip():
            return "The text to look for is empty. Write one, such as 'dog'."
        return True

    @classmethod
    def execute(
        cls,
        photos: list[Tensor],
        query: list[str],
        detector: list[str],
        threshold: list[float],
        which: list[Any],
        download: list[bool],
        found: list[Any] | None = None,
    ) -> io.NodeOutput:
        from ..mudi_core.subjects.find import find_boxes

        host.check_choice("way to choose", which[0], WHICH)
        pictures = named_photos(photos)
        if found:
            detect: Detector = GivenBoxes(found, [photo.image for photo in pictures], "photo")
        else:
            detect = host.detector(detector[0], download[0])
        chosen, previews, lines = [], [], []
        with host.progress()("finding") as update:
            for done, photo in enumerate(pictures, start=1):
                seen = find_boxes(photo, query[0], detect, threshold[0], which[0])
                scores = [f"{score:.2f}" for score in seen.confidence.tolist()]
                chosen.append(convert.boxes(seen))
                previews.append(drawing.boxed(photo.image, seen.xyxy, scores))
                lines.append(f"{photo.name}: {' '.join(scores)}")
                update(done, len(pictures))
        return io.NodeOutput(chosen, ui=host.preview(previews, cls, ", ".join(lines)))


class SamMask(io.ComfyNode):  # type: ignore[misc]
    """Turn boxes into masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSamMask",
            display_name="SAM Mask (MuDI)",
            category=CATEGORY,
            description="Turns boxes into masks with Segment Anything, one mask for each box.",
            search_aliases=["segment anything", "SAM", "mask from box", "cut out"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("photos", tooltip="The photos that the boxes belong to, as a batch or a list."),
                boxes_input("For each photo its box, from Detect Subjects or another node."),
                widgets.model("segmenter", "The model that finds the outline."),
                widgets.download(),
            ],
            outputs=[
                io.Mask.Output(
                    "masks",
                    display_name="masks",
                    is_output_list=True,
                    tooltip="For each photo the mask of its box, of the photo's size; for several boxes a batch.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, photos: list[Tensor], boxes: list[Any], segmenter: list[str], download: list[bool]
    ) -> io.NodeOutput:
        from ..mudi_core.subjects.find import segment_boxes

        pictures = named_photos(photos)
        lists = [one for some in boxes for one in convert.boxes_per_image(some)]
        _check_lists(pictures, lists)
        segment = host.segmenter(segmenter[0], download[0])
        found, previews = [], []
        with host.progress()("segmenting") as update:
            for done, (photo, one) in enumerate(zip(pictures, lists, strict=True), start=1):
                masks = segment_boxes(photo, convert.xyxy(one), segment, "best")
                found.append(masks)
                previews.append(drawing.cut_out(photo.image, masks.amax(0)))
                update(done, len(pictures))
        return io.NodeOutput(
            found,
            ui=host.preview(previews, cls, f"{len(pictures)} {'photo' if len(pictures) == 1 else 'photos'} cut out"),
        )


def named_photos(images: list[Tensor]) -> list[Photo]:
    """Name the photos as the node counts them: "photo 3" in a message is the third one."""
    photos = [Photo(f"photo {number}", image) for number, image in enumerate(convert.pictures(images), start=1)]
    if not photos:
        raise BadSubject("There are no photos: the batch that comes in is empty. Check the node before this one.")
    return photos


def _check_lists(photos: list[Photo], lists: list[Any]) -> None:
    """Raise `BoxesDoNotFit` where the boxes are not those of these photos, or a photo has none."""
    if len(lists) != len(photos):
        raise BoxesDoNotFit(
            f"There are {len(photos)} photos but boxes for {len(lists)}. Connect the photos that the boxes were "
            "found in."
        )
    for photo, boxes in zip(photos, lists, strict=True):
        if not boxes:
            raise BoxesDoNotFit(f"{photo.name} has no box. Leave the photo out, or find its subject first.")
        check_inside(photo.name, photo.size, boxes)
