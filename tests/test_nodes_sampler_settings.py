"""Sampler Settings: what is usual for the kind of a MODEL, as sockets that a stock KSampler takes."""

from __future__ import annotations

import pytest
import torch
from comfyui import Comfy
from tiny_models import TINY, known, tiny

from mudi_core.bases.families import EMBEDDED, FAMILIES


@pytest.mark.parametrize("family", ["flux1", "qwen_image", "z_image", "sd3"])
def test_it_gives_the_row_of_the_models_family(comfy: Comfy, family: str) -> None:
    if not known(comfy, family):
        pytest.skip(f"this ComfyUI has no {TINY[family].kind}")
    usual = FAMILIES[family].sampling
    answer = comfy.run("MudiSamplerSettings", model=tiny(comfy, family))
    assert answer.result == (usual.steps, usual.cfg, usual.sampler, usual.scheduler, usual.side)
    assert f"{usual.steps} steps, cfg {usual.cfg:g}, {usual.sampler}" in answer.ui["text"][0]


def test_the_embedded_model_has_its_own_row_and_is_sampled_by_it(comfy: Comfy, random_mini: None) -> None:
    model, clip, _ = comfy.run("MudiMiniCheckpoint").result
    steps, cfg, sampler, scheduler, side = comfy.run("MudiSamplerSettings", model=model).result
    assert (steps, side) == (FAMILIES[EMBEDDED].sampling.steps, 192)
    (words,) = comfy.run_stock("CLIPTextEncode", clip=clip, text="a photo of a cat")
    latent = {"samples": torch.zeros(1, 4, side // 8, side // 8)}
    (sampled,) = comfy.run_stock(
        "KSampler", model=model, seed=1, steps=1, cfg=cfg, sampler_name=sampler, scheduler=scheduler, positive=words,
        negative=words, latent_image=latent, denoise=1.0,
    )  # fmt: skip
    assert sampled["samples"].shape == latent["samples"].shape


def test_comfyui_lets_it_be_linked_to_a_ksampler(comfy: Comfy) -> None:
    types = comfy.node("MudiSamplerSettings").RETURN_TYPES
    wanted = comfy.stock["KSampler"].INPUT_TYPES()["required"]
    validate = comfy.core("comfy_execution.validation").validate_node_input
    for kind, name in zip(types, ("steps", "cfg", "sampler_name", "scheduler"), strict=False):
        assert kind == "COMBO" or validate(kind, wanted[name][0]), name


def test_a_model_that_reads_more_than_a_caption_is_refused(
    comfy: Comfy, random_mini: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, *_ = comfy.run("MudiMiniCheckpoint").result
    monkeypatch.setitem(model.model.model_config.unet_config, "in_channels", 9)  # as for inpainting
    with pytest.raises(comfy.module("convert").BadModel, match="Nothing is usual for this MODEL .* by hand"):
        comfy.run("MudiSamplerSettings", model=model)
