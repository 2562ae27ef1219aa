"""A judge of faces: YuNet and SFace in OpenCV, and what Detect-and-Compare says where there is no face."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from PIL import Image
from torch import Tensor

from mudi_core.cli import main
from mudi_core.eyes import sface
from mudi_core.jobs.detail import figures_of
from mudi_core.levels import to_bytes
from mudi_core.score.compare import References, compare_boxes, look_alike
from mudi_core.score.vectors import NoFace, photo_means
from mudi_core.score.verdicts import judge
from mudi_core.subjects.storage import write_subjects
from mudi_core.tensor_file import BadWeights
from mudi_core.types import Comparison, Detections, Photo, Subject, SubjectSet, VerdictLimits

CPU = torch.device("cpu")

FACES = Path(__file__).parent / "faces"
"""A YuNet that sees a face 128 px wide where a cell of 32 px is green, and one 32 px wide where a cell of 8 px is blue;
an SFace whose numbers are the mean colour of the aligned face."""
GREEN, BLUE, SKIN = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), {"warm": (0.9, 0.5, 0.4), "cool": (0.3, 0.5, 0.8)}


def with_face(skin, width=256, height=320, cell=(96, 96, 32, GREEN)):
    """A picture with a face of one colour around the cell that the tiny YuNet sees."""
    x, y, side, colour = cell
    image = torch.zeros(height, width, 3)
    image[max(0, y - 2 * side) : y + 3 * side, max(0, x - 2 * side) : x + 3 * side] = torch.tensor(skin)
    image[y : y + side, x : x + side] = torch.tensor(colour)
    return image


@pytest.fixture(scope="module")
def faces():
    return sface.load(FACES, CPU)


def test_a_face_is_compared_wherever_it_stands_and_nothing_else(faces):
    warm, moved, cool = (
        with_face(SKIN["warm"]),
        with_face(SKIN["warm"], 400, 350, (192, 128, 32, GREEN)),
        with_face(SKIN["cool"]),
    )
    warm[:, -20:] = 1.0  # another background
    vectors = faces([warm, moved, cool, torch.rand(50, 40, 3)])
    assert vectors.shape == (4, 128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.99 and similar[0, 2] < 0.7
    assert faces([]).shape == (0, 128)
    assert faces([torch.zeros(1, 1, 3), torch.zeros(8, 2000, 3)]).tolist() == [[0.0] * 128] * 2


def test_the_largest_face_counts(faces):
    both = with_face(SKIN["warm"])
    both[250:290, 200:240] = torch.tensor(SKIN["cool"])
    small = both.clone()
    small[96:128, 96:128] = torch.tensor(SKIN["warm"])  # the large face is gone
    for image in (both, small):
        image[264:272, 216:224] = torch.tensor(BLUE)
    warm, cool = faces([with_face(SKIN["warm"]), with_face(SKIN["cool"])])
    large, alone = faces([both, small])
    assert large @ warm > 0.99 > alone @ warm and alone @ cool > 0.9


@pytest.mark.parametrize("times", [2, 4, 6])
def test_a_face_is_found_in_a_large_picture_and_looked_at_finely(faces, times):
    """Its place and points come back to the picture's own pixels, from the size at which it was found."""
    large = with_face(SKIN["warm"]).repeat_interleave(times, 0).repeat_interleave(times, 1)
    (found,), (plain,) = faces([large]), faces([with_face(SKIN["warm"])])
    assert found @ plain > 0.999
    far = torch.zeros(1280, 1280, 3)  # at 320 and 640 px no cell is green enough
    far[256:576, 256:512] = with_face(SKIN["warm"])
    assert faces([far])[0] @ plain > 0.99


def test_colours_reach_opencv_in_its_order(faces):
    """The tiny YuNet takes blue, green, red: red cells are nothing to it."""
    assert faces([with_face(SKIN["warm"], cell=(96, 96, 32, (1.0, 0.0, 0.0)))]).abs().sum() == 0


@pytest.mark.parametrize("damage", ["no folder", "one file", "cut off", "swapped", "old OpenCV"])
def test_bad_files_of_faces_are_named(tmp_path, monkeypatch, damage):
    folder = tmp_path / "sface"
    if damage != "no folder":
        shutil.copytree(FACES, folder)
    finder, recognizer = folder / sface.FINDER, folder / sface.RECOGNIZER
    if damage == "one file":
        recognizer.unlink()
    if damage == "cut off":
        finder.write_bytes(finder.read_bytes()[:1000])
    if damage == "swapped":
        first = finder.read_bytes()
        finder.write_bytes(recognizer.read_bytes())
        recognizer.write_bytes(first)
    if damage == "old OpenCV":
        monkeypatch.delattr("cv2.FaceDetectorYN")
    with pytest.raises(BadWeights, match="sface") as told:
        sface.load(folder, CPU)
    if damage == "old OpenCV":
        assert "4.8 or newer" in str(told.value)


NOBODY = torch.full((320, 256, 3), 0.2)


def people(**photos: list[Tensor]) -> SubjectSet:
    """Subjects by their tokens, each with these photos."""
    return SubjectSet(
        tuple(
            Subject(
                token,
                "man",
                tuple(Photo(f"{i}.png", one) for i, one in enumerate(some, start=1)),
                tuple(torch.ones(one.shape[:2]) for one in some),
            )
            for token, some in photos.items()
        )
    )


def compared(faces: Any, subjects: SubjectSet, *figures: Tensor) -> Comparison:
    """Detect-and-Compare of figures side by side."""
    boxes = torch.tensor([[256.0 * i, 0.0, 256.0 * (i + 1), 320.0] for i in range(len(figures))])
    found = Detections(boxes, torch.ones(len(figures)), ("man",) * len(figures))
    (result,) = compare_boxes([torch.cat(figures, 1)], [found], References(subjects, faces), faces)
    return result


WARM, COOL = with_face(SKIN["warm"]), with_face(SKIN["cool"])


def test_persons_are_told_apart_by_their_faces(faces: Any) -> None:
    result = compared(faces, people(olis=[WARM], hta=[COOL, COOL]), COOL, WARM)
    assert [verdict.status for verdict in result.verdicts] == ["found", "found"] and result.score > 0.99
    assert result.detections.xyxy[:, 0].tolist() == [256, 0] and result.remarks == ()


def test_photos_without_a_face_do_not_count_and_are_named(faces: Any) -> None:
    whole, some = people(olis=[WARM, WARM], hta=[COOL]), people(olis=[WARM, NOBODY, WARM], hta=[COOL])
    references = References(some, faces)
    assert torch.equal(references.means, photo_means(whole, faces))
    assert references.remarks == ["No face was found in 2.png of olis man: not compared."]
    assert compared(faces, some, WARM, COOL).remarks == tuple(references.remarks)
    many = References(people(olis=[WARM, *[NOBODY] * 5]), faces).remarks
    assert many == ["No face was found in 2.png, 3.png, 4.png and 2 more of olis man: not compared."]


def test_a_subject_without_any_face_is_refused(faces: Any) -> None:
    with pytest.raises(NoFace, match="any photo of hta man.*Add a photo that shows its face, or choose another"):
        References(people(olis=[WARM], hta=[NOBODY, NOBODY]), faces)


def test_a_figure_without_a_face_is_told(faces: Any) -> None:
    subjects = people(olis=[WARM], hta=[COOL])
    first, second = compared(faces, subjects, WARM, NOBODY).verdicts
    assert first.status == "found" and second.status == "missing"
    assert second.text.startswith("hta man: missing. No face was found in figure 2. Figure 1 is nearest")
    assert [one.text for one in compared(faces, subjects, NOBODY, NOBODY).verdicts] == [
        f"{name} man: missing. No face was found in figure 1 and figure 2." for name in ("olis", "hta")
    ]


def test_one_photo_needs_no_more_likeness_than_many() -> None:
    """A photo is always 1 alike to itself, so a share of that says nothing; SFace's authors publish a cosine."""
    limits, subjects = VerdictLimits(cosine=0.363), people(olis=[WARM], hta=[COOL])
    one, many = torch.tensor([[1.0, 0.05], [0.05, 1.0]]), torch.tensor([[0.6, 0.05], [0.05, 0.6]])
    for s_gt in (one, many):
        s_dc = torch.tensor([[0.37, 0.02], [0.02, 0.9]])
        assert [found.status for found in judge(subjects, s_gt, s_dc, limits=limits)] == ["found", "found"]
        s_dc[0, 0] = 0.35
        (far, _) = judge(subjects, s_gt, s_dc, limits=limits)
        assert far.status == "missing" and "(0.35 alike, " in far.text and "; 0.36 needed)" in far.text
        s_dc[0] = torch.tensor([0.33, 0.30])
        assert judge(subjects, s_gt, s_dc, limits=limits)[0].status == "mixed"
    assert (
        "37% of what its own photos reach"
        in judge(subjects, one, torch.tensor([[0.37, 0], [0, 1]]), limits=limits)[0].text
    )
    assert judge(subjects, one, torch.tensor([[0.37, 0.02], [0.02, 0.9]]))[0].status == "missing"


def test_two_subjects_with_one_face_are_warned_of() -> None:
    s_gt = torch.tensor([[1.0, 0.6], [0.6, 1.0]])
    assert look_alike(["olis man", "hta man"], s_gt) == []
    (words,) = look_alike(["olis man", "hta man"], s_gt, VerdictLimits(cosine=0.363))
    assert "look alike to this embedder" in words


def test_a_face_that_is_alike_enough_is_detailed_however_few_photos_there_are(faces: Any) -> None:
    """Half of a photo's likeness to itself is more than two photos of a person have."""
    likely = compared(faces, people(olis=[WARM]), WARM)
    likely = replace(likely, s_dc=torch.tensor([[0.4]]))
    assert figures_of(likely) == [] and figures_of(likely, faces.verdict_limits) == [(0, 0)]


def test_the_node_judges_faces_with_the_files_in_comfyui(comfy: Comfy) -> None:
    """The whole way: found in the models folder, loaded by OpenCV, photos and figures compared."""
    folder = comfy.base / "models" / "faces" / "sface"
    if not folder.exists():
        shutil.copytree(FACES, folder)
    boxes = [{"x": 256 * i, "y": 0, "width": 256, "height": 320, "score": 1.0} for i in range(2)]
    output = comfy.run(
        "MudiCompare",
        images=[torch.stack([torch.cat([WARM, COOL], 1), torch.cat([WARM, NOBODY], 1)])],
        subjects=[people(olis=[WARM, NOBODY], hta=[COOL])],
        detector=["embedded (drawn toys only)"],
        embedder=["sface"],
        threshold=[0.25],
        query=[""],
        cut_out=[False],
        download=[False],
        boxes=[[boxes, boxes]],
    )
    lines = output.ui["text"][0].splitlines()
    assert lines[1] == "No face was found in 2.png of olis man: not compared."
    assert lines[2] == "picture 1: 2 of 2 themselves"
    assert output.result[0][0] > 0.99 > output.result[0][1]
    assert any("No face was found in figure 2" in line for line in lines)
    assert comfy.module("host").embedder("sface").verdict_limits == VerdictLimits(cosine=0.363)


def test_the_command_line_judges_faces(mini_weights: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_subjects(people(olis=[WARM], hta=[COOL]), tmp_path / "set")
    (tmp_path / "pictures").mkdir()
    Image.fromarray(to_bytes(torch.cat([WARM, COOL], 1))).save(tmp_path / "pictures" / "both.png")
    asked = ["compare", str(tmp_path / "pictures"), "--dataset", str(tmp_path / "set"), "--base", "mini"]
    asked += ["--embedder", "sface", "--models", str(tmp_path / "models"), "--json"]
    assert main(asked) == 1 and "face_recognition_sface_2021dec.onnx" in capsys.readouterr().err
    shutil.copytree(FACES, tmp_path / "models" / "sface")
    assert main(asked) == 0
    s_gt = json.loads(capsys.readouterr().out)["s_gt"]
    assert s_gt[0][0] == pytest.approx(1, abs=1e-3) and s_gt[0][1] < 0.7
