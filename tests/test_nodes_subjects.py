"""Photos to subjects in ComfyUI: lists and batches of any sizes, and sentences about what cannot be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from coloured import COLOURS, ellipse, paint
from comfyui import Comfy
from PIL import Image
from torch import Tensor

from mudi_core.subjects.find import CoversAll, NotFound, SeveralFound
from mudi_core.subjects.photos import NoPhotos
from mudi_core.subjects.picture_file import BadPhoto
from mudi_core.types import BadSubject, Detections, MudiError, SubjectSet

SIZES = ((120, 200), (160, 96), (128, 128))


def masks() -> list[Tensor]:
    return [ellipse(width, height, (0.3 * width, 0.35 * height)) for width, height in SIZES]


def photos() -> list[Tensor]:
    """A red ball on grass, three times, as Load Image would give them: batches of one."""
    return [paint(mask, COLOURS["red"])[None] for mask in masks()]


def red(image: Tensor, queries: Any, threshold: float) -> Detections:
    """Finds what is red; the most confident is the whole of it, the other its upper half."""
    ys, xs = ((image[..., 0] > 0.9) & (image[..., 1] < 0.1)).nonzero(as_tuple=True)
    if len(xs) == 0:
        return Detections(torch.zeros(0, 4), torch.zeros(0), (), 0.12)
    x0, y0, x1, y1 = (float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    found = [((x0, y0, x1, y1), 0.9), ((x0, y0, x1, (y0 + y1) / 2), 0.4)]
    found = [(box, score) for box, score in found if score >= threshold]
    xyxy, scores = torch.tensor([box for box, _ in found]), torch.tensor([score for _, score in found])
    return Detections(xyxy, scores, (queries[0],) * len(found), 0.9)


def inside(image: Tensor, xyxy: Tensor) -> Tensor:
    """The red pixels of each box."""
    shown = torch.zeros(len(xyxy), *image.shape[:2])
    for mask, (x0, y0, x1, y1) in zip(shown, xyxy.round().int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = (image[y0:y1, x0:x1, 1] < 0.5).float()
    return shown


@pytest.fixture
def eyes(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    monkeypatch.setattr(comfy.module("host"), "detector", lambda choice, download: red)
    monkeypatch.setattr(comfy.module("host"), "segmenter", lambda choice, download: inside)
    return comfy


def detect(comfy: Comfy, images: Any, which: str = "exactly one", threshold: float = 0.5) -> Any:
    """As the executor calls a node that takes lists."""
    return comfy.run(
        "MudiDetectSubjects",
        photos=images,
        query=["ball"],
        detector=["mini (embedded)"],
        threshold=[threshold],
        which=[which],
        download=[False],
    )


def segment(comfy: Comfy, images: Any, boxes: Any) -> Any:
    return comfy.run("MudiSamMask", photos=images, boxes=boxes, segmenter=["mini (embedded)"], download=[False])


def make(comfy: Comfy, images: Any, shapes: Any, token: str = "olis", **more: Any) -> SubjectSet:
    subjects: SubjectSet = comfy.run(
        "MudiSubject", photos=images, masks=shapes, token=[token], class_noun=["ball"], **more
    ).result[0]
    return subjects


def previews(comfy: Comfy, output: Any) -> list[Path]:
    paths = [comfy.base / "temp" / shown["filename"] for shown in output.ui["images"]]
    assert all(path.is_file() for path in paths)
    return paths


@pytest.fixture
def snapshots(comfy: Comfy) -> Iterator[Path]:
    """A folder of photos: a lying one that its EXIF data set upright, a tall one, a mask and a text."""
    folder = comfy.base / "input" / "snapshots"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), (255, 0, 0)).save(folder / "10.jpg", exif=exif)
    Image.new("RGB", (40, 90), (0, 0, 255)).save(folder / "2.png")
    Image.new("L", (40, 90)).save(folder / "mask_2.png")
    (folder / "readme.txt").touch()
    yield folder
    shutil.rmtree(folder)


def test_a_folder_of_photos_is_loaded_upright_each_in_its_size(comfy: Comfy, snapshots: Path) -> None:
    output = comfy.run("MudiLoadPhotos", folder="snapshots")
    images = output.result[0]
    assert [tuple(image.shape) for image in images] == [(1, 90, 40, 3), (1, 64, 48, 3)]
    assert images[0][0, 0, 0].tolist() == [0, 0, 1] and images[1][0, 0, 0, 0] > 0.9
    assert output.ui["text"] == ("photo 1: 2.png\nphoto 2: 10.jpg",) and len(previews(comfy, output)) == 2
    choices = {one.id: one for one in comfy.node("MudiLoadPhotos").define_schema().inputs}["folder"].options
    assert "snapshots" in choices


def test_a_changed_folder_of_photos_is_loaded_anew(comfy: Comfy, snapshots: Path) -> None:
    fingerprint = comfy.node("MudiLoadPhotos").fingerprint_inputs
    before = fingerprint(folder="snapshots")
    assert fingerprint(folder="snapshots") == before
    Image.new("RGB", (40, 90)).save(snapshots / "3.png")
    assert fingerprint(folder="snapshots") != before


def test_what_is_no_photo_is_named(comfy: Comfy, snapshots: Path) -> None:
    (snapshots / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(BadPhoto, match="3.jpg is not a picture"):
        comfy.run("MudiLoadPhotos", folder="snapshots")
    with pytest.raises(NoPhotos, match="There is no folder .*nowhere. Make it"):
        comfy.run("MudiLoadPhotos", folder="nowhere")


def test_photos_of_any_size_become_boxes_masks_and_a_subject(eyes: Comfy) -> None:
    found = detect(eyes, photos())
    (boxes,) = found.result
    assert [len(one) for one in boxes] == [1, 1, 1] and boxes[0][0]["score"] == pytest.approx(0.9)
    cut = segment(eyes, photos(), boxes)
    (shapes,) = cut.result
    assert [tuple(mask.shape) for mask in shapes] == [(1, height, width) for width, height in SIZES]
    (subject,) = make(eyes, photos(), shapes)
    assert subject.name == "olis ball" and [photo.size for photo in subject.photos] == list(SIZES)
    assert all(torch.equal(mask, true) for mask, true in zip(subject.masks, masks(), strict=True))
    assert len(previews(eyes, found)) == len(previews(eyes, cut)) == 3
    for (box,), size, boxed, faded in zip(boxes, SIZES, previews(eyes, found), previews(eyes, cut), strict=True):
        scale = 512 / max(size)
        edge = round(box["x"] * scale) + 1, round(size[1] / 2 * scale)
        with Image.open(boxed) as one, Image.open(faded) as other:
            assert one.getpixel(edge) == (0, 114, 178) and one.getpixel((0, 0)) == (0, 255, 0)
            assert other.getpixel((0, 0)) == (204, 255, 204)


def test_a_batch_of_photos_is_as_good_as_a_list(eyes: Comfy) -> None:
    batch = photos()[0].repeat(3, 1, 1, 1)
    (boxes,) = detect(eyes, [batch]).result
    (shapes,) = segment(eyes, [batch], boxes).result
    one_by_one = make(eyes, [batch], shapes)
    together = make(eyes, list(batch[:, None]), [torch.cat(shapes)])
    for subjects in (one_by_one, together):
        assert [len(subject.photos) for subject in subjects] == [3]


def test_all_boxes_give_a_batch_of_masks_for_each_photo(eyes: Comfy) -> None:
    (boxes,) = detect(eyes, photos(), "all", 0.3).result
    assert [len(one) for one in boxes] == [2, 2, 2]
    (shapes,) = segment(eyes, photos(), boxes).result
    assert [len(batch) for batch in shapes] == [2, 2, 2]
    with pytest.raises(BadSubject, match="'olis': 3 photos but 6 masks.*one mask for each photo"):
        make(eyes, photos(), shapes)
    assert detect(eyes, photos(), "best", 0.3).result[0][0][0]["score"] == pytest.approx(0.9)
    with pytest.raises(SeveralFound, match="photo 1: 'ball' was found 2 times"):
        detect(eyes, photos(), "exactly one", 0.3)


@pytest.mark.parametrize("form", ["a batch", "bare boxes"])
def test_boxes_are_taken_in_the_forms_that_nodes_send(eyes: Comfy, form: str) -> None:
    (boxes,) = detect(eyes, photos()).result
    sent = [boxes] if form == "a batch" else [one[0] for one in boxes]
    assert len(segment(eyes, photos(), sent).result[0]) == 3


def test_the_photo_without_the_subject_is_named(eyes: Comfy) -> None:
    images = photos()
    images[1] = torch.zeros_like(images[1])
    with pytest.raises(NotFound, match=r"photo 2: no 'ball' was found \(best score 0.12, threshold 0.5\). Lower"):
        detect(eyes, images)


def test_boxes_of_other_photos_are_refused(eyes: Comfy) -> None:
    (boxes,) = detect(eyes, photos()).result
    with pytest.raises(MudiError, match="3 photos but boxes for 2. Connect the photos"):
        segment(eyes, photos(), boxes[:2])
    with pytest.raises(MudiError, match="photo 3 has no box"):
        segment(eyes, photos(), [*boxes[:2], []])


def test_an_empty_mask_and_one_of_another_size_are_refused(eyes: Comfy) -> None:
    shapes = [mask[None] for mask in masks()]
    with pytest.raises(NotFound, match="olis_2.png: the mask is empty"):
        make(eyes, photos(), [shapes[0], torch.zeros_like(shapes[1]), shapes[2]])
    with pytest.raises(BadSubject, match="olis_2.png: the mask is 120x200 px, the photo 160x96 px. Draw"):
        make(eyes, photos(), [shapes[0], shapes[0], shapes[2]])
    with pytest.raises(CoversAll, match="olis_3.png: the mask covers.*inverted"):
        make(eyes, photos(), [*shapes[:2], torch.ones_like(shapes[2])])


def test_subjects_are_chained_and_each_has_a_token_of_its_own(eyes: Comfy) -> None:
    first = make(eyes, photos(), masks())
    both = make(eyes, photos(), masks(), "hta", subjects=[first])
    assert both.tokens == ("olis", "hta") and first.tokens == ("olis",)
    with pytest.raises(BadSubject, match="'olis' is used by two subjects"):
        make(eyes, photos(), masks(), subjects=[both])


def test_captions_are_one_for_each_photo_or_none(eyes: Comfy) -> None:
    lines = ["olis ball at home", "", "olis ball outside"]
    for captions in (["\n".join(lines)], lines):
        (subject,) = make(eyes, photos(), masks(), captions=captions)
        assert [photo.caption for photo in subject.photos] == lines
    (subject,) = make(eyes, photos(), masks(), captions=[" \n"])
    assert {photo.caption for photo in subject.photos} == {""}
    with pytest.raises(MudiError, match="3 photos but 2 captions"):
        make(eyes, photos(), masks(), captions=["one\ntwo"])


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        ("MudiDetectSubjects", {"query": [" "]}, "(?i)text to look for is empty"),
        ("MudiSubject", {"token": ["my dog"], "class_noun": ["dog"]}, "token of one word"),
        ("MudiSubject", {"token": [""], "class_noun": ["dog"]}, "token of one word"),
        ("MudiSubject", {"token": ["olis"], "class_noun": [""]}, "class noun"),
        ("MudiSaveSubjectSet", {"name": "../dogs"}, "without a path"),
        ("MudiLoadSubjectSet", {"name": "a/b"}, "without a path"),
        ("MudiLoadPhotos", {"folder": "../photos"}, "name of a folder of photos: .* without a path"),
    ],
)
def test_words_that_cannot_be_are_refused_before_anything_runs(
    comfy: Comfy, node: str, inputs: dict[str, Any], words: str
) -> None:
    assert re.search(words, comfy.node(node).validate_inputs(**inputs))


def test_words_that_another_node_will_give_are_not_judged_yet(comfy: Comfy) -> None:
    assert comfy.node("MudiDetectSubjects").validate_inputs(query=(None,)) is True
    assert comfy.node("MudiSubject").validate_inputs(token=(None,), class_noun=(None,)) is True
    assert comfy.node("MudiSaveSubjectSet").validate_inputs(name=None) is True
    assert comfy.node("MudiLoadPhotos").validate_inputs(folder=None) is True


def test_a_set_is_saved_into_the_input_folder_and_loaded_again(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    saved = comfy.run("MudiSaveSubjectSet", subjects=drawn_subjects, name="cats")
    assert (comfy.base / "input" / "cats" / "metadata.jsonl").is_file()
    assert saved.ui["text"] == ("olis cat (2 photos), hta cat (2 photos)",)
    assert len(previews(comfy, saved)) == 4
    choices = {one.id: one for one in comfy.node("MudiLoadSubjectSet").define_schema().inputs}["name"].options
    assert "cats" in choices
    loaded = comfy.run("MudiLoadSubjectSet", name="cats")
    for subjects in (saved.result[0], loaded.result[0]):
        assert subjects.tokens == drawn_subjects.tokens
        for one, other in zip(subjects, drawn_subjects, strict=True):
            pairs = zip(one.masks, other.masks, strict=True)
            assert all(torch.allclose(mask, true, atol=1 / 255) for mask, true in pairs)


def test_a_changed_set_is_loaded_anew(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    comfy.run("MudiSaveSubjectSet", subjects=drawn_subjects, name="changing")
    fingerprint = comfy.node("MudiLoadSubjectSet").fingerprint_inputs
    before = fingerprint(name="changing")
    assert fingerprint(name="changing") == before
    metadata = comfy.base / "input" / "changing" / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + "\n")
    assert fingerprint(name="changing") != before


def test_a_set_that_is_gone_is_named(comfy: Comfy) -> None:
    with pytest.raises(MudiError, match="gone is not a dataset"):
        comfy.run("MudiLoadSubjectSet", name="gone")


def test_photos_through_the_nodes_are_held_once(eyes):
    """A ledger: the pixels of a folder's photos are there once, as bytes, from Load Photos to the saved set."""
    folder = eyes.base / "input" / "ledger"
    folder.mkdir()
    for number, image in enumerate(photos()):
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(folder / f"{number}.png")
    loaded = eyes.run("MudiLoadPhotos", folder="ledger").result[0]
    found = eyes.run("MudiDetectSubjects", photos=loaded, query=["ball"], detector=[""], threshold=[0.5],
                     which=["best"], download=[False]).result[0]  # fmt: skip
    cut = eyes.run("MudiSamMask", photos=loaded, boxes=found, segmenter=[""], download=[False]).result[0]
    made = eyes.run("MudiSubject", photos=loaded, masks=cut, token=["olis"], class_noun=["ball"]).result[0]
    saved = eyes.run("MudiSaveSubjectSet", subjects=made, name="ledger_set").result[0]
    kept = [*loaded, *cut]
    for subjects in (made, saved):
        kept += [value for subject in subjects for value in (*(p.image for p in subject.photos), *subject.masks)]
    memory = {value.bytes.untyped_storage().data_ptr(): value.bytes.untyped_storage().nbytes() for value in kept}
    assert sum(memory.values()) == 4 * sum(width * height for width, height in SIZES)
    for image, photo in zip(photos(), saved["olis"].photos, strict=True):
        torch.testing.assert_close(photo.image + 0, image[0], atol=0.5 / 255, rtol=0)


@pytest.mark.parametrize("which", ["photos", "masks"])
@pytest.mark.parametrize("nothing", [None, torch.zeros(0, 64, 64, 3), torch.full((1, 64, 64, 3), float("nan"))])
def test_nothing_and_no_numbers_by_a_link_end_in_a_sentence(comfy, which, nothing):
    given = {"photos": [torch.zeros(1, 64, 64, 3)], "masks": [torch.zeros(1, 64, 64)]}
    given[which] = [nothing[..., 0] if which == "masks" and nothing is not None else nothing]
    with pytest.raises(MudiError):
        comfy.run("MudiSubject", **given, token=["olis"], class_noun=["ball"])
    if which == "photos":
        with pytest.raises(MudiError):
            comfy.run("MudiDetectSubjects", photos=given["photos"], query=["ball"], detector=["mini (embedded)"],
                      threshold=[0.5], which=["best"], download=[False])  # fmt: skip


@pytest.mark.parametrize("size", [(1, 200), (200, 3)])
def test_a_strip_by_a_link_ends_in_a_sentence(comfy, size):
    with pytest.raises(MudiError, match="px a side"):
        comfy.run("MudiSubject", photos=[torch.zeros(1, *size, 3)], masks=[torch.ones(1, *size)], token=["olis"],
                  class_noun=["ball"])  # fmt: skip


def test_load_images_transparency_is_the_subject_and_the_node_says_so(comfy):
    shapes = masks()
    turned = comfy.run("MudiSubject", photos=photos(), masks=[1 - mask[None] for mask in shapes], token=["olis"],
                       class_noun=["ball"])  # fmt: skip
    right = comfy.run("MudiSubject", photos=photos(), masks=[m[None] for m in shapes], token=["olis"],
                      class_noun=["ball"])  # fmt: skip
    for found, also, mask in zip(turned.result[0]["olis"].masks, right.result[0]["olis"].masks, shapes, strict=True):
        assert torch.equal(found + 0, mask) and torch.equal(also + 0, mask)
    assert "was inverted" in str(turned.ui) and "was inverted" not in str(right.ui)


def test_specks_and_a_subject_that_is_cut_off_are_told_by_the_node_that_loads(comfy):
    shapes = masks()
    shapes[0][1, 1] = 1
    shapes[1][:, :40] = 1
    made = comfy.run("MudiSubject", photos=photos(), masks=[m[None] for m in shapes], token=["olis"],
                     class_noun=["ball"]).result[0]  # fmt: skip
    comfy.run("MudiSaveSubjectSet", subjects=made, name="doubtful")
    said = str(comfy.run("MudiLoadSubjectSet", name="doubtful").ui)
    assert "olis_1.png of olis ball: its mask has specks" in said and "olis_2.png" in said
    assert "cut off at the left" in said and "olis_3.png" not in said


def test_priors_of_the_official_code_are_offered_and_read(comfy: Comfy) -> None:
    folder = comfy.base / "input" / "official_priors"
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"id": {"a": "toy knight figure", "b": "Corgi"}}]
    for id in "ab":
        Image.new("RGB", (60, 60), "white").save(folder / f"{id}.jpg")
        Image.new("L", (60, 60), 255).save(folder / f"mask_{id}.jpg")
        lines.append({"id": id, "file_name": f"{id}.jpg", "mask_path": f"mask_{id}.jpg", "text": "A photo of it"})
    (folder / "class_metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    schema = comfy.nodes["MudiLoadSubjectSet"].define_schema()
    assert "official_priors" in schema.inputs[0].options
    read = comfy.run("MudiLoadSubjectSet", name="official_priors").result[0]
    assert [subject.class_noun for subject in read] == ["toy knight figure", "Corgi"]


def test_photos_of_kinds_that_are_not_read_are_named_by_the_node(comfy: Comfy) -> None:
    folder = comfy.base / "input" / "phone"
    folder.mkdir(parents=True)
    (folder / "IMG_2.HEIC").write_bytes(b"")
    with pytest.raises(Exception, match="Save IMG_2.HEIC as JPEG or PNG"):
        comfy.run("MudiLoadPhotos", folder="phone")
    Image.new("RGB", (60, 60), "white").save(folder / "IMG_1.jpg")
    (said,) = comfy.run("MudiLoadPhotos", folder="phone").ui["text"]
    assert "Not used in phone: IMG_2.HEIC" in said and "save them as JPEG or PNG" in said
