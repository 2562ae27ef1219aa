"""Find Best Seed: what stock nodes would make of each seed, in the order of Detect-and-Compare."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from comfyui import Comfy
from torch import Tensor

from mudi_core.types import Comparison, Detections, SubjectSet, Verdict

SIDE, STEPS, FIRST = 64, 2, 2**64 - 1
SCORES = (0.2, 0.9, 0.5)


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE with random weights."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


@pytest.fixture
def judged(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The pictures that were judged; they get `SCORES` in turn."""
    seen: list[Tensor] = []

    def compared(pictures: list[Tensor], subjects: SubjectSet, how: Any) -> list[Comparison]:
        seen.extend(pictures)
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0), ())
        similar = torch.eye(len(subjects))
        verdicts = (Verdict("olis", "missing", 0.0, "olis cat: missing"),)
        return [Comparison(subjects.tokens, score, score, similar, similar[:0], nothing, verdicts) for score in SCORES]

    monkeypatch.setattr(comfy.module("search"), "compared", compared)
    monkeypatch.setattr(comfy.module("host"), "detector", lambda choice, download: None)
    monkeypatch.setattr(comfy.module("host"), "embedder", lambda choice, download: None)
    return seen


def layout(comfy: Comfy, subjects: SubjectSet, seed: int) -> Any:
    settings = {"width": SIDE, "height": SIDE, "mode": "random", "relative_sizes": "", "overlap": 0.4}
    return comfy.run("MudiLayout", subjects=subjects, seed=seed, **settings).result[0]


def words(comfy: Comfy, clip: Any) -> Any:
    return comfy.run_stock("CLIPTextEncode", clip=clip, text="olis cat and hta cat")[0]


def find(comfy: Comfy, mini: tuple[Any, Any, Any], placed: Any, **more: Any) -> Any:
    model, clip, vae = mini
    said = words(comfy, clip)
    settings = {
        **{"seed": FIRST, "count": 3, "keep": 2, "vary_places": True, "steps": STEPS, "cfg": 2.0, "gamma": -1.0},
        **{"sampler_name": "euler", "scheduler": "ddim_uniform", "detector": "mini (embedded)", "threshold": 0.25},
        **{"embedder": "mini (embedded)", "query": "", "cut_out": False, "download": False, **more},
    }
    return comfy.run("MudiFindSeed", model=model, positive=said, negative=said, vae=vae, layout=placed, **settings)


@pytest.mark.parametrize("vary", [True, False])
def test_a_seed_makes_the_same_picture_in_stock_nodes(
    comfy: Comfy, mini: tuple[Any, Any, Any], judged: list[Tensor], drawn_subjects: SubjectSet, vary: bool
) -> None:
    model, clip, vae = mini
    output = find(comfy, mini, layout(comfy, drawn_subjects, 5), vary_places=vary)
    images, _, seeds, scores, latent = output.result
    assert seeds == [0, 1] and scores == [0.9, 0.5]  # 2^64 - 1, 0, 1 scored .2, .9, .5
    assert images.shape == (2, SIDE, SIDE, 3) and latent["samples"].shape == (2, 4, SIDE // 8, SIDE // 8)
    assert len(judged) == 3 and torch.equal(images[0], judged[1]) and torch.equal(images[1], judged[2])

    placed = layout(comfy, drawn_subjects, seeds[1] if vary else 5)
    start, *_ = comfy.run("MudiInitLatent", layout=placed, vae=vae, gamma=2.0, batch_size=1, seed=77).result
    said = words(comfy, clip)
    (sampled,) = comfy.run_stock(
        "KSampler", model=model, seed=seeds[1], steps=STEPS, cfg=2.0, sampler_name="euler", scheduler="ddim_uniform",
        positive=said, negative=said, latent_image=start, denoise=1.0,
    )  # fmt: skip
    (picture,) = comfy.run_stock("VAEDecode", vae=vae, samples=sampled)
    torch.testing.assert_close(latent["samples"][1:], sampled["samples"], atol=1e-4, rtol=0)
    torch.testing.assert_close(images[1:], picture.clamp(0, 1), atol=1e-4, rtol=0)


def test_every_seed_is_told_with_its_score_and_the_best_are_shown(
    comfy: Comfy, mini: tuple[Any, Any, Any], judged: list[Tensor], drawn_subjects: SubjectSet
) -> None:
    output = find(comfy, mini, layout(comfy, drawn_subjects, 5), keep=9)
    said = [line for line in output.ui["text"][0].splitlines() if line.startswith(("seed", "  score"))]
    told = ((0, 0.9), (1, 0.5), (FIRST, 0.2))
    assert said == [
        line for seed, score in told for line in (f"seed {seed}: 0 of 2 themselves", f"  score {score:.2f}")
    ]
    assert len(output.ui["images"]) == len(output.result[1]) == len(output.result[2]) == 3


def test_unknown_choices_are_told_before_anything_is_sampled(
    comfy: Comfy, mini: tuple[Any, Any, Any], judged: list[Tensor], drawn_subjects: SubjectSet
) -> None:
    placed = layout(comfy, drawn_subjects, 5)
    for what in ({"sampler_name": "magic"}, {"scheduler": "magic"}):
        with pytest.raises(comfy.module("host").BadChoice, match="'magic'"):
            find(comfy, mini, placed, **what)
    assert judged == []


def test_cancel_stops_between_two_steps(
    comfy: Comfy, mini: tuple[Any, Any, Any], judged: list[Tensor], drawn_subjects: SubjectSet
) -> None:
    management = importlib.import_module("comfy.model_management")
    placed = layout(comfy, drawn_subjects, 5)
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        find(comfy, mini, placed)
    assert judged == []
