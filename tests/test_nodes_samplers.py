"""The start in stock samplers: exact parity with diffusers, and what is said of samplers that would spoil it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfyui import Comfy

from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.jobs.generate import GenerateConfig, draw_noise, generate
from mudi_core.lora.adapter import Adapter
from mudi_core.lora.file import save_lora
from mudi_core.stage.cutouts import cut_outs
from mudi_core.stage.layout_config import LayoutConfig
from mudi_core.types import SubjectSet

Companion = Callable[[Comfy, Any, Any], tuple[Any, Any]]
"""Gives a MODEL and a CONDITIONING with something more in them."""
SIDE, STEPS = 64, 4
PROMPT = "a photo of olis cat and hta cat"


@pytest.fixture
def mini(comfy: Comfy, mini_weights: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE of the embedded family."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


class FirstInput:
    """Keeps what a U-Net is first given, from the moment it is watched."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.seen: torch.Tensor | None = None
        unet.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, unet: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.seen is None:
            self.seen = (positional[0] if positional else named["sample"]).clone()


def sample(
    comfy: Comfy, mini: tuple[Any, Any, Any], latent: Any, scheduler: str, steps: int, seed: int
) -> torch.Tensor:
    """The U-Net's first input in SamplerCustomAdvanced with our noise, without guidance."""
    custom = comfy.core("comfy_extras.nodes_custom_sampler")
    model, clip, _ = mini
    first = FirstInput(model.model.diffusion_model)
    (words,) = comfy.run_stock("CLIPTextEncode", clip=clip, text=PROMPT)
    with torch.inference_mode():
        (sigmas,) = custom.BasicScheduler().get_sigmas(model, scheduler, steps, 1.0)
        (guider,) = custom.BasicGuider().get_guider(model, words)
        (sampler,) = custom.KSamplerSelect().get_sampler("euler")
        (noise,) = comfy.run("MudiNoise", model=model, sigmas=sigmas, seed=seed).result
        custom.SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, latent)
    assert first.seen is not None
    return first.seen


@pytest.mark.parametrize(("scheduler", "spacing"), [("ddim_uniform", "leading"), ("normal", "linspace")])
def test_the_unet_first_sees_what_it_sees_in_diffusers(
    comfy: Comfy,
    mini: tuple[Any, Any, Any],
    drawn_subjects: SubjectSet,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    spacing: str,
) -> None:
    """Sampling begins below the last sigma with ddim_uniform, at it with normal."""
    checkpoint: Checkpoint = open_checkpoint("mini")
    # One encoder for both: the two implementations of the VAE round differently, by some 1e-6 of a latent's scale.
    monkeypatch.setattr(checkpoint, "encode_image", comfy.module("convert").encode_image(mini[2]))
    settings = {**checkpoint.scheduler.config, "timestep_spacing": spacing}
    checkpoint.scheduler = type(checkpoint.scheduler).from_config(settings)
    layout = LayoutConfig(max_overlap=0.4)
    config = GenerateConfig(
        PROMPT, layout=layout, steps=STEPS, count=2, batch_size=2, guidance=1.0, gamma=2.0, seed=7, size=(SIDE, SIDE)
    )
    theirs = FirstInput(checkpoint.unet)
    list(generate(checkpoint, cut_outs(drawn_subjects, SIDE), config))
    assert theirs.seen is not None

    overlap = {"relative_sizes": "", "overlap": 0.4}
    (placed,) = comfy.run(
        "MudiLayout", subjects=drawn_subjects, width=SIDE, height=SIDE, mode="random", seed=7, **overlap
    ).result
    latent, *_ = comfy.run("MudiInitLatent", layout=placed, vae=mini[2], gamma=2.0, batch_size=2, seed=7).result
    ours = sample(comfy, mini, latent, scheduler, STEPS, 7)
    if spacing == "linspace":  # there diffusers scales everything by sigma / sqrt(1 + sigma^2)
        sigma = float(checkpoint.scheduler.sigmas[0])
        ours = ours * sigma / (1 + sigma**2) ** 0.5
    assert (ours - theirs.seen).abs().max() < 1e-6
    assert (ours - draw_noise(7, 0, (1, 4, 8, 8))).abs().max() > 0.05


def test_each_picture_of_a_batch_has_its_own_noise_wherever_it_stands(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    (noise,) = comfy.run("MudiNoise", model=mini[0], sigmas=torch.tensor([14.7, 0.0]), seed=3).result
    samples = torch.zeros(2, 4, 8, 8)
    assert noise.seed == 3
    assert torch.equal(noise.generate_noise({"samples": samples})[1:], draw_noise(3, 1, (1, 4, 8, 8)))
    taken = noise.generate_noise({"samples": samples, "batch_index": [5, 1]})
    assert torch.equal(taken, torch.cat([draw_noise(3, number, (1, 4, 8, 8)) for number in (5, 1)]))


def test_every_pair_of_stock_sampler_and_scheduler_runs_from_the_start(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of each. The network itself answers once for every sampler and every scheduler, which takes long.

    In all other pairs it is asked what it can answer: finite latents at its own timesteps.
    """
    model, clip, vae = mini
    overlap = {"relative_sizes": "", "overlap": 0.4}
    (placed,) = comfy.run(
        "MudiLayout", subjects=drawn_subjects, width=SIDE, height=SIDE, mode="random", seed=7, **overlap
    ).result
    latent, *_ = comfy.run("MudiInitLatent", layout=placed, vae=vae, gamma=2.0, batch_size=1, seed=7).result
    (empty,) = comfy.run_stock("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    (words,) = comfy.run_stock("CLIPTextEncode", clip=clip, text=PROMPT)
    stock = comfy.core("comfy.samplers").KSampler
    pairs = list(itertools.product(stock.SAMPLERS, stock.SCHEDULERS))
    assert len(pairs) > 300

    def sampled(start: Any, sampler: str, scheduler: str) -> torch.Tensor:
        (out,) = comfy.run_stock(
            "KSampler", model=model, seed=1, steps=2, cfg=1.0, sampler_name=sampler, scheduler=scheduler,
            positive=words, negative=words, latent_image=start, denoise=1.0,
        )  # fmt: skip
        samples: torch.Tensor = out["samples"]
        return samples

    def half(x: torch.Tensor, timesteps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert x.isfinite().all() and 0 <= timesteps.min() and timesteps.max() <= 999
        return x / 2

    assert (sampled(latent, "euler", "normal") - sampled(empty, "euler", "normal")).abs().max() > 0.05
    for sampler, scheduler in pairs:
        with monkeypatch.context() as patch:
            if sampler != "euler" and scheduler != "normal":
                patch.setattr(model.model.diffusion_model, "forward", half)
            samples = sampled(latent, sampler, scheduler)
        assert samples.shape == (1, 4, SIDE // 8, SIDE // 8) and samples.isfinite().all(), (sampler, scheduler)


def another_lora(comfy: Comfy, model: Any, words: Any) -> tuple[Any, Any]:
    with Adapter.new(open_checkpoint("mini").denoiser(), 2, 2.0, ("to_q", "to_v")) as adapter:
        state = {
            key: value if key.endswith(".alpha") else torch.full_like(value, 0.1)
            for key, value in adapter.state().items()
        }
    save_lora(comfy.base / "models" / "loras" / "another.safetensors", state, {})
    (patched,) = comfy.run_stock(
        "LoraLoaderModelOnly", model=model, lora_name="another.safetensors", strength_model=1.0
    )
    return patched, words


def cross_attention_patch(comfy: Comfy, model: Any, words: Any) -> tuple[Any, Any]:
    """As IP-Adapters have it."""
    patched = model.clone()
    patched.set_model_attn2_patch(lambda q, k, v, options: (q, k, v + 0.5))
    return patched, words


def guidance_patch(comfy: Comfy, model: Any, words: Any) -> tuple[Any, Any]:
    with torch.inference_mode():
        output = comfy.core("comfy_extras.nodes_pag").PerturbedAttentionGuidance.execute(model, 3.0)
    return output.result[0], words


def control_net(comfy: Comfy, model: Any, words: Any) -> tuple[Any, Any]:
    """Of the embedded U-Net's shape, with random weights."""
    shape = {key: value for key, value in model.model.model_config.unet_config.items() if key != "out_channels"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        operations = comfy.core("comfy.ops").disable_weight_init
        inner = comfy.core("comfy.cldm.cldm").ControlNet(**shape, hint_channels=3, operations=operations)
        for parameter in inner.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    control = comfy.core("comfy.controlnet").ControlNet(inner, load_device=torch.device("cpu"))
    positive, _ = comfy.run_stock(
        "ControlNetApplyAdvanced", positive=words, negative=words, control_net=control, strength=1.0,
        image=torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0)), start_percent=0.0,
        end_percent=1.0,
    )  # fmt: skip
    return model, positive


@pytest.mark.parametrize("companion", [another_lora, cross_attention_patch, guidance_patch, control_net])
def test_the_start_gets_on_with_what_else_is_in_the_graph(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet, companion: Companion
) -> None:
    """Both do what they do: the picture is another one without the start, and another one without the companion."""
    model, clip, vae = mini
    overlap = {"relative_sizes": "", "overlap": 0.4}
    (placed,) = comfy.run(
        "MudiLayout", subjects=drawn_subjects, width=SIDE, height=SIDE, mode="random", seed=7, **overlap
    ).result
    latent, *_ = comfy.run("MudiInitLatent", layout=placed, vae=vae, gamma=2.0, batch_size=1, seed=7).result
    (empty,) = comfy.run_stock("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    (words,) = comfy.run_stock("CLIPTextEncode", clip=clip, text=PROMPT)
    patched, positive = companion(comfy, model, words)

    def sampled(start: Any, model: Any, positive: Any) -> torch.Tensor:
        (out,) = comfy.run_stock(
            "KSampler", model=model, seed=1, steps=3, cfg=2.0, sampler_name="euler", scheduler="normal",
            positive=positive, negative=words, latent_image=start, denoise=1.0,
        )  # fmt: skip
        samples: torch.Tensor = out["samples"]
        return samples

    both = sampled(latent, patched, positive)
    assert both.isfinite().all()
    assert (both - sampled(empty, patched, positive)).abs().max() > 0.05
    assert (both - sampled(latent, model, words)).abs().max() > 0.01


def test_no_steps_are_no_error(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    (noise,) = comfy.run("MudiNoise", model=mini[0], sigmas=torch.tensor([]), seed=3).result
    assert torch.equal(noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8)}), draw_noise(3, 0, (1, 4, 8, 8)))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"class_type": "KSampler", "denoise": 1.0}, None),
        ({"class_type": "KSampler", "denoise": ["other", 0]}, None),
        ({"class_type": "KSampler", "denoise": 0.5}, r"KSampler \(node 9\) has a denoise of 0.5.*Set it to 1"),
        ({"class_type": "KSamplerAdvanced", "add_noise": "enable", "start_at_step": 0}, None),
        ({"class_type": "KSamplerAdvanced", "add_noise": "disable"}, "adds no noise"),
        ({"class_type": "KSamplerAdvanced", "start_at_step": 4}, "begins at step 4"),
        ({"class_type": "SamplerCustom", "add_noise": False}, "adds no noise"),
        ({"class_type": "SamplerCustom", "add_noise": True, "sigmas": ["schedule", 0]}, "has a denoise of 0.7"),
        ({"class_type": "SamplerCustomAdvanced", "noise": ["none", 0]}, "adds no noise"),
        ({"class_type": "SamplerCustomAdvanced", "noise": ["some", 0]}, None),
    ],
)
def test_a_sampler_that_spoils_the_start_is_told(comfy: Comfy, node: dict[str, Any], words: str | None) -> None:
    inputs = {name: value for name, value in node.items() if name != "class_type"}
    prompt = {
        "9": {"class_type": node["class_type"], "inputs": {**inputs, "latent_image": ["4", 0]}},
        "schedule": {"class_type": "BasicScheduler", "inputs": {"denoise": 0.7}},
        "none": {"class_type": "DisableNoise", "inputs": {}},
        "some": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
    }
    said = comfy.module("samplers").remarks(prompt, "4")
    assert (said == []) if words is None else (len(said) == 1 and re.search(words, said[0]))
    assert comfy.module("samplers").remarks(prompt, "5") == []


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ({"class_type": "ModelSamplingDiscrete", "inputs": {"model": ["lora", 0], "zsnr": True}}, True),
        ({"class_type": "ModelSamplingDiscrete", "inputs": {"model": ["lora", 0], "zsnr": False}}, False),
        ({"class_type": "ModelSamplingSD3", "inputs": {"model": ["lora", 0], "shift": 3.0}}, True),
        ({"class_type": "RescaleCFG", "inputs": {"model": ["patch", 0]}}, False),  # a loop has an end
    ],
)
@pytest.mark.parametrize("guided", [False, True])
def test_a_schedule_that_loses_the_start_is_seen_above_the_sampler(
    comfy: Comfy, patch: dict[str, Any], told: bool, guided: bool
) -> None:
    sampler = {"class_type": "KSampler", "inputs": {"model": ["lora 2", 0], "latent_image": ["start", 0]}}
    if guided:
        sampler = {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["g", 0], "latent_image": ["start", 0]}}
    prompt = {
        "sampler": sampler,
        "g": {"class_type": "CFGGuider", "inputs": {"model": ["lora 2", 0]}},
        "lora 2": {"class_type": "LoraLoader", "inputs": {"model": ["patch", 0]}},
        "patch": patch,
        "lora": {"class_type": "LoraLoader", "inputs": {"model": ["checkpoint", 0]}},
    }
    said = comfy.module("samplers").remarks(prompt, "start")
    assert len(said) == told and all(f"{patch['class_type']} (node patch)" in one for one in said)
    (flow,) = comfy.module("samplers").remarks(prompt, "start", in_the_noise=True)
    assert flow.endswith("this node's model to the sampler.")
    prompt["lora 2"]["inputs"]["model"] = ["start", 1]
    prompt["start"] = {"class_type": "MudiInitLatent", "inputs": {"model": ["patch", 0]}}
    assert comfy.module("samplers").remarks(prompt, "start", in_the_noise=True) == []


@pytest.mark.parametrize(
    ("wired", "told"),
    [({"samples": ["start", 0]}, True), ({"samples": ["start", 0], "net": ["start", 1]}, False), ({}, False)],
)
def test_a_model_that_is_connected_to_nothing_is_told_whatever_samples(
    comfy: Comfy, wired: dict[str, Any], told: bool
) -> None:
    """Samplers of other packs have sockets of other names; who only looks at the preview is told nothing."""
    prompt = {"start": {"class_type": "MudiInitLatent", "inputs": {}}, "a": {"class_type": "Other", "inputs": wired}}
    said = comfy.module("samplers").remarks(prompt, "start", in_the_noise=True)
    assert len(said) == told and all("connected to nothing, so the start is lost" in one for one in said)
    assert comfy.module("samplers").remarks(prompt, "start") == []
