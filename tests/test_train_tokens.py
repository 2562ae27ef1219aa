"""Token vectors: they alone are learned, through frozen text encoders, and ComfyUI reads the files as embeddings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from test_train_loop import Stop, stop_after

from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.bases.tokens import ENCODERS, BadTokens, load_token, save_token
from mudi_core.lora.adapter import apply_lora
from mudi_core.lora.file import save_lora
from mudi_core.train.config import TrainConfig
from mudi_core.train.loop import BadRun, Beginning, TrainResult, train
from mudi_core.train.parts import BadTrainConfig
from mudi_core.train.plan import Plan, make_plan
from mudi_core.train.run import Events
from mudi_core.types import SubjectSet

TOKENS = ("olis", "hta")
PROMPT, OTHER = "a photo of olis cat and hta cat", "a photo of a cat in the snow"
CONFIG = TrainConfig.of(
    method="dreambooth", steps=4, batch_size=2, resolution=64, rank=2, crops_per_photo=1, learning_rate=1e-3,
    dco_beta=0.0, target_modules=(), learn_tokens=True,
)  # fmt: skip
"""Textual Inversion."""
CUSTOM_DIFFUSION = CONFIG.but(target_modules=("attn2.to_k", "attn2.to_v"))


@pytest.fixture
def checkpoint(random_mini: None) -> Checkpoint:
    return open_checkpoint("mini")


@pytest.fixture
def plan(checkpoint: Checkpoint, drawn_subjects: SubjectSet) -> Plan:
    return make_plan(drawn_subjects, CONFIG.samples, checkpoint.encode_image, checkpoint.condition)


def run(base: Checkpoint, plan: Plan, config: TrainConfig = CONFIG, **more: Any) -> TrainResult:
    with base.token_vectors(TOKENS) as vectors:
        begin, events = Beginning(vectors=vectors, stopped=more.pop("resume", None)), Events(more.pop("on_step", None))
        return train(base.denoiser(), plan, config, events, begin=begin, **more)


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    models = (checkpoint.unet, *checkpoint._encoders().text_encoders)
    return {f"{i}.{name}": p.detach().clone() for i, model in enumerate(models) for name, p in model.named_parameters()}


def test_vectors_begin_as_the_encoders_own_and_change_their_token_alone(checkpoint: Checkpoint) -> None:
    before = checkpoint.encode_text([PROMPT, OTHER])
    with checkpoint.token_vectors(TOKENS) as vectors:
        own = checkpoint.encode_text([PROMPT, OTHER])
        assert all(torch.equal(a, b) for a, b in zip(before, own, strict=True))
        vectors.load({name: rows + 1 for name, rows in vectors.state().items()})
        changed = checkpoint.encode_text([PROMPT, OTHER])
        assert not torch.allclose(changed[0][0], own[0][0]) and not torch.allclose(changed[1][0], own[1][0])
        assert torch.equal(changed[0][1], own[0][1]) and torch.equal(changed[1][1], own[1][1])
        # CLIP reads from left to right: what stands before the first of them has not seen it.
        assert torch.equal(changed[0][0, :4], own[0][0, :4]) and not torch.equal(changed[0][0, 4], own[0][0, 4])
        vectors.start()
        assert torch.equal(checkpoint.encode_text([PROMPT])[0][0], own[0][0])
        vectors.load({name: rows + 1 for name, rows in vectors.state().items()})
    assert torch.equal(checkpoint.encode_text([PROMPT])[0][0], before[0][0])


def test_textual_inversion_learns_nothing_but_the_vectors(checkpoint: Checkpoint, plan: Plan) -> None:
    before = weights(checkpoint)
    with checkpoint.token_vectors(TOKENS) as vectors:
        first = vectors.state()
    result = run(checkpoint, plan)
    assert result.state == {} and tuple(result.vectors) == ENCODERS
    assert [rows.shape for rows in result.vectors.values()] == [(2, 96), (2, 160)]
    for name, rows in result.vectors.items():
        moved = (rows - first[name]).abs()
        assert (moved > 0).any(
            dim=1
        ).all() and moved.max() <= 1.01 * CONFIG.samples.steps * CONFIG.learning.token_learning_rate
    after = weights(checkpoint)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_it_lowers_the_loss(checkpoint: Checkpoint, plan: Plan) -> None:
    """The same steps again, from what they had led to: noise and timesteps are the same."""
    config = CONFIG.but(steps=30, token_learning_rate=0.02)
    steps = plan.steps.repeat(8, 1)[:30]
    plan = replace(plan, steps=steps, priors=plan.priors.repeat(8, 1)[:30])
    rest = config.but(token_learning_rate=1e-12)
    assert sum(run(checkpoint, plan, config).losses[-10:]) < sum(run(checkpoint, plan, rest).losses[-10:])


def test_custom_diffusion_learns_keys_and_values_and_vectors(checkpoint: Checkpoint, plan: Plan) -> None:
    result = run(checkpoint, plan, CUSTOM_DIFFUSION)
    layers = {key.rsplit(".", 2)[0] for key in result.state if key.endswith("lora_up.weight")}
    assert layers and all("attn2_to_k" in layer or "attn2_to_v" in layer for layer in layers)
    assert all(result.state[f"{layer}.lora_up.weight"].any() for layer in layers) and result.vectors
    with apply_lora(checkpoint.unet, result.state) as adapter:
        assert len(adapter.matrices()) == 2 * len(layers)


@pytest.mark.parametrize("config", [CONFIG, CUSTOM_DIFFUSION])
def test_a_run_goes_on_to_the_bit(config: TrainConfig, checkpoint: Checkpoint, plan: Plan, tmp_path: Path) -> None:
    whole, file = run(checkpoint, plan, config), tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        run(checkpoint, plan, config, checkpoint=file, on_step=stop_after(2, Stop()))
    again = run(checkpoint, plan, config, resume=file)
    assert again.losses == whole.losses
    for ours, theirs in ((again.vectors, whole.vectors), (again.state, whole.state)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_reference_of_dco_is_the_model_with_its_own_vectors(checkpoint: Checkpoint, plan: Plan) -> None:
    losses = run(checkpoint, plan, CONFIG.but(dco_beta=1000.0, token_learning_rate=0.1)).losses
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[1] != pytest.approx(math.log(2), abs=1e-4)


def test_what_cannot_be_learned_is_told(checkpoint: Checkpoint, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(BadTokens, match="read 'myowndog' as 3 tokens"):
        checkpoint.token_vectors(("olis", "myowndog"))
    with pytest.raises(BadRun, match="learn_tokens"):
        train(checkpoint.denoiser(), plan, CONFIG)
    with pytest.raises(BadRun, match="learn_tokens"):
        run(checkpoint, plan, CUSTOM_DIFFUSION.but(learn_tokens=False))
    with pytest.raises(BadTrainConfig, match="target_modules"):
        CONFIG.but(learn_tokens=False)
    with pytest.raises(BadTrainConfig, match="token_learning_rate"):
        CONFIG.but(token_learning_rate=0)
    lora = tmp_path / "lora.safetensors"
    save_lora(lora, run(checkpoint, plan, CUSTOM_DIFFUSION).state, {})
    with pytest.raises(BadTokens, match="lora.safetensors is not one token's embedding: it holds lora_unet"):
        load_token(lora)


def test_comfyui_reads_the_files_as_embeddings(comfy: Comfy, random_mini: None) -> None:
    checkpoint = open_checkpoint("mini")
    folder = comfy.base / "models" / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    _, clip, _ = comfy.run("MudiMiniCheckpoint").result
    with checkpoint.token_vectors(TOKENS) as vectors:
        vectors.load({name: torch.randn_like(rows) for name, rows in vectors.state().items()})
        for i, token in enumerate(TOKENS):
            state = {name: rows[i : i + 1] for name, rows in vectors.state().items()}
            save_token(folder / f"mine_{token}.safetensors", state, {"mudi_tokens": token})
            read = load_token(folder / f"mine_{token}.safetensors")
            assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
        context, pooled = (value.detach() for value in checkpoint.encode_text([PROMPT]))
    ((found, about),) = comfy.run_stock(
        "CLIPTextEncode", clip=clip, text="a photo of embedding:mine_olis cat and embedding:mine_hta cat"
    )[0]
    assert torch.allclose(found, context, atol=1e-4) and torch.allclose(about["pooled_output"], pooled, atol=1e-4)
    plain, _ = comfy.run_stock("CLIPTextEncode", clip=clip, text=PROMPT)[0][0]
    assert not torch.allclose(plain, context, atol=1e-2)
