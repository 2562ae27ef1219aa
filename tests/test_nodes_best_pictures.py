"""Best Pictures: what stock nodes would make of each prompt and seed, and of these the best, for Train LoRA."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from test_iterate import found
from torch import Tensor

from mudi_core.jobs.unfinished import how_it_begins
from mudi_core.types import Comparison, MudiError, SubjectSet

SIDE = 64
RESULTS = (found(0.2), found(0.9, themselves=1), found(0.7), found(0.8, figures=3), found(0.5), found(0.6))
SETTINGS = {
    **{"prompts": "at sea\n\n{subjects}, in the snow ", "negative": "", "count": 6, "keep": 3, "per_prompt": 2},
    **{"least": 2, "seed": 3, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "ddim_uniform"},
    **{"gamma": -1.0, "detector": "mini (embedded)", "embedder": "mini (embedded)", "threshold": 0.25, "query": ""},
    **{"cut_out": False, "download": False, "name": "best"},
}


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE with random weights."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


class FakeJudge:
    """Gives the pictures that it sees `RESULTS` in turn, and one that it has seen the same again."""

    how: Any = None
    on_picture: Callable[[int], None] = staticmethod(lambda times: None)
    """Hears how many times it has judged."""

    def __init__(self) -> None:
        self.known: list[Tensor] = []
        self.times = 0

    def __call__(self, pictures: list[Tensor]) -> list[Comparison]:
        (picture,) = pictures
        if not any(torch.equal(picture, one) for one in self.known):
            self.known.append(picture)
        self.times += 1
        self.on_picture(self.times)
        return [RESULTS[next(i for i, one in enumerate(self.known) if torch.equal(picture, one))]]

    def of(self, subjects: SubjectSet, how: Any) -> FakeJudge:
        self.how = how
        return self


@pytest.fixture
def judge(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    shutil.rmtree(comfy.base / "output" / "mudi" / "stopped_pictures", ignore_errors=True)  # of other tests
    one = FakeJudge()
    monkeypatch.setattr(comfy.module("best_pictures"), "Judge", one.of)
    return one


@pytest.fixture
def judged(judge: FakeJudge) -> list[Tensor]:
    """The pictures that were judged."""
    return judge.known


def layout(comfy: Comfy, subjects: SubjectSet, seed: int = 5) -> Any:
    settings = {"width": SIDE, "height": SIDE, "mode": "random", "relative_sizes": "", "overlap": 0.4}
    return comfy.run("MudiLayout", subjects=subjects, seed=seed, **settings).result[0]


def make(comfy: Comfy, mini: tuple[Any, Any, Any], placed: Any, **more: Any) -> Any:
    model, clip, vae = mini
    return comfy.run("MudiBestPictures", model=model, clip=clip, vae=vae, layout=placed, **{**SETTINGS, **more})


def test_the_best_sound_pictures_are_a_dataset_and_lie_in_a_folder(
    comfy: Comfy, mini: tuple[Any, Any, Any], judged: list[Tensor], drawn_subjects: SubjectSet
) -> None:
    made = make(comfy, mini, layout(comfy, drawn_subjects))
    dataset, images, prompts, seeds, scores = made.result
    assert len(judged) == 6 and scores == [0.7, 0.5, 0.6]  # of 0.2, 0.7, 0.5, 0.6 the best three
    sea, snow = "a photo of olis cat and hta cat at sea", "olis cat and hta cat, in the snow"
    assert prompts == [sea, sea, snow] and len(set(seeds)) == 3
    for image, number in zip(images, (2, 4, 5), strict=True):
        assert (image - judged[number]).abs().max() < 0.5 / 255 + 1e-6
    assert dataset.segmix_prob == 0.0 and dataset.subjects.tokens == drawn_subjects.tokens
    captions = [photo.caption for one in dataset.subjects for photo in one.photos]
    assert sorted(captions) == sorted(prompts)
    folder = comfy.base / "output" / "mudi" / "best_00001"
    rows = [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [0.2, 0.9, 0.7, 0.8, 0.5, 0.6]
    assert len(list(folder.glob("*.png"))) == 4 and str(folder) in made.ui["text"][0]


def test_a_prompt_and_seed_make_the_same_picture_in_stock_nodes(
    comfy: Comfy, mini: tuple[Any, Any, Any], judged: list[Tensor], drawn_subjects: SubjectSet
) -> None:
    model, clip, vae = mini
    _, _, prompts, seeds, _ = make(comfy, mini, layout(comfy, drawn_subjects)).result
    placed = layout(comfy, drawn_subjects, seeds[0])
    start, *_ = comfy.run("MudiInitLatent", layout=placed, vae=vae, gamma=2.0, batch_size=1, seed=7).result
    (said,) = comfy.run_stock("CLIPTextEncode", clip=clip, text=prompts[0])
    (nothing,) = comfy.run_stock("CLIPTextEncode", clip=clip, text="")
    (sampled,) = comfy.run_stock(
        "KSampler", model=model, seed=seeds[0], steps=1, cfg=1.0, sampler_name="euler", scheduler="ddim_uniform",
        positive=said, negative=nothing, latent_image=start, denoise=1.0,
    )  # fmt: skip
    (picture,) = comfy.run_stock("VAEDecode", samples=sampled, vae=vae)
    torch.testing.assert_close(picture[0], judged[2], rtol=0, atol=1e-5)


def test_no_sound_picture_is_told_with_what_to_change_and_a_bad_name_before(
    comfy: Comfy, mini: tuple[Any, Any, Any], judged: list[Tensor], drawn_subjects: SubjectSet
) -> None:
    placed = layout(comfy, drawn_subjects)
    with pytest.raises(MudiError, match="Only 4 of 6 pictures .* and 5 are needed: 1 do not show 2 figures, in 1 not"):
        make(comfy, mini, placed, least=5, keep=5)
    with pytest.raises(MudiError, match="cannot be the name of a folder of pictures"):
        make(comfy, mini, placed, name="../evil")
    with pytest.raises(MudiError, match="There is no prompt"):
        make(comfy, mini, placed, prompts="\n ")
    assert not list(Path(comfy.base / "output").glob("**/evil*"))


def test_train_lora_goes_on_from_them(
    comfy: Comfy, mini: tuple[Any, Any, Any], judged: list[Tensor], drawn_subjects: SubjectSet
) -> None:
    model, clip, vae = mini
    dataset = make(comfy, mini, layout(comfy, drawn_subjects)).result[0]
    made = comfy.run(
        "MudiTrainLora", model=model, clip=clip, vae=vae, dataset=dataset, name="better", method="segmix",
        preset="iterate", steps=1, rank=2, learning_rate=0.0, batch_size=1, seed=0,
    )  # fmt: skip
    assert "1 steps of segmix" in made.ui["text"][0]


def stopped(comfy: Comfy) -> list[Path]:
    return sorted((comfy.base / "output" / "mudi" / "stopped_pictures").glob("*/"))


@pytest.fixture
def cancel(comfy: Comfy) -> Iterator[Callable[[], None]]:
    """Presses Cancel."""
    management = importlib.import_module("comfy.model_management")
    yield lambda: management.interrupt_current_processing(True)
    management.interrupt_current_processing(False)


@pytest.mark.parametrize(("where", "times", "done"), [("sampling", 1, 0), ("judging", 1, 1), ("sampling", 4, 3)])
def test_cancelled_anywhere_it_goes_on_to_the_same_and_judges_nothing_twice(
    comfy: Comfy,
    mini: tuple[Any, Any, Any],
    judge: FakeJudge,
    drawn_subjects: SubjectSet,
    cancel: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    times: int,
    done: int,
) -> None:
    placed, management = layout(comfy, drawn_subjects), importlib.import_module("comfy.model_management")
    wanted = make(comfy, mini, placed)
    assert judge.times == 6 and not stopped(comfy)
    sampled, sample = [0], comfy.core("comfy.sample").sample

    def sampling(*given: Any, **named: Any) -> Tensor:
        sampled[0] += 1
        if where == "sampling" and sampled[0] == times:
            cancel()
        made: Tensor = sample(*given, **named)
        return made

    monkeypatch.setattr(comfy.core("comfy.sample"), "sample", sampling)
    judge.on_picture = lambda judged: cancel() if (where, judged) == ("judging", 6 + times) else None  # type: ignore[method-assign]
    with pytest.raises(management.InterruptProcessingException):
        make(comfy, mini, placed)
    (kept,) = stopped(comfy)
    (kept / "pictures.jsonl").touch()
    assert len((kept / "pictures.jsonl").read_text().splitlines()) == done
    with (kept / "pictures.jsonl").open("a") as lines:  # as a crash could leave it
        lines.write('{"number": 3, "pro')
    made = make(comfy, mini, placed)
    assert judge.times == 12 and not stopped(comfy) and not kept.parent.exists()
    assert torch.equal(made.result[1], wanted.result[1]) and made.result[2:] == wanted.result[2:]
    for one, other in zip(made.result[0].subjects, wanted.result[0].subjects, strict=True):
        assert [photo.caption for photo in one.photos] == [photo.caption for photo in other.photos]
        assert all(torch.equal(a.image, b.image) for a, b in zip(one.photos, other.photos, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(one.masks, other.masks, strict=True))
    said = f"going on from picture {done + 1}"
    assert (said in made.ui["text"][0]) == (done > 0) and "going on" not in wanted.ui["text"][0]


def test_any_other_setting_begins_anew_and_says_what_is_other(
    comfy: Comfy,
    mini: tuple[Any, Any, Any],
    judge: FakeJudge,
    drawn_subjects: SubjectSet,
    cancel: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, clip, vae = mini
    placed, management = layout(comfy, drawn_subjects), importlib.import_module("comfy.model_management")
    judge.on_picture = lambda judged: cancel()  # type: ignore[method-assign]
    with pytest.raises(management.InterruptProcessingException):
        make(comfy, mini, placed)
    begun: list[str] = []

    def begins(shelf: Any, made_of: Any) -> str:
        begun.append(how_it_begins(shelf, made_of))
        raise InterruptedError

    monkeypatch.setattr("mudi_core.jobs.unfinished.how_it_begins", begins)

    def said(parts: Any = mini, on: Any = placed, **more: Any) -> str:
        with pytest.raises(InterruptedError):
            make(comfy, parts, on, **more)
        for empty in stopped(comfy):
            if not (empty / "pictures.jsonl").exists():
                shutil.rmtree(empty)
        return begun[-1]

    there = "going on from picture 2"
    assert said() == said(name="other", keep=2, count=9, least=1) == said(on=layout(comfy, drawn_subjects, 6)) == there
    other = model.clone()
    other.set_model_attn2_output_patch(lambda n, extra: n)
    patched = model.clone()
    weight = "diffusion_model.out.2.weight"
    patched.add_patches({weight: ("diff", (torch.ones_like(model.model.diffusion_model.out[2].weight),))}, 0.5)
    for change, parts in (
        ({"seed": 4}, "seed"),
        ({"cfg": 1.1}, "sampler settings"),
        ({"gamma": 1.0}, "sampler settings"),
        ({"prompts": "at sea"}, "prompts"),
        ({"negative": "dark"}, "negative prompt"),
        ({"threshold": 0.3}, "eyes"),
        ({"parts": (other, clip, vae)}, "model"),
        ({"parts": (patched, clip, vae)}, "model"),
        ({"on": layout(comfy, SubjectSet(drawn_subjects.subjects[::-1]))}, "layout"),
    ):
        assert said(**change).endswith(f"has other {parts}") or parts == "layout" and "other layout, " in begun[-1], (
            change
        )


def test_a_higher_count_goes_on_from_too_few_sound_pictures(
    comfy: Comfy, mini: tuple[Any, Any, Any], judge: FakeJudge, drawn_subjects: SubjectSet
) -> None:
    placed = layout(comfy, drawn_subjects)
    with pytest.raises(MudiError, match="Only 2 of 3 pictures .* A higher count goes on from these, which are in"):
        make(comfy, mini, placed, count=3, least=3, keep=3)
    made = make(comfy, mini, placed, least=3, keep=3)
    assert judge.times == 6 and made.result[4] == [0.7, 0.5, 0.6] and not stopped(comfy)
