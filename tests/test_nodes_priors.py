"""Make Priors: what it samples is what stock nodes sample, and Train LoRA takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy
from torch import Tensor

from mudi_core.types import Detections, SubjectSet

SIDE = 64


@pytest.fixture
def parts(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE with random weights."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


@pytest.fixture
def seen(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The pictures that were looked at: nothing is found in each first, one cat in each second."""
    pictures: list[Tensor] = []

    def detect(image: Tensor, queries: list[str], threshold: float) -> Detections:
        pictures.append(image)
        count = 1 - len(pictures) % 2
        xyxy = torch.tensor([[8.0, 8.0, 40.0, 56.0]] * count).reshape(-1, 4)
        return Detections(xyxy, torch.full((count,), 0.9), ("cat",) * count, 0.9)

    def segment(image: Tensor, xyxy: Tensor) -> Tensor:
        mask = torch.zeros(len(xyxy), SIDE, SIDE)
        mask[:, 8:56, 8:40] = 1
        return mask

    monkeypatch.setattr(comfy.module("host"), "detector", lambda choice, download: detect)
    monkeypatch.setattr(comfy.module("host"), "segmenter", lambda choice, download: segment)
    return pictures


def make(comfy: Comfy, parts: tuple[Any, Any, Any], subjects: SubjectSet, **more: Any) -> Any:
    model, clip, vae = parts
    settings = {
        **{"count": 1, "width": SIDE, "height": SIDE, "seed": 5, "steps": 2, "cfg": 2.0, "sampler_name": "euler"},
        **{"scheduler": "normal", "prompt": "a {} at sea", "negative": "fog", "detector": "mini (embedded)"},
        **{"segmenter": "mini (embedded)", "threshold": 0.4, "download": False, **more},
    }
    return comfy.run("MudiMakePriors", model=model, clip=clip, vae=vae, subjects=subjects, **settings)


def test_pictures_are_sampled_as_stock_nodes_do_and_learnt_from(
    comfy: Comfy, parts: tuple[Any, Any, Any], drawn_subjects: SubjectSet, seen: list[Tensor]
) -> None:
    from random import Random

    (made,) = make(comfy, parts, drawn_subjects).result
    assert len(seen) == 4 and not torch.equal(seen[0], seen[1])
    assert [torch.equal(one.photos[0].image, seen[2 * i + 1]) for i, one in enumerate(made)] == [True, True]

    model, clip, vae = parts
    said, fog = (comfy.run_stock("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a cat at sea", "fog"))
    (empty,) = comfy.run_stock("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    (samples,) = comfy.run_stock(
        "KSampler", model=model, seed=Random("5/0/prior/1").getrandbits(63), steps=2, cfg=2.0, sampler_name="euler",
        scheduler="normal", positive=said, negative=fog, latent_image=empty, denoise=1.0,
    )  # fmt: skip
    (picture,) = comfy.run_stock("VAEDecode", samples=samples, vae=vae)
    assert torch.equal(picture[0], seen[1])

    dataset, _ = comfy.run(
        "MudiSegMixDataset", subjects=drawn_subjects, probability=0.5, relative_sizes="", overlap=0.2,
        background_weight=1.0, priors=made,
    ).result  # fmt: skip
    assert dataset.priors is made
    _, name, _ = comfy.run(
        "MudiTrainLora", model=model, clip=clip, vae=vae, dataset=dataset, name="beside", method="segmix",
        preset="mini, 192 px", steps=1, rank=2, learning_rate=1e-3, batch_size=1, seed=0,
    ).result  # fmt: skip
    assert name == "beside_00001.safetensors"


def test_cancel_is_heard_between_two_pictures_and_wrong_choices_before(
    comfy: Comfy, parts: tuple[Any, Any, Any], drawn_subjects: SubjectSet, seen: list[Tensor]
) -> None:
    management = comfy.core("comfy.model_management")
    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            make(comfy, parts, drawn_subjects)
    finally:
        management.interrupt_current_processing(False)
    assert not seen
    for what in ("sampler_name", "scheduler"):
        with pytest.raises(comfy.module("host").BadChoice, match="no-such"):
            make(comfy, parts, drawn_subjects, **{what: "no-such"})
