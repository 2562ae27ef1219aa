"""A training starts from a LoRA of any kind: with its effect where the rank holds it, else with the share it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from kinds import NEEDED, lora_of_kind
from safetensors.torch import save_file
from test_train_loop import CONFIG, plan_for, stopped
from tiny_sdxl import denoiser, predict, tiny_unet, train
from torch import Tensor

from mudi_core.lora.adapter import Adapter, apply_lora
from mudi_core.lora.change import BadLora
from mudi_core.lora.reading import Lora, lora_of
from mudi_core.lora.start_from import StartLora, start_of
from mudi_core.lora.wear import sizes_of, worn
from mudi_core.train.config import TrainConfig
from mudi_core.train.resume import BadCheckpoint

TARGETS = TrainConfig().learning.target_modules
WIDEST = 64
"""No weight of the tiny U-Net has more ranks."""


def weights_of(ours: Any) -> dict[str, Tensor]:
    """The weights that a training of a denoiser changes, by their names in files."""
    layers, chosen = ours.layers(), [f".{one}" for one in TARGETS]
    return {ours.file_name(name): ours.weight(name) for name in layers if any(name.endswith(one) for one in chosen)}


def of_kind(kind: str) -> Lora:
    return lora_of(lora_of_kind(kind, weights_of(denoiser(tiny_unet()))), {}, "mine.safetensors")


def missed(start: StartLora, lora: Lora) -> tuple[float, float, float]:
    """Squared lengths: what a start misses of a LoRA's change, the change itself, and the least that can be missed."""
    unet, (rank, *_) = tiny_unet(), {len(v) for k, v in start.state.items() if k.endswith("lora_down.weight")}
    apart, whole, least = 0.0, 0.0, 0.0
    for name, weight in weights_of(denoiser(unet)).items():
        change = lora.changes[name].delta(weight)
        down, up = (start.state[f"{name}.lora_{part}.weight"] for part in ("down", "up"))
        apart += float((change - up @ down * (start.state[f"{name}.alpha"] / rank)).square().sum())
        whole += float(change.square().sum())
        least += float(torch.linalg.svdvals(change)[rank:].square().sum())
    return apart, whole, least


@pytest.mark.parametrize("kind", NEEDED)
def test_a_rank_that_holds_the_change_starts_with_its_very_effect(kind: str) -> None:
    lora, unet, rank = of_kind(kind), tiny_unet(), min(NEEDED[kind], WIDEST)
    base = predict(unet)
    with worn(unet, (lora.on(sizes_of(unet)).changes, 1.0)):
        wanted = predict(unet)
    assert (wanted - base).abs().max() > 1e-2
    start = start_of(lora, denoiser(unet), rank)
    assert start.told("mine.safetensors") == ""
    with Adapter.new(denoiser(unet), rank, 5.0, TARGETS) as adapter:
        adapter.start(0, start.state)
        torch.testing.assert_close(predict(unet), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind, rank in NEEDED.items() if rank > 3])
def test_a_smaller_rank_holds_the_share_that_it_tells_and_no_other_holds_more(kind: str) -> None:
    lora = of_kind(kind)
    start = start_of(lora, denoiser(tiny_unet()), 3)
    apart, whole, least = missed(start, lora)
    assert 0.02 < apart / whole < 0.98
    assert start.kept == pytest.approx(1 - apart / whole, abs=1e-5)
    assert apart == pytest.approx(least, rel=0.02)
    told = start.told("mine.safetensors")
    assert (
        told == f"The start holds {100 * start.kept:.1f} % of what mine.safetensors changes; a higher rank holds more."
    )


@pytest.mark.parametrize("kind", ["LoKr", "DoRA, rows"])
def test_a_run_starts_from_it_and_is_resumed_by_the_lora_that_it_was_made_of(kind: str, tmp_path: Path) -> None:
    unet, lora = tiny_unet(), of_kind(kind)
    start = start_of(lora, denoiser(unet), CONFIG.learning.rank)
    with apply_lora(unet, start.state):
        wanted = predict(unet)
    still = CONFIG.but(steps=1, learning_rate=1e-12)
    with apply_lora(unet, train(unet, plan_for(still), still, start=start).state):
        torch.testing.assert_close(predict(unet), wanted, rtol=0, atol=1e-5)
    file = tmp_path / "run.safetensors"
    stopped(unet, CONFIG, file, start=start)
    whole = train(unet, plan_for(CONFIG), CONFIG, start=start).state
    # Another machine finds other last bits for the same LoRA.
    near = StartLora({key: value + 1e-9 for key, value in start.state.items()}, start.kept, start.made_of)
    resumed = train(unet, plan_for(CONFIG), CONFIG, start=near, resume=file).state
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    other = start_of(of_kind("GLoRA"), denoiser(unet), CONFIG.learning.rank)
    with pytest.raises(BadCheckpoint, match="LoRA to start from is different"):
        train(unet, plan_for(CONFIG), CONFIG, start=other, resume=file)


def test_what_no_training_can_hold_is_told() -> None:
    unet = tiny_unet()
    tensors = lora_of_kind("LoKr", weights_of(denoiser(unet)))
    some = next(iter(tensors)).split(".")[0]
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    for more, words in (
        ({f"{text}.lokr_w1": torch.ones(2, 2), f"{text}.lokr_w2": torch.ones(2, 2)},
         "not in the model, such as lora_te1"),
        ({f"{some}.diff_b": torch.ones(8)}, "1 tensor is not understood"),
        ({"lora_unet_conv_in.lokr_w1": torch.ones(4, 2), "lora_unet_conv_in.lokr_w2": torch.ones(8, 2, 3, 3)},
         "not in the model, such as lora_unet_conv_in"),
    ):  # fmt: skip
        with pytest.raises(BadLora, match=f"more than linear layers of the network.*{words}.*Load it in ComfyUI"):
            start_of(lora_of({**tensors, **more}, {}, "x"), denoiser(unet), 4)
    others = {key.replace("attn1", "attn7"): value for key, value in tensors.items() if "attn1" in key}
    with pytest.raises(BadLora, match="None of the"):
        start_of(lora_of(others, {}, "x"), denoiser(unet), 4)


# ------------------------------------------------------------------------------------------------ in ComfyUI


@pytest.fixture(scope="module")
def mini(comfy: Comfy, mini_weights: None) -> Any:
    return comfy.run("MudiMiniCheckpoint").result


def patched(comfy: Comfy, model: Any) -> dict[str, Tensor]:
    """The changed weights of a MODEL, with its patches."""
    weights, calculate = model.model.state_dict(), comfy.core("comfy.lora").calculate_weight
    with torch.no_grad():
        return {key: calculate(patches, weights[key].float().clone(), key) for key, patches in model.patches.items()}


@pytest.mark.parametrize("under", [False, True], ids=["bare", "on a LoRA"])
@pytest.mark.parametrize("kind", NEEDED)
def test_the_model_at_step_0_is_the_model_with_the_lora_loaded(
    comfy: Comfy, mini: Any, kind: str, under: bool, tmp_path: Path
) -> None:
    model, load = mini[0], comfy.core("comfy.sd").load_lora_for_models
    weights = weights_of(comfy.module("denoiser").ComfyDenoiser(model))
    if under:
        model, _ = load(model, None, lora_of_kind("LoRA", weights, 7), 1.0, 0)
    tensors = lora_of_kind(kind, weights)
    save_file(tensors, tmp_path / "mine.safetensors")
    loaded, _ = load(model, None, tensors, 1.0, 0)
    wanted, before = patched(comfy, loaded), patched(comfy, model) if under else mini[0].model.state_dict()
    base = comfy.module("base").ComfyBase(model, mini[1], mini[2])
    started = comfy.module("training").started
    start, told = started(tmp_path / "mine.safetensors", base, 10**4)
    begun = patched(comfy, load(model, None, start.state, 1.0, 0)[0])
    assert begun.keys() == wanted.keys() and len(wanted) == len(weights) and told == ""
    for key, value in wanted.items():
        torch.testing.assert_close(begun[key], value, rtol=0, atol=1e-5)
    if NEEDED[kind] <= 3:
        return
    less, told = started(tmp_path / "mine.safetensors", base, 3)
    begun = patched(comfy, load(model, None, less.state, 1.0, 0)[0])
    apart = sum(float((begun[key] - value).square().sum()) for key, value in wanted.items())
    whole = sum(float((value - before[key]).square().sum()) for key, value in wanted.items())
    assert 0.02 < apart / whole < 0.98 and less.kept == pytest.approx(1 - apart / whole, abs=1e-4)
    assert f"holds {100 * less.kept:.1f} % of what mine.safetensors changes" in told


def test_the_weight_of_a_layer_is_what_it_multiplies_with(comfy: Comfy, mini: Any) -> None:
    ours = comfy.module("denoiser").ComfyDenoiser(mini[0])
    for name, layer in list(ours.layers().items())[:20]:
        assert torch.equal(ours.weight(name), layer.weight.float())
    theirs = denoiser(tiny_unet())
    assert all(torch.equal(theirs.weight(name), layer.weight) for name, layer in theirs.layers().items())
