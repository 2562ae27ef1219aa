"""LoRAs on every family of base models that ComfyUI loads, by tiny members with random weights."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import weights
from tiny_models import TINY, conditions, encoded, known, tiny

from mudi_core.bases.families import FAMILIES, OTHER, usual
from mudi_core.bases.promise import Denoiser
from mudi_core.lora.adapter import Adapter
from mudi_core.lora.file import load_lora, save_lora
from mudi_core.train.config import TrainConfig
from mudi_core.train.plan import Plan
from mudi_core.train.recompute import checkpointing
from mudi_core.train.step import Trainee, batch_loss

NOT_LEARNED = ("*mod*", "*adaLN*", "*embed*", "*llm_adapter*", "*refiner*", "*guidance*", "*txt*", "*context*")
"""Modulation, embedders and what reads the text."""


@pytest.fixture(params=list(TINY))
def family(request: pytest.FixtureRequest, comfy: Comfy) -> str:
    name: str = request.param
    if not known(comfy, name):
        pytest.skip(f"this ComfyUI has no {TINY[name].kind}")
    return name


def trainee_of(denoiser: Denoiser, adapter: Adapter, family: str) -> Trainee:
    latents = encoded(family, 2)
    side = latents.shape[-2:]
    plan = Plan(
        latents=tuple(latents), masks=tuple(torch.ones(2, 1, *side)), names=("1", "2"), caption_of=(0, 1),
        captions=("one", "two"), conditions=tuple(conditions(family, seed) for seed in (1, 2)),
        time_ids=torch.full((2, 6), 64.0), steps=torch.tensor([[0, 1]] * 30),
        priors=torch.zeros(30, 0, dtype=torch.long), plan_hash="",
    )  # fmt: skip
    learning = {"target_modules": usual("", family).training["target_modules"], "dco_beta": 0.0}
    config = TrainConfig.of(steps=30, batch_size=2, rank=4, **learning)
    return Trainee(denoiser, adapter, plan, config)


def gradient_of(trainee: Trainee, how: str) -> tuple[float, torch.Tensor]:
    for one in trainee.adapter.parameters():
        one.grad = None
    with checkpointing(trainee.denoiser, how):
        loss, _ = batch_loss(trainee, 0)
        loss.backward()
    return loss.item(), torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trainee.adapter.parameters()]
    )


def sampled(comfy: Comfy, model: Any, family: str) -> torch.Tensor:
    """What a MODEL answers where ComfyUI samples."""
    management, asking = comfy.core("comfy.model_management"), comfy.module("denoiser.asking")
    with torch.inference_mode():
        management.load_models_gpu([model])
        x = encoded(family, 1, seed=7)
        inputs = asking.inputs_of(model.model, conditions(family), [64.0, 64.0, 0, 0, 64.0, 64.0], x, x.device)
        answer = asking.answer(model.model, x, torch.tensor([0.6]), [inputs], x.device).clone()
        management.unload_all_models()
    return answer


def test_a_family_is_learned_saved_and_loaded(comfy: Comfy, family: str) -> None:
    """The answer is ComfyUI's, the gradient that of differences, and the LoRA does in LoraLoader what it did here."""
    model = tiny(comfy, family)
    before = weights(model)
    denoiser = comfy.module("denoiser").ComfyDenoiser(model)
    denoiser.check(encoded(family, 1)[0], conditions(family), bf16=False)
    modules = usual("", family).training["target_modules"]
    with denoiser.ready(bf16=False), Adapter.new(denoiser, 4, 4.0, modules) as adapter:
        adapter.start(0)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for one in adapter.matrices()[1::2]:
                one.copy_(0.05 * torch.randn(one.shape, generator=generator))
        trainee = trainee_of(denoiser, adapter, family)
        loss, gradient = gradient_of(trainee, "off")
        for how in ("selective", "full"):
            again, computed_twice = gradient_of(trainee, how)
            assert again == pytest.approx(loss, rel=1e-6)
            assert float((computed_twice - gradient).norm() / gradient.norm()) < 1e-5
        length, losses = gradient.norm(), []
        for step in (2e-3, -4e-3, 2e-3):
            _move(adapter, step * gradient / length)
            losses.append(batch_loss(trainee, 0)[0].item())
        assert (losses[0] - losses[1]) / 4e-3 == pytest.approx(float(length), rel=5e-2)
        optimizer, falling = torch.optim.AdamW(adapter.parameters(), lr=3e-3), []
        for _ in range(15):
            falling.append(gradient_of(trainee, "off")[0])
            optimizer.step()
        assert falling[-1] < 0.97 * falling[0]
        loras = Path(comfy.core("folder_paths").get_folder_paths("loras")[0])
        save_lora(loras / f"{family}.safetensors", adapter.state(), {})
        state = load_lora(loras / f"{family}.safetensors")[0]
        adapter.load(state)
        trained = sampled_in_training(denoiser, comfy, family)
    comfy.core("comfy.model_management").unload_all_models()
    assert all(map(torch.equal, weights(model), before))
    wearing, _ = comfy.run_stock(
        "LoraLoader", model=model, clip=None, lora_name=f"{family}.safetensors", strength_model=1.0, strength_clip=0.0
    )
    layers = sum(key.endswith(".alpha") for key in state)
    assert sum(map(len, wearing.patches.values())) == layers > 0
    loaded = sampled(comfy, wearing, family)
    assert float((loaded - trained).norm() / trained.norm()) < 1e-5
    assert float((loaded - sampled(comfy, model, family)).norm() / trained.norm()) > 1e-3
    assert all(map(torch.equal, weights(model), before))


def _move(adapter: Adapter, by: torch.Tensor) -> None:
    with torch.no_grad():
        for one, part in zip(adapter.parameters(), by.split([p.numel() for p in adapter.parameters()]), strict=True):
            one.add_(part.view_as(one))


def sampled_in_training(denoiser: Any, comfy: Comfy, family: str) -> torch.Tensor:
    """What `sampled` asks, of the network with its LoRA on."""
    asking, network = comfy.module("denoiser.asking"), denoiser.patcher.model
    noise, sampling = comfy.module("denoiser.noise"), denoiser.patcher.get_model_object("model_sampling")
    x, sigma = encoded(family, 1, seed=7), torch.tensor([0.6])
    with torch.no_grad():
        inputs = asking.inputs_of(network, conditions(family), [64.0, 64.0, 0, 0, 64.0, 64.0], x, x.device)
        answer = asking.answer(network, x.clone(), sigma, [inputs], x.device)
        a, b = noise.parts_of_clean(denoiser._sampling, sigma)
    assert sampling is denoiser.patcher.model.model_sampling
    return a * x + b * answer


def test_a_family_is_recognized(comfy: Comfy, family: str) -> None:
    assert comfy.module("denoiser").kohya_family(tiny(comfy, family)) == (family if family in FAMILIES else OTHER)


def test_only_attention_and_mlp_of_the_pictures_stream_learn(comfy: Comfy, family: str) -> None:
    denoiser = comfy.module("denoiser").ComfyDenoiser(tiny(comfy, family))
    adapter = Adapter.new(denoiser, 4, 4.0, usual("", family).training["target_modules"])
    learned = [name for name, layer in denoiser.layers().items() if any(layer is one.layer for one in adapter._parts)]
    assert not [name for name in learned for pattern in NOT_LEARNED if fnmatch.fnmatchcase(name, pattern)]
    kinds = " ".join(learned)
    assert any(word in kinds for word in ("attn", "attention")) and any(
        word in kinds for word in ("mlp", "feed_forward", "linear2", "ff_")
    )
