"""Best Pictures: what stock nodes would make of each prompt and seed, and of these the best, for Train LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from test_iterate import found
from torch import Tensor

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


@pytest.fixture
def judged(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The pictures that were judged; they get `RESULTS` in turn."""
    seen: list[Tensor] = []

    def judge(pictures: list[Tensor]) -> list[Comparison]:
        seen.extend(pictures)
        return [RESULTS[len(seen) - 1]]

    monkeypatch.setattr(comfy.module("best_pictures"), "Judge", lambda *how: judge)
    return seen


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
    start, _ = comfy.run("MudiInitLatent", layout=placed, vae=vae, gamma=2.0, batch_size=1, seed=7).result
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
