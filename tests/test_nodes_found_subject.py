"""Subject from Photos: one node does what Load Photos, Detect Subjects, SAM Mask and Subject do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from PIL import Image

from mudi_core.levels import to_bytes
from mudi_core.subjects.find import NotFound
from mudi_core.types import BadSubject, SubjectSet

MINI = "embedded (drawn toys only)"
CONNECTED = "(the photos that are connected)"


@pytest.fixture
def shots(comfy: Comfy, drawn_subjects: SubjectSet, mini_weights: None) -> Iterator[Path]:
    """A folder of two photos, with a caption beside one."""
    folder = comfy.base / "input" / "10_olis cat"
    folder.mkdir(parents=True)
    for number, photo in enumerate(drawn_subjects.subjects[0].photos, start=1):
        Image.fromarray(to_bytes(photo.image)).resize((192, 192)).save(folder / f"{number}.png")
    (folder / "2.txt").write_text("a photo of olis cat at sea", encoding="utf-8")
    yield folder
    shutil.rmtree(folder)


def at_once(comfy: Comfy, **more: Any) -> Any:
    widgets = {
        "folder": "10_olis cat", "token": "", "class_noun": "", "query": "", "detector": MINI, "segmenter": MINI,
        "threshold": 0.03, "which": "best", "download": False,
    } | more  # fmt: skip
    return comfy.run("MudiSubjectFromPhotos", **{name: [value] for name, value in widgets.items()})


def test_it_makes_the_subject_that_four_nodes_make(comfy: Comfy, shots: Path) -> None:
    photos, captions, token, noun = comfy.run("MudiLoadPhotos", folder=shots.name).result
    (boxes,) = comfy.run(
        "MudiDetectSubjects", photos=photos, query=[noun], detector=[MINI], threshold=[0.03], which=["best"],
        download=[False],
    ).result  # fmt: skip
    (masks,) = comfy.run("MudiSamMask", photos=photos, boxes=boxes, segmenter=[MINI], download=[False]).result
    subjects, _ = comfy.run(
        "MudiSubject", photos=photos, masks=masks, token=[token], class_noun=[noun], captions=captions
    ).result
    ours, each = at_once(comfy).result
    (one,), (other,) = ours.subjects, subjects.subjects
    assert one.name == other.name == "olis cat"
    for mine, theirs, mask, given in zip(one.masks, other.masks, each, masks, strict=True):
        assert torch.equal(mine.float(), theirs.float()) and torch.equal(mask[0].float(), given[0].float())
    assert [photo.caption for photo in one.photos] == [photo.caption for photo in other.photos]
    assert all(torch.equal(a.image[:], b.image[:]) for a, b in zip(one.photos, other.photos, strict=True))


def test_one_follows_the_other(comfy: Comfy, shots: Path) -> None:
    first, _ = at_once(comfy).result
    second, _ = at_once(comfy, token="hta", class_noun="toy", query="cat", subjects=first).result
    assert second.tokens == ("olis", "hta") and second["hta"].name == "hta toy"


def test_it_takes_connected_photos_instead(comfy: Comfy, shots: Path, drawn_subjects: SubjectSet) -> None:
    pictures = torch.stack([photo.image[:] for photo in drawn_subjects.subjects[0].photos])
    ours, _ = at_once(comfy, folder=CONNECTED, token="olis", class_noun="cat", photos=pictures).result
    assert len(ours["olis"].photos) == 2
    both = at_once(comfy, photos=pictures)
    assert "not read" in both.ui["text"][0]


def test_it_says_what_is_missing(comfy: Comfy, shots: Path) -> None:
    with pytest.raises(BadSubject, match="choose a folder, or connect photos"):
        at_once(comfy, folder=CONNECTED, token="olis", class_noun="cat")
    with pytest.raises(BadSubject, match="needs a token"):
        at_once(comfy, folder=CONNECTED, photos=torch.rand(1, 64, 64, 3))
    with pytest.raises(BadSubject, match="needs a class noun"):
        at_once(comfy, folder=CONNECTED, photos=torch.rand(1, 64, 64, 3), token="olis")
    with pytest.raises(NotFound, match="1.png"):
        at_once(comfy, threshold=0.999)


def test_a_path_is_no_folder(comfy: Comfy) -> None:
    node = comfy.node("MudiSubjectFromPhotos")
    assert node.validate_inputs(folder=["../outside"], token=["olis"]) is not True
    assert node.validate_inputs(folder=[CONNECTED], token=["two words"]) is not True
    assert node.validate_inputs(folder=[CONNECTED], token=["olis"]) is True
