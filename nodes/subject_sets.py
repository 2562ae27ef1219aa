"""Load and Save Subject Set: subjects as a dataset folder in ComfyUI's input folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.subjects.storage import METADATA
from . import drawing, host
from .host import written
from .sockets import Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import SubjectSet

CATEGORY, DATASET = "MuDI/1 subjects", "dataset"


class LoadSubjectSet(io.ComfyNode):  # type: ignore[misc]
    """Read subjects from a dataset folder in ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiLoadSubjectSet",
            display_name="Load Subject Set (MuDI)",
            category=CATEGORY,
            description="Reads subjects, their photos, masks and captions from a folder inside ComfyUI's input folder. "
            "It is the format of the official MuDI code, with a metadata.jsonl.",
            search_aliases=["dataset", "load subjects", "metadata.jsonl"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "name",
                    options=host.datasets(),
                    tooltip="A folder with a metadata.jsonl, or a class_metadata.jsonl of the official code's priors, "
                    "inside ComfyUI's input folder. Press R after adding one.",
                )
            ],
            outputs=[Subjects.Output("subjects", display_name="subjects", tooltip="The subjects of the folder.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        return host.is_plain_name(name, DATASET)

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> Any:
        return None if name is None else written.state_of_folder(host.input_folder(name, DATASET))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        from ..mudi_core.subjects.find import doubts
        from ..mudi_core.subjects.storage import changes, read_subjects

        folder = host.input_folder(name, DATASET)
        with host.progress()("reading") as update:
            subjects = read_subjects(folder, update, within=host.input_root())
        words = "\n".join(filter(None, [_summary(subjects), changes(folder), *doubts(subjects)]))
        return io.NodeOutput(subjects, ui=host.preview(_cut_outs(subjects), cls, words))


class SaveSubjectSet(io.ComfyNode):  # type: ignore[misc]
    """Write subjects into a dataset folder in ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSaveSubjectSet",
            display_name="Save Subject Set (MuDI)",
            category=CATEGORY,
            description="Writes subjects into a folder inside ComfyUI's input folder, from where Load Subject Set "
            "reads them. A set of the same name is replaced.",
            search_aliases=["dataset", "save subjects", "metadata.jsonl"],
            is_output_node=True,
            inputs=[
                Subjects.Input("subjects", tooltip="The subjects to keep."),
                io.String.Input(
                    "name",
                    default="my_subjects",
                    tooltip="Name of the folder inside ComfyUI's input folder. A set that is there is replaced.",
                ),
            ],
            outputs=[
                Subjects.Output("saved", display_name="subjects", tooltip="The same subjects, as they were written."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        return host.is_plain_name(name, DATASET)

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **others: Any) -> int:
        return written.times_gone("MudiSaveSubjectSet", {"name": name})

    @classmethod
    def execute(cls, subjects: SubjectSet, name: str) -> io.NodeOutput:
        from ..mudi_core.subjects.storage import read_subjects, write_subjects

        with host.progress()("writing") as update:
            folder = write_subjects(subjects, host.input_folder(name, DATASET), update, host.input_root())
        with host.progress()("reading back") as update:
            saved = read_subjects(folder, update, subjects)
        written.remember("MudiSaveSubjectSet", {"name": name}, folder / METADATA)
        return io.NodeOutput(saved, ui=host.preview(_cut_outs(saved), cls, _summary(saved)))


def _cut_outs(subjects: SubjectSet) -> list[Tensor]:
    return [
        drawing.cut_out(photo.image, mask)
        for subject in subjects
        for photo, mask in zip(subject.photos, subject.masks, strict=True)
    ]


def _counted(photos: int) -> str:
    return "1 photo" if photos == 1 else f"{photos} photos"


def _summary(subjects: SubjectSet) -> str:
    return ", ".join(f"{subject.name} ({_counted(len(subject.photos))})" for subject in subjects)
