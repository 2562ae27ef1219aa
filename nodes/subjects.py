"""Photos become subjects: found, segmented, named; and kept as a dataset folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.names import plain_name
from ..mudi_core.subjects.storage import METADATA
from ..mudi_core.types import BadSubject, MudiError, Photo
from . import convert, drawing, host
from .host import widgets, written
from .sockets import BoundingBoxes, Subjects, boxes_input

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import SubjectSet

CATEGORY = "MuDI/1 subjects"
DATASET, PHOTOS = "dataset", "folder of photos"
WHICH = ("exactly one", "best", "all")


class BoxesDoNotFit(MudiError):
    """As many lists of boxes as photos were expected, each with a box."""


class CaptionsDoNotFit(MudiError):
    """One caption for each photo was expected."""


class LoadPhotos(io.ComfyNode):  # type: ignore[misc]
    """A folder of photos in ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiLoadPhotos",
            display_name="Load Photos (MuDI)",
            category=CATEGORY,
            description="Reads all photos of a folder inside ComfyUI's input folder, upright, each in its own size.",
            search_aliases=["load images", "image folder", "directory", "batch of photos"],
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
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        return _is_name(folder, PHOTOS)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None) -> Any:
        return None if folder is None else _files(host.input_folder(folder, PHOTOS))

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        from ..mudi_core.subjects.photos import passed_over, read_photos

        where = host.input_folder(folder, PHOTOS)
        with host.progress()("reading") as update:
            photos = read_photos(where, update, host.input_root())
        # Other nodes speak of them by number.
        names = [f"photo {number}: {photo.name}" for number, photo in enumerate(photos, start=1)]
        said = "\n".join(filter(None, [*names, passed_over(where)]))
        shown = host.preview([drawing.small(photo.image) for photo in photos], cls, said)
        return io.NodeOutput([convert.image_batch([photo.image]) for photo in photos], ui=shown)


class DetectSubjects(io.ComfyNode):  # type: ignore[misc]
    """Where the subject is in each of its photos."""

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
            return "There is no text to look for. Write one, such as 'dog'."
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
    ) -> io.NodeOutput:
        from ..mudi_core.subjects.find import find_boxes

        host.check_choice("way to choose", which[0], WHICH)
        pictures = _photos(photos)
        detect = host.detector(detector[0], download[0])
        found, previews, lines = [], [], []
        with host.progress()("finding") as update:
            for done, photo in enumerate(pictures, start=1):
                seen = find_boxes(photo, query[0], detect, threshold[0], which[0])
                scores = [f"{score:.2f}" for score in seen.confidence.tolist()]
                found.append(convert.boxes(seen))
                previews.append(drawing.boxed(photo.image, seen.xyxy, scores))
                lines.append(f"{photo.name}: {' '.join(scores)}")
                update(done, len(pictures))
        return io.NodeOutput(found, ui=host.preview(previews, cls, ", ".join(lines)))


class SamMask(io.ComfyNode):  # type: ignore[misc]
    """What stands in the boxes, to the pixel."""

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

        pictures = _photos(photos)
        lists = [one for some in boxes for one in convert.boxes_per_image(some)]
        if len(lists) != len(pictures):
            raise BoxesDoNotFit(
                f"There are {len(pictures)} photos but boxes for {len(lists)}. Connect the photos that the boxes were "
                "found in."
            )
        for photo, one in zip(pictures, lists, strict=True):
            _check_boxes(photo, one)
        segment = host.segmenter(segmenter[0], download[0])
        found, previews = [], []
        with host.progress()("segmenting") as update:
            for done, (photo, one) in enumerate(zip(pictures, lists, strict=True), start=1):
                masks = segment_boxes(photo, convert.xyxy(one), segment, "best")
                found.append(masks)
                previews.append(drawing.cut_out(photo.image, masks.amax(0)))
                update(done, len(pictures))
        return io.NodeOutput(found, ui=host.preview(previews, cls, f"{_counted(len(pictures))} cut out"))


class MakeSubject(io.ComfyNode):  # type: ignore[misc]
    """Photos and masks under a name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSubject",
            display_name="Subject (MuDI)",
            category=CATEGORY,
            description="Names a subject: its photos, their masks, a token and a class noun. Chain one such node for "
            "each subject. The prompt will call it by both words, 'olis corgi'.",
            search_aliases=["MuDI", "DreamBooth subject", "character", "token"],
            is_input_list=True,
            inputs=[
                io.Image.Input("photos", tooltip="Photos of this one subject; 3 to 5 in varied surroundings do."),
                io.Mask.Input(
                    "masks",
                    tooltip="One mask for each photo, white where the subject is, from SAM Mask, the MaskEditor or any "
                    "other node.",
                ),
                io.String.Input(
                    "token",
                    default="olis",
                    tooltip="A rare word that names this subject and no other: olis, hta, ult, amg, lun.",
                ),
                io.String.Input(
                    "class_noun",
                    default="",
                    placeholder="corgi",
                    tooltip="What it is, as exact as you like: 'corgi', 'red monster plush'.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="one line for each photo (optional)",
                    tooltip="What training reads for each photo, one line each, naming token and class noun. Left "
                    "empty: 'a photo of olis corgi'.",
                ),
                Subjects.Input("subjects", optional=True, tooltip="The subjects so far; this one is added to them."),
            ],
            outputs=[
                Subjects.Output("all_subjects", display_name="subjects", tooltip="The subjects so far and this one.")
            ],
        )

    @classmethod
    def validate_inputs(cls, token: list[str | None], class_noun: list[str | None]) -> bool | str:
        if token[0] is not None and len(token[0].split()) != 1:
            return f"A subject needs a token of one word, such as 'olis'; got {token[0]!r}."
        if class_noun[0] is not None and not class_noun[0].strip():
            return "A subject needs a class noun, such as 'corgi'."
        return True

    @classmethod
    def execute(
        cls,
        photos: list[Tensor],
        masks: list[Tensor],
        token: list[str],
        class_noun: list[str],
        captions: list[str] | None = None,
        subjects: list[SubjectSet] | None = None,
    ) -> io.NodeOutput:
        from ..mudi_core.subjects.find import INVERTED, add_subject, doubts, inverted, name_doubts, subject_from_masks

        name = token[0].strip()
        pictures, shapes = convert.pictures(photos), convert.masks(masks)
        if not pictures:
            raise BadSubject(f"Subject '{name}' has no photos: the batch that comes in is empty.")
        if len(pictures) != len(shapes):
            raise BadSubject(
                f"Subject '{name}': {len(pictures)} photos but {len(shapes)} masks. Connect one mask for each photo."
            )
        texts = _captions(captions or [""], len(pictures))
        named = [
            Photo(f"{name}_{number}.png", picture, caption)
            for number, (picture, caption) in enumerate(zip(pictures, texts, strict=True), start=1)
        ]
        subject = subject_from_masks(named, shapes, name, class_noun[0].strip())
        said = [f"{photo.name}: {INVERTED}" for photo, mask in zip(named, shapes, strict=True) if inverted(mask)]
        together = add_subject(subjects[0] if subjects else None, subject)
        named_badly = name_doubts([(one.token, one.class_noun) for one in together])
        for doubt in named_badly:
            host.log.warning(doubt)
        ui = host.preview([], cls, "\n".join(said + doubts([subject]) + named_badly))
        return io.NodeOutput(together, ui=ui)


class LoadSubjectSet(io.ComfyNode):  # type: ignore[misc]
    """A dataset folder of ComfyUI's input folder, as subjects."""

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
        return _is_name(name, DATASET)

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> Any:
        return None if name is None else _files(host.input_folder(name, DATASET))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        from ..mudi_core.subjects.find import doubts
        from ..mudi_core.subjects.storage import changes, read_subjects

        folder = host.input_folder(name, DATASET)
        with host.progress()("reading") as update:
            subjects = read_subjects(folder, update, within=host.input_root())
        said = "\n".join(filter(None, [_summary(subjects), changes(folder), *doubts(subjects)]))
        return io.NodeOutput(subjects, ui=host.preview(_cut_outs(subjects), cls, said))


class SaveSubjectSet(io.ComfyNode):  # type: ignore[misc]
    """Subjects as a dataset folder of ComfyUI's input folder."""

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
        return _is_name(name, DATASET)

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **others: Any) -> int:
        return written.times_gone("MudiSaveSubjectSet", {"name": name})

    @classmethod
    def execute(cls, subjects: SubjectSet, name: str) -> io.NodeOutput:
        from ..mudi_core.subjects.storage import read_subjects, write_subjects

        with host.progress()("writing") as update:
            folder = write_subjects(subjects, host.input_folder(name, DATASET), update)
        with host.progress()("reading back") as update:
            saved = read_subjects(folder, update, subjects)
        written.remember("MudiSaveSubjectSet", {"name": name}, folder / METADATA)
        return io.NodeOutput(saved, ui=host.preview(_cut_outs(saved), cls, _summary(saved)))


def _files(folder: Path) -> list[tuple[str, tuple[int, ...]]]:
    """What changes when a file of the folder does."""
    files = sorted(folder.rglob("*"))
    return [(str(path), state) for path, state in zip(files, written.state_of(files), strict=True)]


def _photos(images: list[Tensor]) -> list[Photo]:
    """The photos as a node counts them: "photo 3" in a message is the third one."""
    photos = [Photo(f"photo {number}", image) for number, image in enumerate(convert.pictures(images), start=1)]
    if not photos:
        raise BadSubject("There are no photos: the batch that comes in is empty. Look at the node before.")
    return photos


def _check_boxes(photo: Photo, boxes: list[Any]) -> None:
    """Raises `BoxesDoNotFit` when there is none, or one of which less than half lies inside the photo."""
    from ..mudi_core.boxes import area, clip

    if not boxes:
        raise BoxesDoNotFit(f"{photo.name} has no box. Leave the photo out, or find its subject first.")
    whole = convert.xyxy(boxes)
    for box, seen, all_of_it in zip(boxes, area(clip(whole, photo.size)).tolist(), area(whole).tolist(), strict=True):
        if not seen > all_of_it / 2:
            raise BoxesDoNotFit(
                f"{photo.name} is {photo.size[0]}x{photo.size[1]} px, and a box of {box['width']:g}x{box['height']:g} "
                f"px at {box['x']:g}, {box['y']:g} does not lie in it. Was it found in a picture of another size? "
                "Connect the photos that the boxes were found in."
            )


def _captions(texts: list[str], count: int) -> list[str]:
    """A caption for each photo, from one text of as many lines or from a list of texts; none from an empty text."""
    lines = texts if len(texts) > 1 else texts[0].strip("\n").splitlines()
    if not any(line.strip() for line in lines):
        return [""] * count
    if len(lines) != count:
        raise CaptionsDoNotFit(
            f"There are {count} photos but {len(lines)} captions. Write one line for each photo, or none at all."
        )
    return [line.strip() for line in lines]


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


def _is_name(name: str | None, what: str) -> bool | str:
    """True, or what is wrong with a name; a name that another node gives is not known yet."""
    if name is not None:
        try:
            plain_name(name, what)
        except MudiError as error:
            return str(error)
    return True
