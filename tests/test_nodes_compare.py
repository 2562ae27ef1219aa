"""D&C Score: every picture gets its score, its card and its place in the ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from coloured import COLOURS, SURROUNDINGS, coloured, ellipse
from comfyui import Comfy
from torch import Tensor

from mudi_core.eyes.embedded import VERDICT_LIMITS
from mudi_core.types import Detections

SUBJECTS = coloured("red", "blue")


def scene(*colours: str, size: tuple[int, int] = (240, 160)) -> Tensor:
    """Balls side by side on grass."""
    width, height = size
    step = width // max(len(colours), 1)
    image = torch.tensor(SURROUNDINGS).expand(height, width, 3).clone()
    for i, colour in enumerate(colours):
        mask = ellipse(step, height, (step * 0.4, height * 0.4))[..., None]
        part = image[:, i * step : (i + 1) * step]
        part.copy_(mask * torch.tensor(COLOURS[colour]) + (1 - mask) * part)
    return image


def blobs(image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
    """Finds each colour that is not grass."""
    found = []
    for colour in COLOURS.values():
        ys, xs = ((image - torch.tensor(colour)).abs().sum(-1) < 0.1).nonzero(as_tuple=True)
        if len(xs):
            found.append([float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)])
    xyxy = torch.tensor(found).reshape(-1, 4)
    return Detections(xyxy, torch.full((len(found),), 0.9), (queries[0],) * len(found), 0.9)


def mean_colour(images: Sequence[Tensor]) -> Tensor:
    """Tells what is not grass apart by its colour."""
    kept = [image[(image - torch.tensor(SURROUNDINGS)).abs().sum(-1) > 0.1].mean(0) for image in images]
    return torch.nn.functional.normalize(torch.stack(kept) + 0.05, dim=-1)


@pytest.fixture
def eyes(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    monkeypatch.setattr(comfy.module("host"), "detector", lambda choice, download: blobs)
    monkeypatch.setattr(comfy.module("host"), "embedder", lambda choice, download: mean_colour)
    return comfy


def judge(comfy: Comfy, images: list[Tensor], query: str = "") -> Any:
    """As the executor calls a node that takes lists."""
    return comfy.run(
        "MudiCompare",
        images=images,
        subjects=[SUBJECTS],
        detector=["mini (embedded)"],
        embedder=["mini (embedded)"],
        threshold=[0.25],
        query=[query],
        cut_out=[False],
        download=[False],
    )


def test_pictures_are_scored_in_their_order_and_ranked_best_first(eyes: Comfy) -> None:
    batch = torch.stack([scene("red"), scene("red", "blue"), scene("red", "orange")])
    output = judge(eyes, [batch])
    scores, mean, cards, verdict, ranked = output.result
    assert scores[2] < scores[0] == 0 and scores[1] > 0.8
    assert "  1 figure, 2 expected, so the score is 0." in verdict
    assert mean == pytest.approx(sum(scores) / 3)
    assert len(ranked) == 1 and torch.equal(ranked[0], batch[[1, 0, 2]])
    assert cards.shape[0] == 3 and cards.shape[3] == 3
    lines = verdict.splitlines()
    assert lines[0] == f"all themselves in 1 of 3 pictures, mean score {mean:.2f}"
    assert lines[1] == "picture 2: 2 of 2 themselves" and lines[2].startswith("  red ball: found (figure 1: ")
    assert lines[4] == f"  score {scores[1]:.2f}" and lines[5] == "picture 1: 1 of 2 themselves"
    assert lines[-1].startswith("The score is 1 when every figure")
    assert "  blue ball: missing" in verdict and "  red ball: found" in verdict
    assert output.ui["text"] == (verdict,) and len(output.ui["images"]) == 3


def test_a_list_of_pictures_of_other_sizes_is_ranked_one_by_one(eyes: Comfy) -> None:
    pictures = [scene("red", size=(64, 96))[None], scene("red", "blue", size=(400, 120))[None]]
    scores, _, cards, _, ranked = judge(eyes, pictures).result
    assert scores[0] < scores[1] and len(cards) == 2
    assert [tuple(one.shape) for one in ranked] == [(1, 120, 400, 3), (1, 96, 64, 3)]


def test_a_picture_without_any_figure_has_a_card_too(eyes: Comfy) -> None:
    scores, mean, cards, verdict, _ = judge(eyes, [scene()[None]], "ball, toy").result
    assert scores == [0.0] and mean == 0 and len(cards) == 1
    assert verdict.count(": missing, nothing was found for 'ball' or 'toy'.") == 2
    assert "  Nothing was found for 'ball' or 'toy' (the detector's best guess was 90% sure)" in verdict


def test_subjects_that_look_alike_are_told_on_the_node(eyes: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "look alike" not in judge(eyes, [scene("red", "blue")[None]]).ui["text"][0]
    monkeypatch.setattr(
        eyes.module("host"), "embedder", lambda choice, download: lambda images: torch.ones(len(images), 4)
    )
    (text,) = judge(eyes, [scene("red", "blue")[None]]).ui["text"]
    assert "The photos of 'red ball' and 'blue ball' look alike to this embedder" in text


def test_the_embedded_eyes_tell_a_photo_of_both_from_one_of_one(
    comfy: Comfy, mini_weights: None, drawn_subjects: Any
) -> None:
    first, second = (subject.photos[0].image for subject in drawn_subjects)
    both = torch.cat([first, second], dim=1)
    twice = torch.cat([first, first.flip(1)], dim=1)
    scores = comfy.run(
        "MudiCompare",
        images=[torch.stack([both, twice])],
        subjects=[drawn_subjects],
        detector=["mini (embedded)"],
        embedder=["mini (embedded)"],
        threshold=[0.2],
        query=["character"],
        cut_out=[True],
        download=[False],
    ).result[0]
    assert scores[0] > scores[1]


def test_verdicts_have_the_limits_of_the_embedder(comfy: Comfy) -> None:
    how = comfy.module("compare").Judging(
        "embedded (drawn toys only)", "embedded (drawn toys only)", 0.25, cut_out=True
    )
    assert comfy.module("compare").Judge(SUBJECTS, how).references.limits == VERDICT_LIMITS


def test_cancel_is_heard_between_two_references(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is embedded after it, wherever pictures are judged."""
    compare, management = comfy.module("compare"), comfy.core("comfy.model_management")
    seen: list[int] = []

    def embed(images: list[Tensor]) -> Tensor:
        seen.append(len(images))
        management.interrupt_current_processing(True)
        return torch.ones(len(images), 2)

    monkeypatch.setattr(comfy.module("host"), "detector", lambda *choice: None)
    monkeypatch.setattr(comfy.module("host"), "embedder", lambda *choice: embed)
    assert len(SUBJECTS) > 1
    with pytest.raises(management.InterruptProcessingException):
        compare.Judge(SUBJECTS, compare.Judging("any", "any", 0.25))
    assert len(seen) == 1
