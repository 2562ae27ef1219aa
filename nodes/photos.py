"""Load Photos: a folder of photos in ComfyUI's input folder, one by one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import convert, drawing, host
from .host import written

CATEGORY, PHOTOS = "MuDI/1 subjects", "folder of photos"


class LoadPhotos(io.ComfyNode):  # type: ignore[misc]
    """Read a folder of photos in ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiLoadPhotos",
            display_name="Load Photos (MuDI)",
            category=CATEGORY,
            description="Reads all photos of a folder inside ComfyUI's input folder, upright, each in its own size, "
            "and the captions beside them.",
            search_aliases=["load images", "image folder", "directory", "batch of photos", "captions", "kohya"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=host.photo_folders(),
                    tooltip="A folder inside ComfyUI's input folder with the photos of one subject (JPEG, PNG, WebP, "
                    "AVIF, BMP, TIFF). Press R after adding one.",
                )
            ],
            outputs=[
                io.Image.Output(
                    "photos",
                    display_name="photos",
                    is_output_list=True,
                    tooltip="The photos one by one, by their names: 2.jpg before 10.jpg.",
                ),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    is_output_list=True,
                    tooltip="For each photo the text of the file beside it, 2.txt or 2.caption; empty where there is "
                    "none. For Subject.",
                ),
                io.String.Output(
                    "token",
                    display_name="token",
                    tooltip="The token that a folder's name in kohya's form offers, 'olis' of '10_olis dog'.",
                ),
                io.String.Output(
                    "class_noun",
                    display_name="class_noun",
                    tooltip="The class noun that such a name offers, 'dog' of '10_olis dog'.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        return host.is_plain_name(folder, PHOTOS)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None) -> Any:
        return None if folder is None else written.state_of_folder(host.input_folder(folder, PHOTOS))

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        from ..mudi_core.subjects.captions import offer_of, too_long
        from ..mudi_core.subjects.photos import passed_over, read_photos

        where = host.input_folder(folder, PHOTOS)
        with host.progress()("reading") as update:
            photos = read_photos(where, update, host.input_root())
        # Other nodes call them by number.
        names = [f"photo {number}: {photo.name}" for number, photo in enumerate(photos, start=1)]
        captions, offer = [photo.caption for photo in photos], offer_of(folder)
        remarks = [_counted(captions), "" if offer is None else offer.words, *too_long(photos), passed_over(where)]
        words = "\n".join(filter(None, [*names, *remarks]))
        shown = host.preview([drawing.small(photo.image) for photo in photos], cls, words)
        pictures = [convert.image_batch([photo.image]) for photo in photos]
        if offer is None:
            return io.NodeOutput(pictures, captions, "", "", ui=shown)
        return io.NodeOutput(pictures, captions, offer.token, offer.class_noun, ui=shown)


def _counted(captions: list[str]) -> str:
    """Return a sentence about how many photos have a caption; nothing where none has."""
    count = sum(map(bool, captions))
    return (
        f"{count} of {len(captions)} photos have a caption beside them: connect captions to Subject." if count else ""
    )
