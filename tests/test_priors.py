"""Priors: only pictures that show exactly one of the class are kept, under the subject's own name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mudi_core.cli import main
from mudi_core.jobs.one_figure import TRIES
from mudi_core.jobs.priors import NoPriors, PriorsConfig, make_priors
from mudi_core.subjects import storage
from mudi_core.types import Detections, SubjectSet


class Model:
    """Its pictures show so many figures, in turn."""

    def __init__(self, *figures: int) -> None:
        self.figures, self.asked = figures, list[tuple[str, int]]()

    def sample(self, prompt: str, seed: int) -> Tensor:
        image = torch.full((32, 32, 3), self.figures[len(self.asked) % len(self.figures)] / 10)
        self.asked.append((prompt, seed))
        return image

    def detect(self, image: Tensor, queries: list[str], threshold: float) -> Detections:
        assert threshold == 0.4 and queries == ["cat"]
        count = round(float(image[0, 0, 0]) * 10)
        xyxy = torch.tensor([[4.0, 4.0, 20.0, 28.0]] * count).reshape(-1, 4)
        return Detections(xyxy, torch.full((count,), 0.9), ("cat",) * count, 0.9)

    def segment(self, image: Tensor, xyxy: Tensor) -> Tensor:
        mask = torch.zeros(len(xyxy), 32, 32)
        mask[:, 4:28, 4:20] = 1
        return mask


def test_only_pictures_with_exactly_one_are_kept(drawn_subjects: SubjectSet) -> None:
    model, heard = Model(0, 1, 2, 1), list[tuple[int, int]]()
    two = PriorsConfig(count=2)
    made = make_priors(drawn_subjects, model.sample, model.detect, model.segment, two, lambda *at: heard.append(at))
    assert made.tokens == drawn_subjects.tokens
    assert [subject.class_noun for subject in made] == [subject.class_noun for subject in drawn_subjects]
    assert all(torch.equal(photo.image, torch.full((32, 32, 3), 0.1)) for one in made for photo in one.photos)
    assert all(mask.sum() == 24 * 16 for one in made for mask in one.masks)
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)] and len(model.asked) == 8
    assert len({seed for _, seed in model.asked}) == 8
    assert all("a photo of a cat, simple background" in prompt for prompt, _ in model.asked)
    again = Model(0, 1, 2, 1)
    make_priors(drawn_subjects, again.sample, again.detect, again.segment, two)
    assert again.asked == model.asked


def test_where_none_is_any_good_the_last_reason_is_told(drawn_subjects: SubjectSet) -> None:
    model = Model(2)
    with pytest.raises(NoPriors, match="10 pictures of 'cat' in a row.*'cat' was found 2 times.*another class noun"):
        make_priors(drawn_subjects, model.sample, model.detect, model.segment, PriorsConfig(count=1))
    assert len(model.asked) == TRIES


def test_the_command_makes_a_dataset_that_train_takes(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    priors = tmp_path / "priors"
    command = ["priors", str(drawn_dataset), "--base", "mini", "--out", str(priors), "--count", "1", "--json"]
    assert main([*command, "--steps", "8", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["class_nouns"] == ["cat", "cat"]
    made = storage.read_subjects(priors)
    assert made.tokens == ("olis", "hta") and all(0 < mask.mean() < 0.95 for one in made for mask in one.masks)
    train = ["train", str(drawn_dataset), "--base", "mini", "--steps", "1", "--batch", "1", "--rank", "2"]
    out = str(tmp_path / "l.safetensors")
    assert main([*train, "--resolution", "64", "--priors", str(priors), "--out", out]) == 0
