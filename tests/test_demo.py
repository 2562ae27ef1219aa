from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from mudi_core.demo.job import BadDemo, as_json, draw_photos, measure, run_demo
from mudi_core.demo.page import page
from mudi_core.demo.result import DemoResult
from mudi_core.demo.settings import ARMS, DemoSettings
from mudi_core.jobs.generate import GenerateConfig, Picture, draw_layout
from mudi_core.lora.file import load_lora
from mudi_core.report.statistics import interval, smoothed
from mudi_core.score.compare import score_matrices
from mudi_core.score.verdicts import judge
from mudi_core.stage.cutouts import cut_outs
from mudi_core.stage.segmix import SegMixConfig, segmix
from mudi_core.subjects.photos import read_photos
from mudi_core.toy.world import PAIRS, Actor, Scene, random_pose, render
from mudi_core.types import Comparison, Detections, SubjectSet

SMALL = DemoSettings(photos=2, train_steps=4, batch_size=2, pictures=2, sampler_steps=2, photo_side=128)
BOXES = ((0.05, 0.2, 0.45, 0.95), (0.55, 0.2, 0.95, 0.95))


def drawn_picture(number: int, size: int) -> torch.Tensor:
    """A picture such as the models should make: both characters of the pair, drawn."""
    rng = random.Random(number)
    actors = tuple(Actor(spec.character, random_pose(rng), box) for spec, box in zip(PAIRS[0], BOXES, strict=True))
    return torch.from_numpy(render(Scene("meadow", number, actors), size).image.copy()).float() / 255


@pytest.fixture(scope="module")
def result(drawn_subjects: SubjectSet) -> DemoResult:
    """A result as the job would give it, with drawn pictures and made-up similarities."""
    settings = DemoSettings(pictures=6, photos=2)
    cutouts = cut_outs(drawn_subjects, max_side=settings.size)
    s_gt = torch.tensor([[1.0, 0.3], [0.3, 1.0]])
    tokens = drawn_subjects.tokens
    pictures: dict[str, tuple[Picture, ...]] = {}
    comparisons: dict[str, tuple[Comparison, ...]] = {}
    for name, arm in ARMS.items():
        config = settings.generate_config("a photo of olis cat and hta cat", arm.with_start, 0)
        size = (settings.size, settings.size)
        pictures[name] = tuple(
            Picture(drawn_picture(i, settings.size), i, 0, draw_layout(cutouts, config, i, size)) for i in range(6)
        )
        rows = []
        for i in range(6):
            mixing = {"dreambooth": 0.25, "segmix": 0.15, "mudi": 0.05}[name] * (i % 3)
            s_dc = torch.tensor([[1 - mixing, 0.3 + mixing], [0.3 + mixing, 1 - mixing]])[: 1 if i == 5 else 2]
            boxes = torch.tensor(BOXES[: len(s_dc)]) * settings.size
            scores = score_matrices(s_gt, s_dc)
            found = Detections(boxes, torch.ones(len(s_dc)), ("cat",) * len(s_dc))
            verdicts = judge(drawn_subjects, s_gt, s_dc)
            rows.append(Comparison(tokens, scores.score, scores.score_spectral, s_gt, s_dc, found, verdicts))
        comparisons[name] = tuple(rows)
    sheet = tuple(
        segmix(cutouts, random.Random(i), SegMixConfig((settings.size, settings.size), settings.layout))
        for i in range(12)
    )
    falling = tuple(0.4 / (1 + i / 50) + random.Random(i).random() * 0.2 for i in range(400))
    return DemoResult(
        pair=PAIRS[0],
        seed=0,
        settings=settings,
        subjects=drawn_subjects,
        cutouts=cutouts,
        sheet=sheet,
        losses={"dreambooth": falling, "segmix": tuple(loss * 0.9 for loss in falling)},
        pictures=pictures,
        comparisons=comparisons,
        prompt="a photo of olis cat and hta cat",
        seconds={"photos": 0.2, "prepare": 2.5, "train_dreambooth": 90.0, "train_segmix": 95.0, "compare": 4.0},
    )


class Tags(HTMLParser):
    """Checks that tags nest, and collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "xlink:href")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_everything_it_shows(result: DemoResult) -> None:
    text = page(result, as_json(result, 0))
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in tags.names and "link" not in tags.names
    assert all(link.startswith("data:image/") for link in tags.links)
    assert "url(" not in text and "@import" not in text
    shown = 2 * 2 * 2 + 12 + 6 * (1 + 3)  # photos and cut-outs, sheet, starts and pictures
    assert tags.names.count("img") == shown


def test_the_page_says_the_scores_of_the_json(result: DemoResult) -> None:
    report = as_json(result, 0)
    text = page(result, report)
    for name in ARMS:
        assert f'<span class="score">{report["methods"][name]["mean"]:.2f}</span>' in text
    scores = re.findall(r'<div class="result"><b>(-?\d\.\d\d)</b>', text)
    assert scores == [f"{result.scores(name)[i]:.2f}" for i in range(6) for name in ARMS]


def test_names_are_text_on_the_page_and_never_markup(result: DemoResult) -> None:
    from dataclasses import replace

    text = page(replace(result, prompt="<script>alert(1)</script> & olis"), as_json(result, 0))
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_the_json_has_what_it_promises(result: DemoResult) -> None:
    report = json.loads(json.dumps(as_json(result, 3)))
    assert set(report["methods"]) == {"dreambooth", "segmix", "mudi"}
    for name, method in report["methods"].items():
        assert method["mean"] == pytest.approx(np.mean(result.scores(name)), abs=1e-3)
        assert len(method["dc"]) == 6 and method["dc"][5] == 0.0
        assert method["right_count"] == 5
        assert method["interval"][0] <= method["mean"] <= method["interval"][1]
    assert report["pair"] == 3 and report["seconds"] == result.seconds


@pytest.mark.parametrize("values", [[0.5], [0.2, 0.2, 0.2], [0.0, 1.0], list(np.linspace(-1, 1, 30))])
def test_an_interval_holds_the_mean_and_shrinks_with_more_values(values: list[float]) -> None:
    low, high = interval(values)
    mean = float(np.mean(values))
    assert min(values) - 1e-9 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= max(values) + 1e-9
    more_low, more_high = interval(values * 16)
    assert more_high - more_low <= high - low + 1e-9
    assert interval(values) == (low, high)


@pytest.mark.parametrize("count", [1, 3, 40, 401])
def test_smoothing_keeps_the_range(count: int) -> None:
    values = list(np.random.default_rng(count).random(count))
    means = smoothed(values)
    assert len(means) == min(40, count)
    assert min(values) <= min(means) and max(means) <= max(values)


def test_all_arms_share_steps_seed_and_noise() -> None:
    settings = DemoSettings()
    trained = {settings.train_config(arm.training, 3) for arm in ARMS.values()}
    assert {(one.samples.steps, one.samples.seed, one.fit.batch_size, one.learning.rank) for one in trained} == {
        (settings.train_steps, 3, settings.batch_size, settings.rank)
    }
    sampled: list[GenerateConfig] = [settings.generate_config("x", arm.with_start, 3) for arm in ARMS.values()]
    assert len({(config.seed, config.steps, config.guidance, config.count) for config in sampled}) == 1
    assert [config.gamma for config in sampled] == [0.0, 0.0, settings.gamma]


def test_photos_are_files_a_user_could_have(tmp_path: Path) -> None:
    place = draw_photos(tmp_path, PAIRS[0][0], 0, SMALL)
    photos = read_photos(place)
    assert [photo.name for photo in photos] == ["photo_1.jpg", "photo_2.jpg"]
    assert photos[0].size == (128, 128)
    again = read_photos(draw_photos(tmp_path / "again", PAIRS[0][0], 0, SMALL))
    assert torch.equal(photos[0].image, again[0].image)
    other = read_photos(draw_photos(tmp_path / "other", PAIRS[0][0], 1, SMALL))
    assert not torch.equal(photos[0].image, other[0].image)


@pytest.mark.parametrize("pair", [-1, len(PAIRS)])
def test_a_pair_that_does_not_exist_is_named(pair: int, tmp_path: Path) -> None:
    with pytest.raises(BadDemo, match=str(pair)):
        run_demo(tmp_path, pair)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadDemo, match="file"):
        run_demo(tmp_path / "file" / "demo")


def test_the_job_is_the_same_twice(mini_weights: None, tmp_path: Path) -> None:
    first = measure(tmp_path / "1", PAIRS[0], 0, SMALL)
    second = measure(tmp_path / "2", PAIRS[0], 0, SMALL)
    for name in ARMS:
        assert first.scores(name) == second.scores(name)
        for one, other in zip(first.pictures[name], second.pictures[name], strict=True):
            assert torch.equal(one.image, other.image)
    one, other = (load_lora(tmp_path / run / "segmix.safetensors")[0] for run in "12")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [len(subject.photos) for subject in first.subjects] == [2, 2]
    text = page(first, as_json(first, 0))
    assert "data:image/png" in text
