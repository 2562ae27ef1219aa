"""Subject from Photos: a folder of photos or a batch becomes a named subject in one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.types import BadSubject, Photo
from . import drawing, host
from .find import named_photos
from .host import widgets, written
from .photos import PHOTOS
from .sockets import Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import SubjectSet

CATEGORY = "MuDI/1 subjects"
NO_FOLDER = "(the photos that are connected)"
WHICH = ("exactly one", "best")


class FindSubject(io.ComfyNode):  # type: ignore[misc]
    """Find a subject in each of its photos, cut it out and name it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSubjectFromPhotos",
            essentials_category="Characters",
            display_name="Subject from Photos (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Load Photos, Detect Subjects, SAM Mask and Subject in one: finds a subject in each photo of a "
            "folder, cuts it out and names it. For several subjects, one node follows the other.",
            search_aliases=[
                *("character", "multi subject", "two characters", "consistent character", "dreambooth", "identity"),
                *("my dog", "folder to subject", "cut out", "prepare"),
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[NO_FOLDER, *host.photo_folders()],
                    tooltip="A folder inside ComfyUI's input folder with photos of this one subject; 3 to 5 in varied "
                    "places are enough. Press R after adding one.",
                ),
                io.String.Input(
                    "token",
                    default="",
                    placeholder="olis",
                    tooltip="A rare word that names this subject and no other: olis, hta, ult, amg, lun. Empty: what "
                    "the folder's name offers, as '10_olis dog' does.",
                ),
                io.String.Input(
                    "class_noun",
                    default="",
                    placeholder="corgi",
                    tooltip="What it is, as exactly as you like: 'corgi', 'red monster plush'. Empty: what the "
                    "folder's name offers.",
                ),
                io.String.Input(
                    "query",
                    default="",
                    placeholder="dog",
                    tooltip="What to look for in the photos, rather general: 'dog' finds more than 'corgi'. Empty: the "
                    "class noun.",
                ),
                widgets.model("detector", "The model that finds it."),
                widgets.model("segmenter", "The model that finds its outline."),
                widgets.threshold("Least confidence of a box that counts. Lower it when nothing is found."),
                io.Combo.Input(
                    "which",
                    options=list(WHICH),
                    default=WHICH[0],
                    tooltip="exactly one: a photo with none or several is an error that names it. best: the "
                    "surest box.",
                ),
                widgets.download(),
                io.Image.Input(
                    "photos", optional=True, tooltip="Photos of this one subject, instead of a folder: batch or list."
                ),
                Subjects.Input("subjects", optional=True, tooltip="The subjects so far; this one is added to them."),
            ],
            outputs=[
                Subjects.Output("all_subjects", display_name="subjects", tooltip="The subjects so far and this one."),
                io.Mask.Output(
                    "masks",
                    display_name="masks",
                    is_output_list=True,
                    tooltip="For each photo its mask.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: list[str | None], token: list[str | None]) -> bool | str:
        if token[0] is not None and len(token[0].split()) > 1:
            return f"A subject needs a token of one word, such as 'olis'; got {token[0]!r}."
        return folder[0] == NO_FOLDER or host.is_plain_name(folder[0], PHOTOS)

    @classmethod
    def fingerprint_inputs(cls, folder: list[str | None], **others: Any) -> Any:
        if folder[0] is None or folder[0] == NO_FOLDER:
            return None
        return written.state_of_folder(host.input_folder(folder[0], PHOTOS))

    @classmethod
    def execute(
        cls,
        folder: list[str],
        token: list[str],
        class_noun: list[str],
        query: list[str],
        detector: list[str],
        segmenter: list[str],
        threshold: list[float],
        which: list[Any],
        download: list[bool],
        photos: list[Tensor] | None = None,
        subjects: list[SubjectSet] | None = None,
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.prepare import Wanted, prepare
        from ..mudi_core.subjects.captions import named
        from ..mudi_core.subjects.find import add_subject, doubts, name_doubts

        host.check_choice("way to choose", which[0], WHICH)
        shots, said = _shots(folder[0], photos)
        name, noun = _named(folder[0], token[0].strip(), class_noun[0].strip())
        shots, remarks = named(shots, name, noun)
        wanted = Wanted(name, noun, query[0].strip(), threshold[0], which[0])
        detect, segment = host.detector(detector[0], download[0]), host.segmenter(segmenter[0], download[0])
        subject = prepare(shots, wanted, detect, segment, host.progress())
        together = add_subject(subjects[0] if subjects else None, subject)
        remarks += [*said, *doubts([subject]), *name_doubts([(one.token, one.class_noun) for one in together])]
        for remark in remarks:
            host.log.warning(remark)
        shown = [drawing.cut_out(shot.image, mask) for shot, mask in zip(subject.photos, subject.masks, strict=True)]
        words = "\n".join([f"{subject.name}: {len(shown)} photos", *remarks])
        return io.NodeOutput(together, [mask[None] for mask in subject.masks], ui=host.preview(shown, cls, words))


def _shots(folder: str, photos: list[Tensor] | None) -> tuple[Sequence[Photo], list[str]]:
    """Return the photos of a folder or those that are connected, and what is to say of them. Raise `BadSubject`."""
    from ..mudi_core.subjects.captions import too_long
    from ..mudi_core.subjects.photos import passed_over, read_photos

    if folder == NO_FOLDER:
        if photos is None:
            raise BadSubject("There are no photos: choose a folder, or connect photos to this node.")
        return named_photos(photos), []
    where = host.input_folder(folder, PHOTOS)
    with host.progress()("reading") as update:
        shots = read_photos(where, update, host.input_root())
    remarks = [*too_long(shots), passed_over(where)]
    if photos is not None:
        remarks.append("The photos that are connected are not read, because a folder is chosen.")
    return shots, [remark for remark in remarks if remark]


def _named(folder: str, token: str, noun: str) -> tuple[str, str]:
    """Return token and class noun, as written or as the folder's name offers them. Raise `BadSubject`."""
    from ..mudi_core.subjects.captions import offer_of

    offer = None if folder == NO_FOLDER else offer_of(folder)
    token, noun = token or (offer.token if offer else ""), noun or (offer.class_noun if offer else "")
    if not token or not noun:
        raise BadSubject(
            f"A subject needs a {'class noun, such as' if token else 'token, a rare word such as'} "
            f"'{'corgi' if token else 'olis'}'. Write one into this node."
        )
    return token, noun
