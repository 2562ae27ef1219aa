"""The loop: it learns, it can be stopped anywhere and resumed to the bit, and it leaves the U-Net as it found it."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sdxl import ABAR, CONTEXT, POOLED, SCALE, denoiser, predict, tiny_unet, train
from torch import Tensor

from mudi_core.bases.network import BadPrecision
from mudi_core.lora.adapter import Adapter, apply_lora
from mudi_core.lora.file import BadLora, LoraState, load_lora, save_lora
from mudi_core.tensor_file import read_tensors, write_tensors
from mudi_core.train.best import BestLora
from mudi_core.train.config import TrainConfig
from mudi_core.train.loop import BadRun, TrainResult
from mudi_core.train.loss import squared_errors
from mudi_core.train.memory import OutOfMemory
from mudi_core.train.pace import Pace
from mudi_core.train.plan import Plan
from mudi_core.train.resume import BadCheckpoint, losses_so_far
from mudi_core.train.run import Interrupted, NonFiniteLoss
from mudi_core.train.step import draw_noise, places_of

ASKED = denoiser(tiny_unet())
"""Whose noise levels are drawn."""
CONFIG = TrainConfig.of(steps=5, batch_size=2, resolution=64, rank=4, learning_rate=1e-3, dco_beta=0.0)


def places(step: int, count: int) -> list[str]:
    """Of the own samples of a step of one batch."""
    return [f"{step}/own/{place}" for place in range(count)]


def plan_for(config: TrainConfig, priors: bool = False, seed: int = 0) -> Plan:
    """Six samples with three captions, as if they had been drawn and encoded."""
    generator = torch.Generator().manual_seed(seed)

    def indices(width: int) -> Tensor:
        return torch.randint(0, 6, (config.samples.steps, width), generator=generator)

    latents = torch.randn(6, 4, 8, 8, generator=generator) / SCALE
    masks = torch.rand(6, 1, 8, 8, generator=generator).round()
    contexts, pools = torch.randn(3, 77, CONTEXT, generator=generator), torch.randn(3, POOLED, generator=generator)

    return Plan(
        latents=tuple(latents),
        masks=tuple(masks),
        names=tuple(f"photo {i}" for i in range(6)),
        time_ids=torch.tensor([[64, 64, 0, 0, 64, 64]] * 6, dtype=torch.float32),
        captions=("a", "b", "c"),
        caption_of=(0, 0, 1, 1, 2, 2),
        conditions=tuple({"context": one, "pooled": pool} for one, pool in zip(contexts, pools, strict=True)),
        steps=indices(config.samples.samples_per_step),
        priors=indices(config.samples.samples_per_step if priors else 0),
        plan_hash=f"hash {seed}",
    )


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_unet()


def same(a: TrainResult, b: TrainResult) -> bool:
    return (
        a.losses == b.losses
        and a.state.keys() == b.state.keys()
        and all(torch.equal(a.state[key], b.state[key]) for key in a.state)
    )


class Stop(Exception):
    """A host's own way to cancel."""


def stop_after(step: int, how: BaseException) -> Any:
    def on_step(done: int, total: int, loss: float) -> None:
        if done == step:
            raise how

    return on_step


def stopped(unet: Any, config: TrainConfig, file: Path, step: int = 3, **more: Any) -> Interrupted:
    with pytest.raises(Interrupted) as caught:
        train(
            unet,
            plan_for(config),
            config,
            on_step=stop_after(step, KeyboardInterrupt()),
            checkpoint=file,
            **more,
        )
    return caught.value


@pytest.mark.parametrize(
    "prediction_type, beta, left", [("epsilon", 0, 0.95), ("v_prediction", 0, 0.95), ("epsilon", 20, 1)]
)
def test_it_learns_what_it_is_shown(unet: Any, prediction_type: str, beta: float, left: float) -> None:
    """On the noise of the training itself the LoRA predicts better than the base."""
    config = CONFIG.but(steps=30, rank=8, learning_rate=1e-2, dco_beta=beta)
    plan = plan_for(config)
    one_sample = replace(plan, steps=torch.zeros_like(plan.steps))
    result = train(unet, one_sample, config, prediction_type=prediction_type)

    def error() -> float:
        total = 0.0
        for step in range(0, 30, 2):
            z0 = torch.stack([plan.latents[0]] * 2) * SCALE
            drawn, t = draw_noise(config, denoiser(unet), [latent.shape for latent in z0], places(step, 2))
            eps = torch.stack(drawn)
            asked = denoiser(unet, prediction_type)
            level = asked.level(t)
            with torch.no_grad():
                prediction = asked.predict(level.noisy(z0, eps), level, [plan.conditions[0]] * 2, plan.time_ids[[0, 0]])
            total += squared_errors(prediction, level.wanted(z0, eps)).mean().item()
        return total

    base = error()
    with apply_lora(unet, result.state):
        assert error() < left * base
    assert sum(result.losses[-10:]) < sum(result.losses[:10])


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"dco_beta": 100.0, "lr_warmup": 5, "min_snr_gamma": 5.0, "noise_offset": 0.05, "background_weight": 0.2},
        {"accumulation": 2, "batch_size": 1, "lr_schedule": "cosine", "kl_weight": 0.5, "save_every": 2},
    ],
)
def test_resumed_training_equals_uninterrupted_training(unet: Any, tmp_path: Path, setting: dict[str, Any]) -> None:
    config = CONFIG.but(**setting)
    whole = train(unet, plan_for(config), config)
    file = tmp_path / "run.safetensors"
    assert stopped(unet, config, file, step=2).checkpoint == file
    torch.manual_seed(99)
    stopped(unet, config, file, step=4, resume=file)
    resumed = train(unet, plan_for(config), config, resume=file)
    assert len(resumed.losses) == config.samples.steps and same(resumed, whole)


def test_the_same_seed_gives_the_same_lora_and_another_seed_another(unet: Any) -> None:
    first, again = (train(unet, plan_for(CONFIG), CONFIG) for _ in range(2))
    assert same(first, again)
    assert not same(first, train(unet, plan_for(CONFIG), CONFIG.but(seed=1)))


def test_ctrl_c_in_the_middle_of_a_step_finishes_the_step(unet: Any, tmp_path: Path) -> None:
    whole = train(unet, plan_for(CONFIG), CONFIG)
    file = tmp_path / "run.safetensors"
    calls = 0

    def press(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    hook = unet.register_forward_pre_hook(press)
    try:
        with pytest.raises(Interrupted, match="after step 3 of 5.*Resume from"):
            train(unet, plan_for(CONFIG), CONFIG, checkpoint=file)
    finally:
        hook.remove()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(train(unet, plan_for(CONFIG), CONFIG, resume=file), whole)


def test_ctrl_c_between_two_steps_starts_no_other(unet: Any) -> None:
    def press(done: int, total: int, loss: float) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 2 of 5"):
        train(unet, plan_for(CONFIG), CONFIG, on_step=press)


def test_a_hosts_own_handler_of_ctrl_c_is_kept(unet: Any) -> None:
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        train(unet, plan_for(CONFIG), CONFIG, on_step=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(pressed) == CONFIG.samples.steps


def test_a_hosts_cancel_passes_through_and_leaves_a_checkpoint(unet: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        train(unet, plan_for(CONFIG), CONFIG, on_step=stop_after(3, Stop()), checkpoint=file)
    resumed = train(unet, plan_for(CONFIG), CONFIG, resume=file)
    assert same(resumed, train(unet, plan_for(CONFIG), CONFIG))


def test_without_a_checkpoint_file_or_a_step_there_is_nothing_to_resume(unet: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="nothing to resume") as caught:
        train(unet, plan_for(CONFIG), CONFIG, on_step=stop_after(1, KeyboardInterrupt()))
    assert caught.value.checkpoint is None
    hook = unet.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        with pytest.raises(Interrupted, match="after step 0"):
            train(unet, plan_for(CONFIG), CONFIG, checkpoint=tmp_path / "run.safetensors")
    finally:
        hook.remove()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_run_is_refused_with_the_reason(unet: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    stopped(unet, CONFIG, file)

    def resume(unet: Any = unet, plan: Plan | None = None, config: TrainConfig = CONFIG, file: Path = file) -> None:
        train(unet, plan or plan_for(CONFIG), config, resume=file)

    with pytest.raises(BadCheckpoint, match="photos, masks, captions or priors are different"):
        resume(plan=plan_for(CONFIG, seed=1))
    with pytest.raises(BadCheckpoint, match="learning_rate was 0.001, is 0.01"):
        resume(config=CONFIG.but(learning_rate=1e-2))
    with pytest.raises(BadCheckpoint, match="base model is different"):
        resume(unet=tiny_unet(seed=1))
    save_lora(tmp_path / "lora.safetensors", train(unet, plan_for(CONFIG), CONFIG).state, {})
    with pytest.raises(BadCheckpoint, match="not a checkpoint"):
        resume(file=tmp_path / "lora.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match="run.safetensors is damaged.*[Ss]tart again"):
        resume()


@pytest.mark.parametrize("end", ["done", "stopped", "cancelled"])
def test_the_unet_is_not_changed(end: str, tmp_path: Path) -> None:
    unet = tiny_unet()
    list(unet.parameters())[3].requires_grad_(False)
    before = copy.deepcopy(unet.state_dict())
    flags = [(id(value), value.requires_grad) for value in unet.parameters()]
    modules = [(name, type(module)) for name, module in unet.named_modules()]
    answer = predict(unet)
    config = CONFIG.but(gradient_checkpointing="full", dco_beta=10.0)
    if end == "done":
        train(unet, plan_for(config), config)
    elif end == "stopped":
        stopped(unet, config, tmp_path / "run.safetensors")
    else:
        with pytest.raises(Stop):
            train(unet, plan_for(config), config, on_step=stop_after(1, Stop()))
    assert [(name, type(module)) for name, module in unet.named_modules()] == modules
    assert [(id(value), value.requires_grad) for value in unet.parameters()] == flags
    assert all(value.grad is None for value in unet.parameters())
    assert not unet.training and not any("forward" in vars(module) for module in unet.modules())
    after = unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(predict(unet), answer)


def test_the_trained_state_is_what_the_file_and_the_unet_get(unet: Any, tmp_path: Path) -> None:
    result = train(unet, plan_for(CONFIG), CONFIG)
    assert {value.dtype for value in result.state.values()} == {torch.float32}
    save_lora(tmp_path / "lora.safetensors", result.state, {})
    base = predict(unet)
    with apply_lora(unet, result.state):
        expected = predict(unet)
    with apply_lora(unet, load_lora(tmp_path / "lora.safetensors")[0]):
        difference = (predict(unet) - expected).abs().max()
    assert (expected - base).abs().max() > 10 * difference and difference < 1e-4


def test_priors_pull_on_the_lora_and_a_weight_of_0_does_not(unet: Any) -> None:
    plan, with_priors = plan_for(CONFIG), replace(plan_for(CONFIG), priors=plan_for(CONFIG, priors=True).priors)
    # Noise is drawn for the whole batch, own samples first within each sample's own numbers, so compare like with like.
    ignored = train(unet, with_priors, CONFIG.but(prior_loss_weight=0.0))
    pulled = train(unet, with_priors, CONFIG.but(prior_loss_weight=1.0))
    other = replace(with_priors, priors=(with_priors.priors + 1) % 6)
    assert same(ignored, train(unet, other, CONFIG.but(prior_loss_weight=0.0)))
    assert not same(ignored, pulled) and pulled.losses[0] > ignored.losses[0]
    assert plan.priors.shape[1] == 0


def test_priors_and_dco_train_together(unet: Any) -> None:
    config = CONFIG.but(dco_beta=100.0, steps=3)
    result = train(unet, plan_for(config, priors=True), config)
    assert result.losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert any(value.abs().max() > 0 for key, value in result.state.items() if "lora_up" in key)


def test_background_weight_reaches_the_loss(unet: Any) -> None:
    plan = replace(plan_for(CONFIG), masks=(torch.zeros(1, 8, 8),) * 6)
    assert train(unet, plan, CONFIG.but(background_weight=0.0)).losses == (0.0,) * CONFIG.samples.steps


def test_warmup_starts_small(unet: Any) -> None:
    def moved(config: TrainConfig) -> float:
        state = train(unet, plan_for(config), config).state
        return max(value.abs().max().item() for key, value in state.items() if "lora_up" in key)

    once = CONFIG.but(steps=1)
    # Adam's first step is as long as the learning rate.
    assert moved(once) == pytest.approx(1e-3, rel=0.01)
    assert moved(once.but(lr_warmup=10)) == pytest.approx(1e-4, rel=0.01)


def up(state: LoraState) -> Tensor:
    return torch.cat([value.flatten() for key, value in state.items() if "lora_up" in key])


def test_accumulation_averages_the_gradients_of_its_batches(unet: Any) -> None:
    """Against AdamW on gradients that are taken batch by batch, as plainly as can be."""
    config = CONFIG.but(steps=2, batch_size=1, accumulation=3, max_grad_norm=0.0)
    plan = plan_for(config)
    stepped = denoiser(unet)
    with Adapter.new(
        stepped, config.learning.rank, config.learning.lora_alpha, config.learning.target_modules
    ) as adapter:
        adapter.start(config.samples.seed)
        optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=config.learning.learning_rate, weight_decay=config.learning.weight_decay
        )
        for step in range(2):
            losses = []
            for part in range(3):
                i = int(plan.steps[step, part])
                (eps,), t = draw_noise(config, stepped, [plan.latents[i].shape], [f"{step}/own/{part}"])
                z0, share = plan.latents[i][None] * SCALE, ABAR[t].reshape(-1, 1, 1, 1)
                read = plan.conditions[plan.caption_of[i]]
                added = {"text_embeds": read["pooled"][None], "time_ids": plan.time_ids[[i]]}
                answer = unet(
                    share.sqrt() * z0 + (1 - share).sqrt() * eps[None],
                    t,
                    encoder_hidden_states=read["context"][None],
                    added_cond_kwargs=added,
                ).sample
                losses.append((answer - eps[None]).square().mean())
            gradients = torch.autograd.grad(torch.stack(losses).mean(), adapter.parameters())
            for parameter, gradient in zip(adapter.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        expected = adapter.state()
    result = train(unet, plan, config)
    assert len(result.losses) == 2 and up(result.state).abs().max() > 0
    torch.testing.assert_close(up(result.state), up(expected), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 50.0])
def test_a_strong_kl_holds_the_lora_at_the_base(unet: Any, beta: float) -> None:
    config = CONFIG.but(steps=15, learning_rate=1e-2, dco_beta=beta)
    base = predict(unet)

    def drift(kl_weight: float) -> float:
        result = train(unet, plan_for(config), config.but(kl_weight=kl_weight))
        with apply_lora(unet, result.state):
            return (predict(unet) - base).abs().max().item()

    assert drift(100.0) < 0.6 * drift(0.0)


def test_samples_of_different_sizes_share_a_batch(unet: Any) -> None:
    """The loss is the mean over samples, whatever their sizes and their order."""
    config = CONFIG.but(steps=1, batch_size=3)
    plan = plan_for(config)
    tall = replace(
        plan,
        latents=(torch.randn(4, 12, 4, generator=torch.Generator().manual_seed(5)), *plan.latents[1:]),
        masks=(torch.ones(1, 12, 4), *plan.masks[1:]),
        steps=torch.tensor([[1, 0, 2]]),
    )
    drawn, t = draw_noise(config, denoiser(unet), [tall.latents[i].shape for i in (1, 0, 2)], places(0, 3))
    expected = []
    for place, i in enumerate((1, 0, 2)):
        share, read = ABAR[t[place]], plan.conditions[plan.caption_of[i]]
        with torch.no_grad():
            answer = unet(
                share.sqrt() * tall.latents[i][None] * SCALE + (1 - share).sqrt() * drawn[place][None],
                t[place],
                encoder_hidden_states=read["context"][None],
                added_cond_kwargs={"text_embeds": read["pooled"][None], "time_ids": plan.time_ids[[i]]},
            ).sample
        expected.append((answer - drawn[place]).square().mean().item())
    result = train(unet, tall, config)
    assert result.losses[0] == pytest.approx(sum(expected) / 3, rel=1e-5) and up(result.state).abs().max() > 0


def test_every_so_often_the_lora_is_given_out_and_the_run_kept(unet: Any, tmp_path: Path) -> None:
    config, file = CONFIG.but(save_every=2), tmp_path / "run.safetensors"
    given: list[tuple[int, LoraState]] = []

    def stepped(done: int, total: int, loss: float) -> None:
        if given:
            kept, state = load_lora(file)[0], given[-1][1]
            assert all(torch.equal(kept[key], value) for key, value in state.items())

    result = train(unet, plan_for(config), config, stepped, checkpoint=file, on_save=lambda *about: given.append(about))
    assert [step for step, _ in given] == [2, 4]
    assert not torch.equal(up(given[0][1]), up(given[1][1])) and not torch.equal(up(given[1][1]), up(result.state))
    # The machine may have been switched off: the last saving goes on to the same end.
    assert same(train(unet, plan_for(config), config, resume=file), result)


def test_a_preview_samples_the_lora_of_its_step_and_disturbs_nothing(unet: Any, tmp_path: Path) -> None:
    config = CONFIG.but(preview_every=2)
    seen: dict[int, Tensor] = {}

    bare = predict(unet)

    def look(step: int, state: LoraState) -> None:
        assert not unet.training and not torch.is_grad_enabled()
        assert torch.equal(predict(unet), bare)
        torch.manual_seed(step)
        with apply_lora(unet, state):
            seen[step] = predict(unet)

    result = train(unet, plan_for(config), config, on_preview=look)
    assert list(seen) == [2, 4, 5] and not torch.equal(seen[2], seen[4])
    assert same(result, train(unet, plan_for(CONFIG), CONFIG))
    train(unet, plan_for(CONFIG), CONFIG, on_preview=lambda *_: pytest.fail("nobody asked"))


def test_ctrl_c_ends_a_preview_at_once(unet: Any, tmp_path: Path) -> None:
    config, file = CONFIG.but(preview_every=2), tmp_path / "run.safetensors"

    def look(step: int, state: LoraState) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the preview goes on")

    with pytest.raises(Interrupted, match="after step 2 of 5.*Resume from"):
        train(unet, plan_for(config), config, checkpoint=file, on_preview=look)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = train(unet, plan_for(config), config, resume=file)
    assert same(resumed, train(unet, plan_for(CONFIG), CONFIG))


@pytest.mark.parametrize("where", ["step", "save", "preview"])
@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_a_stopped_run_misses_no_lora_and_no_preview_of_the_way(
    unet: Any, tmp_path: Path, step: int, where: str
) -> None:
    config, file = CONFIG.but(save_every=2, preview_every=2), tmp_path / "run.safetensors"
    saved: dict[int, Tensor] = {}
    seen: dict[int, Tensor] = {}
    stops = [(where, step)]

    def came(what: str, done: int) -> None:
        if (what, done) in stops:
            stops.clear()
            raise RuntimeError("Cancel")

    def events(into: dict[int, Tensor], what: str) -> Any:
        def event(done: int, state: LoraState) -> None:
            came(what, done)
            assert done not in into or torch.equal(into[done], up(state))
            into[done] = up(state)

        return event

    def run(resume: Path | None) -> Any:
        return train(
            unet, plan_for(config), config, lambda done, *_: came("step", done), resume=resume, checkpoint=file,
            on_save=events(saved, "save"), on_preview=events(seen, "preview"),
        )  # fmt: skip

    wanted = train(unet, plan_for(CONFIG), CONFIG)
    try:
        result = run(None)
    except RuntimeError as error:
        assert str(error) == "Cancel"
        result = run(file)
    assert same(result, wanted) and list(saved) == [2, 4] and list(seen) == [2, 4, 5]
    assert not stops or (where, step) in [("save", 3), ("save", 5), ("preview", 3)]


def test_a_run_that_an_earlier_version_kept_shows_its_last_step_once_more(unet: Any, tmp_path: Path) -> None:
    config, file, seen = CONFIG.but(preview_every=2), tmp_path / "run.safetensors", list[int]()

    def stop(done: int, *_: object) -> None:
        if done == 2:
            raise RuntimeError("Cancel")

    with pytest.raises(RuntimeError, match="Cancel"):
        train(unet, plan_for(config), config, stop, checkpoint=file)
    for shown in (None, "", "much", "-1", "9" * 5000, "2"):
        tensors, about = read_tensors(file)
        about.pop("shown")
        write_tensors(file, tensors, about | ({} if shown is None else {"shown": shown}))
        seen.clear()
        train(unet, plan_for(config), config, resume=file, on_preview=lambda step, _: seen.append(step))
        assert seen == ([4, 5] if shown == "2" else [2, 4, 5])
        about["shown"] = "0"
        write_tensors(file, tensors, about)


def test_a_preview_that_does_not_fit_is_named_and_the_run_kept(unet: Any, tmp_path: Path) -> None:
    config, file = CONFIG.but(preview_every=2), tmp_path / "run.safetensors"

    def look(step: int, state: LoraState) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemory, match="The preview after step 2 did not fit.*Resume from"):
        train(unet, plan_for(config), config, checkpoint=file, on_preview=look)
    assert not unet.training and load_lora(file)[0]


def test_the_best_lora_is_kept_and_a_resumed_run_remembers_it(unet: Any, tmp_path: Path) -> None:
    path, about = tmp_path / "best.safetensors", {"mudi_base": "tiny"}
    state = train(unet, plan_for(CONFIG), CONFIG).state
    other = {key: value if key.endswith("alpha") else 2 * value for key, value in state.items()}
    best = BestLora(path, about)
    assert best.offer(2, state, -0.25) and not best.offer(4, other, -0.25) and not best.offer(5, other, -1.0)
    kept, says = load_lora(path)
    assert all(torch.allclose(kept[key], value, atol=1e-3) for key, value in state.items())
    assert (says["ss_steps"], float(says["mudi_score"]), says["mudi_base"]) == ("2", -0.25, "tiny")
    goes_on = BestLora(path, about, goes_on=True)
    assert (goes_on.step, goes_on.score) == (2, -0.25) and not goes_on.offer(6, other, -0.5)
    assert BestLora(path, about).offer(6, other, -0.5)
    assert BestLora(tmp_path / "none.safetensors", about, goes_on=True).step == 0


@pytest.mark.parametrize("damage", ["a flipped bit", "cut", "no score", "a score that is no number"])
def test_a_damaged_best_lora_is_told_and_another_takes_its_place(
    unet: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "best.safetensors"
    state = train(unet, plan_for(CONFIG), CONFIG).state
    about = {"mudi_score": "much", "ss_steps": "2"} if damage == "a score that is no number" else {}
    save_lora(path, state, about)
    data = bytearray(path.read_bytes())
    if damage == "a flipped bit":
        data[-1] ^= 1
    path.write_bytes(data[:-5] if damage == "cut" else data)
    best = BestLora(path, {}, goes_on=True)
    assert best.step == 0 and "The best LoRA so far cannot be read" in caplog.text
    assert best.offer(4, state, -3.0) and BestLora(path, {}, goes_on=True).score == -3.0


def test_the_pace_counts_this_process_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pace = [100.0], Pace()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    assert pace.words(41, 100, 0.1234) == "loss 0.123"  # a resumed run's first: nothing is known yet
    now[0] += 5.0
    assert pace.words(43, 100, 0.5) == "loss 0.500, 2.50 s a step, 2 min 22 s left"
    now[0] += 9000.0
    assert pace.words(44, 100, 0.5).endswith("s a step, 46 h 41 min left")


def test_a_run_can_start_from_a_lora(unet: Any, tmp_path: Path) -> None:
    first = train(unet, plan_for(CONFIG), CONFIG).state
    with apply_lora(unet, first):
        expected = predict(unet)
    # One step too small to matter shows what the run began with, here with more rank and another alpha.
    still = CONFIG.but(steps=1, learning_rate=1e-12, rank=6, alpha=3.0)
    begun = train(unet, plan_for(still), still, start=first).state
    with apply_lora(unet, begun):
        torch.testing.assert_close(predict(unet), expected, rtol=0, atol=1e-5)
    file = tmp_path / "run.safetensors"
    stopped(unet, CONFIG, file, start=first)
    with pytest.raises(BadCheckpoint, match="LoRA to start from is different"):
        train(unet, plan_for(CONFIG), CONFIG, resume=file)
    whole = train(unet, plan_for(CONFIG), CONFIG, start=first)
    assert same(train(unet, plan_for(CONFIG), CONFIG, start=first, resume=file), whole)
    with pytest.raises(BadLora, match="has rank 4.*here rank 2"):
        train(unet, plan_for(CONFIG), CONFIG.but(rank=2), start=first)
    fewer = {key: value for key, value in first.items() if "mid_block" not in key}
    with pytest.raises(BadLora, match="other layers than this training.*mid_block"):
        train(unet, plan_for(CONFIG), CONFIG, start=fewer)


def test_only_the_modules_asked_for_are_trained(unet: Any) -> None:
    config = CONFIG.but(steps=1, target_modules=("attn2.to_k", "attn2.to_v"))
    state = train(unet, plan_for(config), config).state
    assert len(state) == 3 * 8 and all("attn2_to_k" in key or "attn2_to_v" in key for key in state)


def test_bf16_stays_near_fp32_and_trains_a_bf16_unet(unet: Any) -> None:
    config = CONFIG.but(steps=3)
    exact = train(unet, plan_for(config), config)
    rough = train(unet, plan_for(config), config.but(precision="bf16"))
    assert rough.losses != exact.losses and rough.losses == pytest.approx(exact.losses, rel=0.05)
    half = copy.deepcopy(unet).to(torch.bfloat16)
    result = train(half, plan_for(config), config.but(precision="bf16"))
    assert result.losses == pytest.approx(exact.losses, rel=0.05)
    assert {value.dtype for value in result.state.values()} == {torch.float32}


@pytest.mark.parametrize("dtype, precision", [(torch.bfloat16, "fp32"), (torch.float16, "bf16")])
def test_a_unet_that_the_precision_cannot_train_is_refused(dtype: torch.dtype, precision: Any) -> None:
    with pytest.raises(BadPrecision, match=str(dtype).removeprefix("torch.")):
        train(tiny_unet().to(dtype), plan_for(CONFIG), CONFIG.but(precision=precision))


def test_a_plan_of_another_length_is_refused(unet: Any) -> None:
    with pytest.raises(BadRun, match="5 steps of 2 samples.*7 of 2"):
        train(unet, plan_for(CONFIG), CONFIG.but(steps=7))


def test_a_loss_that_is_no_number_stops_the_run(unet: Any, tmp_path: Path) -> None:
    plan = plan_for(CONFIG)
    plan = replace(plan, steps=torch.tensor([[0, 1], [1, 0], [0, 3], [1, 2], [0, 1]]))
    plan.latents[3].fill_(float("nan"))
    file = tmp_path / "run.safetensors"
    with pytest.raises(NonFiniteLoss, match=r"nan at step 3, with photo 3\. Lower.*2 steps before is kept in.*run\."):
        train(unet, plan, CONFIG, checkpoint=file)
    two = CONFIG.but(steps=2)
    expected = train(unet, replace(plan, steps=plan.steps[:2], priors=plan.priors[:2]), two)
    kept, _ = load_lora(file)
    assert all(torch.equal(kept[key], value) for key, value in expected.state.items())


@pytest.mark.parametrize(
    "every, at, stops, said",
    [
        (1, 3, None, "LoRA became NaN or infinite at step 3. Lower the learning rate"),
        (2, 3, None, "nan at step 4, with photo"),
        (1, 3, RuntimeError("Cancel"), "Cancel"),
    ],
)
def test_a_lora_that_is_no_number_replaces_no_checkpoint(
    unet: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    at: int,
    stops: Exception | None,
    said: str,
) -> None:
    file, adapters, new = tmp_path / "run.safetensors", list[Adapter](), Adapter.new
    monkeypatch.setattr(Adapter, "new", lambda *about: adapters.append(new(*about)) or adapters[-1])
    config, given = CONFIG.but(save_every=every), list[int]()

    def spoil(step: int, *_: object) -> None:
        if step == at:  # what an overflow in this step's update would leave
            adapters[-1].matrices()[0].data.fill_(float("nan"))
            if stops is not None:
                raise stops

    with pytest.raises(type(stops) if stops else NonFiniteLoss, match=said):
        train(unet, plan_for(config), config, spoil, checkpoint=file, on_save=lambda step, _: given.append(step))
    assert len(losses_so_far(file)) == given[-1] == 2
    assert all(value.isfinite().all() for value in load_lora(file)[0].values())


def test_too_little_memory_names_the_settings_and_keeps_the_steps_done(unet: Any, tmp_path: Path) -> None:
    calls = 0

    def fill(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = unet.register_forward_pre_hook(fill)
    try:
        with pytest.raises(OutOfMemory, match="Step 3 did not fit.*batch 2.*memory preset of 24 GB.*Resume from"):
            train(unet, plan_for(CONFIG), CONFIG, checkpoint=tmp_path / "run.safetensors")
    finally:
        hook.remove()
    assert len(train(unet, plan_for(CONFIG), CONFIG, resume=tmp_path / "run.safetensors").losses) == 5


def test_a_run_that_did_not_fit_goes_on_with_less_memory(unet: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        train(unet, plan_for(CONFIG), CONFIG, on_step=stop_after(3, Stop()), checkpoint=file)
    less = CONFIG.but(batch_size=1, accumulation=2, gradient_checkpointing="full", save_every=1, preview_every=1)
    resumed = train(unet, plan_for(less), less, resume=file)
    whole = train(unet, plan_for(CONFIG), CONFIG)
    assert resumed.losses[:3] == whole.losses[:3] and len(resumed.losses) == 5
    with pytest.raises(BadCheckpoint, match="images of a step .* was 2, is 1"):
        one = CONFIG.but(batch_size=1)
        train(unet, plan_for(one), one, resume=file)


def test_it_trains_inside_inference_mode(unet: Any) -> None:
    expected = train(unet, plan_for(CONFIG), CONFIG)
    with torch.inference_mode():
        plan = plan_for(CONFIG)
        assert plan.latents[0].is_inference()
        assert same(train(unet, plan, CONFIG), expected)


def test_a_run_of_an_earlier_version_is_not_gone_on_with(unet: Any, tmp_path: Path) -> None:
    """Its noise was drawn in another way, so it would not end where it was going."""
    file = tmp_path / "stopped.safetensors"
    stopped(unet, CONFIG, file)
    tensors, metadata = read_tensors(file)
    write_tensors(file, tensors, {**metadata, "format": "mudi checkpoint 2"})
    with pytest.raises(BadCheckpoint, match="earlier version.*start again"):
        train(unet, plan_for(CONFIG), CONFIG, resume=file)


@pytest.mark.parametrize("beta", [0.0, 20.0])
@pytest.mark.parametrize("with_priors", [False, True])
def test_two_batches_of_one_train_what_one_batch_of_two_trains(unet: Any, beta: float, with_priors: bool) -> None:
    """DCO has a gate for each sample, and noise hangs on a sample's place in its step."""
    two = CONFIG.but(dco_beta=beta, batch_size=2, accumulation=1, max_grad_norm=0.0)
    one = two.but(batch_size=1, accumulation=2)
    plan = plan_for(two, priors=with_priors)
    first, second = train(unet, plan, two), train(unet, plan, one)
    assert first.losses == pytest.approx(second.losses, rel=1e-5)
    for name, value in first.state.items():
        torch.testing.assert_close(second.state[name], value, rtol=1e-3, atol=1e-6)


def test_noise_hangs_on_seed_and_step_alone() -> None:
    def draw(config: TrainConfig, number: int) -> tuple[Tensor, Tensor]:
        eps, t = draw_noise(config, ASKED, [torch.Size((4, 8, 8))] * 2, places(number, 2))
        return torch.stack(eps), t

    torch.manual_seed(1)
    first = draw(CONFIG, 5)
    torch.manual_seed(2)
    again = draw(CONFIG, 5)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], draw(CONFIG, 6)[0])
    assert not torch.equal(first[0], draw(CONFIG.but(seed=1), 5)[0])


def test_own_samples_and_priors_of_a_step_have_noise_of_their_own() -> None:
    shapes = [torch.Size((4, 8, 8))] * 4
    eps, _ = draw_noise(CONFIG, ASKED, shapes, places_of(plan_for(CONFIG, priors=True), CONFIG, 3))
    assert all(not torch.equal(a, b) for a, b in combinations(eps, 2))


def test_timesteps_are_uniform_and_noise_is_normal() -> None:
    drawn = [draw_noise(CONFIG, ASKED, [torch.Size((4, 8, 8))] * 4, places(step, 4)) for step in range(500)]
    eps, t = torch.cat([torch.stack(eps) for eps, _ in drawn]), torch.cat([t for _, t in drawn])
    assert 0 <= t.min() < 20 and 980 < t.max() <= 999 and t.float().mean().item() == pytest.approx(499.5, abs=25)
    assert eps.mean().abs() < 0.01 and eps.std().item() == pytest.approx(1, abs=0.01)


def test_noise_offset_moves_whole_channels() -> None:
    eps, _ = draw_noise(CONFIG.but(noise_offset=0.5), ASKED, [torch.Size((4, 8, 8))] * 200, places(0, 200))
    assert torch.stack(eps).mean(dim=(2, 3)).std().item() == pytest.approx((0.25 + 1 / 64) ** 0.5, rel=0.1)
