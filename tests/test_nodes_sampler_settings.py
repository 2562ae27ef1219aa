"""Sampler Settings: what is usual for the kind of a MODEL, as sockets that a stock KSampler takes."""

from __future__ import annotations

import pytest
import torch
from comfyui import Comfy
from test_nodes_refusals import node
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


def test_comfyui_lets_it_be_linked_to_a_ksampler_and_a_layout(comfy: Comfy, random_mini: None) -> None:
    """A stock node of the older API takes no COMBO in newer ComfyUI, but the list of its choices."""
    settings = ("steps", "cfg", "sampler_name", "scheduler")
    graph = {
        "checkpoint": node("MudiMiniCheckpoint"),
        "usual": node("MudiSamplerSettings", model=["checkpoint", 0]),
        "words": node("CLIPTextEncode", clip=["checkpoint", 1], text="a photo of a cat"),
        "latent": node("EmptyLatentImage", width=["usual", 4], height=["usual", 4], batch_size=1),
        "sampled": node(
            "KSampler", model=["checkpoint", 0], seed=1, positive=["words", 0], negative=["words", 0],
            latent_image=["latent", 0], denoise=1.0, **{name: ["usual", i] for i, name in enumerate(settings)},
        ),
        "seen": node("VAEDecode", samples=["sampled", 0], vae=["checkpoint", 2]),
        "shown": node("PreviewImage", images=["seen", 0]),
    }  # fmt: skip
    run = comfy.queue(graph, "shown")
    assert run.status == "success", run.error
    samplers = comfy.core("comfy.samplers").KSampler.SAMPLERS
    samplers.append("of another pack")
    try:
        assert comfy.queue(graph, "shown").status == "success"
    finally:
        samplers.remove("of another pack")
    wrong = {**graph, "sampled": {**graph["sampled"], "inputs": {**graph["sampled"]["inputs"], "cfg": ["usual", 2]}}}
    assert comfy.queue(wrong, "shown").status == "refused"


def test_a_model_that_reads_more_than_a_caption_is_refused(
    comfy: Comfy, random_mini: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, *_ = comfy.run("MudiMiniCheckpoint").result
    monkeypatch.setitem(model.model.model_config.unet_config, "in_channels", 9)  # as for inpainting
    with pytest.raises(comfy.module("convert").BadModel, match="Nothing is usual for this MODEL .* by hand"):
        comfy.run("MudiSamplerSettings", model=model)
