"""Boxes and masks of other nodes in the place of ours: core's SAM3 Detect, boxes drawn by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui import Comfy
from test_nodes_compare import SUBJECTS, blobs, mean_colour, scene

from mudi_core.types import SubjectSet

Box = dict[str, float]


def boxes_of(image: torch.Tensor) -> list[Box]:
    found = blobs(image, ["ball"], 0.0)
    return [
        {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "score": score}
        for (x0, y0, x1, y1), score in zip(found.xyxy.tolist(), found.confidence.tolist(), strict=True)
    ]


@pytest.fixture
def eyes(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    """No detector may be loaded."""
    monkeypatch.delattr(comfy.module("host"), "detector")
    monkeypatch.setattr(comfy.module("host"), "embedder", lambda choice, download: mean_colour)
    return comfy


def judge(comfy: Comfy, images: list[torch.Tensor], boxes: list[Any] | None, threshold: float = 0.25) -> Any:
    settings = {"detector": ["none"], "embedder": ["none"], "query": [""], "cut_out": [False], "download": [False]}
    return comfy.run(
        "MudiCompare", images=images, subjects=[SUBJECTS], threshold=[threshold], boxes=boxes, **settings
    ).result


def find(comfy: Comfy, photos: list[torch.Tensor], found: list[Any], which: str, threshold: float = 0.25) -> Any:
    settings = {"query": ["ball"], "detector": ["none"], "threshold": [threshold], "download": [False]}
    return comfy.run("MudiDetectSubjects", photos=photos, which=[which], found=found, **settings).result[0]


def test_scores_by_given_boxes_are_those_of_a_detector_that_finds_them(
    eyes: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = torch.stack([scene("red"), scene("red", "blue"), scene("red", "orange")])
    given = [boxes_of(picture) for picture in pictures]
    scores, _, _, verdict, ranked = judge(eyes, [pictures], [given])
    monkeypatch.setattr(eyes.module("host"), "detector", lambda choice, download: blobs, raising=False)
    plain, _, _, same, order = judge(eyes, [pictures], None)
    assert scores == plain and verdict == same and torch.equal(ranked[0], order[0])
    assert scores[0] == 0 and scores[1] > 0.8
    assert judge(eyes, [pictures], given)[0] == scores  # a list with one entry for each picture


def test_a_picture_may_be_without_figures_and_sure_boxes_may_have_no_score(eyes: Comfy) -> None:
    both = scene("red", "blue")
    plain = [{key: value for key, value in box.items() if key != "score"} for box in boxes_of(both)]
    scores, *_, verdict, _ = judge(eyes, [torch.stack([both, both])], [[plain, []]], threshold=0.95)
    assert scores[0] > 0.8 and scores[1] == 0 and "picture 2: 0 of 2 themselves" in verdict
    assert judge(eyes, [both[None]], [[boxes_of(both)]], threshold=0.95)[0] == [0]


@pytest.mark.parametrize("boxes", [[[[]]], [[[], [], []]]], ids=["fewer", "more"])
def test_boxes_for_other_pictures_are_told(eyes: Comfy, boxes: Any) -> None:
    with pytest.raises(Exception, match=f"There are 2 pictures but boxes for {len(boxes[0])}"):
        judge(eyes, [torch.stack([scene("red"), scene("blue")])], boxes)
    with pytest.raises(Exception, match=r"picture 1 is 240x160 px.*Connect the pictures that the boxes were found in"):
        judge(eyes, [scene("red")[None]], [{"x": 500, "y": 10, "width": 20, "height": 20}])


def test_detect_subjects_chooses_among_given_boxes(eyes: Comfy) -> None:
    photo = scene("red", "blue")
    left, right = boxes_of(photo)
    left["score"], right["score"] = 0.4, 0.7
    (best,) = find(eyes, [photo[None]], [[left, right]], "best")
    assert [box["x"] for box in best] == [right["x"]]
    (every,) = find(eyes, [photo[None]], [[left, right]], "all")
    assert [box["score"] for box in every] == pytest.approx([0.7, 0.4])
    (one,) = find(eyes, [photo[None]], [[left, right]], "exactly one", threshold=0.5)
    assert [box["x"] for box in one] == [right["x"]]
    with pytest.raises(Exception, match="photo 1: 2 .*'ball'|photo 1.*2"):
        find(eyes, [photo[None]], [[left, right]], "exactly one")
    with pytest.raises(Exception, match="photo 1: no 'ball' was found .best score 0.70"):
        find(eyes, [photo[None]], [[left, right]], "best", threshold=0.9)


@pytest.fixture
def sam3(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Core's own SAM3 Detect, with a network that finds balls in the place of SAM3's."""
    extra = pytest.importorskip("comfy_extras.nodes_sam3", reason="this ComfyUI has no SAM3")
    monkeypatch.setattr(extra.comfy.model_management, "load_model_gpu", lambda model: None)
    monkeypatch.setattr(extra.comfy.model_management, "get_torch_device", lambda: torch.device("cpu"))

    def network(frame: torch.Tensor, orig_size: tuple[int, int], **more: Any) -> dict[str, Any]:
        height, width = orig_size
        small = torch.nn.functional.interpolate(frame, size=(height, width), mode="nearest")[0].movedim(0, -1)
        found = blobs(small.round(), ["ball"], 0.0)
        masks = [(small - torch.tensor((0.0, 1.0, 0.0))).abs().sum(-1) > 0.5 for _ in found.labels]
        return {
            "boxes": [found.xyxy], "scores": [torch.full((len(found),), 3.0)],
            "masks": [torch.stack(masks).float() * 20 - 10],
        }  # fmt: skip

    model = SimpleNamespace(model=SimpleNamespace(get_dtype=lambda: torch.float32, diffusion_model=network))
    words = [[torch.zeros(1, 2, 4), {}]]

    def run(images: torch.Tensor) -> Any:
        with torch.inference_mode():
            return extra.SAM3_Detect.execute(model, images, words, threshold=0.5, refine_iterations=0).result

    return run


def test_boxes_drawn_in_core_are_a_layouts_places_and_back(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    """Create Bounding Boxes of newer ComfyUI gives them in a list of lists, without scores."""
    core = pytest.importorskip("comfy_extras.nodes_bounding_boxes", reason="this ComfyUI draws no boxes")
    drawn = [{"x": 16, "y": 32, "width": 96, "height": 128}, {"x": 128, "y": 16, "width": 112, "height": 200}]
    _, boxes, _ = core.CreateBoundingBoxes.execute(256, 256, editor_state=drawn).result
    assert boxes == [drawn], "as core gives them"
    (placed,) = comfy.run(
        "MudiLayout", subjects=drawn_subjects, width=256, height=256, mode="given boxes", seed=0, relative_sizes="",
        overlap=0.0, boxes=boxes,
    ).result  # fmt: skip
    _, each, places, *_ = comfy.run("MudiLayoutParts", layout=placed, shape="box", grow=0).result
    for box, mask, place in zip(drawn, each, places, strict=True):
        assert box["x"] <= place["x"] and place["x"] + place["width"] <= box["x"] + box["width"] + 1
        assert box["y"] <= place["y"] and place["y"] + place["height"] <= box["y"] + box["height"] + 1
        assert place["width"] >= box["width"] - 1 or place["height"] >= box["height"] - 1, "as large as the box allows"
        assert mask.sum() == place["width"] * place["height"]
    _, again, _ = core.CreateBoundingBoxes.execute(256, 256, bboxes=places).result
    assert again == [[{side: place[side] for side in ("x", "y", "width", "height")} for place in places]]


def test_masks_of_cores_sam3_make_a_subject(comfy: Comfy, sam3: Any) -> None:
    photos = [scene("red", size=(160, 160)), scene("red", size=(200, 160))]
    masks = [sam3(photo[None])[0] for photo in photos]
    made = comfy.run(
        "MudiSubject", photos=[photo[None] for photo in photos], masks=masks, token=["olis"], class_noun=["ball"]
    ).result[0]
    for photo, mask in zip(photos, made["olis"].masks, strict=True):
        red = photo[..., 0] > 0.5
        assert ((mask > 0.5) == red).float().mean() > 0.97


def test_boxes_of_cores_sam3_are_chosen_from_and_judged(eyes: Comfy, sam3: Any) -> None:
    pictures = torch.stack([scene("red"), scene("blue")])
    boxes = sam3(pictures)[1]
    chosen = find(eyes, [pictures], [boxes], "exactly one")
    assert [len(some) for some in chosen] == [1, 1] and chosen[0][0]["score"] == pytest.approx(0.95, abs=0.01)
    scores = judge(eyes, [pictures], [boxes])[0]
    assert scores == [0, 0]  # one figure each, two expected
