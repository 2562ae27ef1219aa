"""The training itself: U-Net steps over a plan, and nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases.quantize import stored_as
from ..bases.tokens import TokenVectors
from ..lora.adapter import Adapter
from ..lora.file import LoraState
from ..types import MudiError
from .config import TrainConfig
from .ctrl_c import ctrl_c_answers, ctrl_c_waits
from .loss import NoiseSchedule
from .memory import OutOfMemory, advice, preflight
from .optimizer import make_optimizer, set_learning_rate
from .plan import Plan
from .recompute import checkpointing
from .resume import origin_of, restore_run, save_run
from .step import batch_loss, batch_of
from .team import Team

__all__ = ["BadRun", "Interrupted", "NonFiniteLoss", "OutOfMemory", "TrainResult", "train"]

KEPT_EVERY = 300.0
"""Seconds of work that a power cut may cost."""

OnStep = Callable[[int, int, float], None]
"""``(steps done, steps in all, loss of this step)``; an exception from it ends the run, which can be resumed."""


OnSave = Callable[[int, LoraState], None]
"""``(steps done, the LoRA so far)``."""
OnPreview = Callable[[int, LoraState], None]
"""The same; the U-Net wears the LoRA, and may be sampled with: it is not in training mode, nor are there gradients."""


class BadRun(MudiError):
    """A plan, a configuration and a U-Net that do not fit together."""


class NonFiniteLoss(MudiError):
    """The loss became NaN or infinite."""


class Interrupted(MudiError):
    """Ctrl-C. ``checkpoint`` is the file to resume from, or None when none was asked for or no step was done."""

    def __init__(self, message: str, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained LoRA."""

    losses: tuple[float, ...]
    """One per step. A step's loss says little alone, since its timesteps are random: look at means of many."""
    state: LoraState
    """Float32, on the CPU, by kohya name: ready for `lora.save_lora` and `lora.apply_lora`."""
    vectors: dict[str, Tensor]
    """Of the tokens, if they were learned: `tokens.TokenVectors.state`."""


def train(
    unet: Any,
    plan: Plan,
    config: TrainConfig,
    noise_schedule: NoiseSchedule,
    on_step: OnStep | None = None,
    resume: Path | None = None,
    checkpoint: Path | None = None,
    *,
    start: Mapping[str, Tensor] | None = None,
    vectors: TokenVectors | None = None,
    on_save: OnSave | None = None,
    on_preview: OnPreview | None = None,
    team: Team | None = None,
) -> TrainResult:
    """Trains a LoRA on a diffusers U-Net of Stable Diffusion's kinds, on the device where the U-Net is.

    The U-Net is as before when this returns or raises: weights, modes and gradients. Noise and timesteps hang on the
    seed and the step alone, so a run that was stopped and resumed ends with the same bits.

    ``resume``: a checkpoint to go on from; ``checkpoint``: where to leave one when the run ends early, every
    `KEPT_EVERY` seconds, and every ``config.save_every`` steps, when ``on_save`` gets the LoRA so far too.
    ``on_preview`` gets it every ``config.preview_every`` steps and after the last. ``start``: a LoRA to begin with
    instead of one that does nothing.
    ``vectors``: those of the subjects' tokens, where the settings say ``learn_tokens``.
    ``team``: the processes that share the batches of a step; each calls this with the same arguments, all get the same
    result, and the first alone writes.

    Raises `Interrupted` at Ctrl-C (within one step, at once in a preview), `NonFiniteLoss`, `OutOfMemory`, `BadRun`,
    `resume.BadCheckpoint`, `optimizer.MissingOptimizer`, `team.BrokenTeam`.
    """
    team = team or Team()
    _check_run(unet, plan, config, team)
    if config.learn_tokens != (vectors is not None):
        raise BadRun("Token vectors are given to a run exactly when its settings say learn_tokens.")
    origin = origin_of(plan, unet, start, config)
    team.agree(json.dumps(origin) + config.to_json(), "photos, settings or base models")
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _training_mode(unet),
        Adapter(unet, config.rank, config.lora_alpha, config.target_modules, vectors) as adapter,
        ctrl_c_waits() as asked_to_stop,
        ExitStack() as stack,
    ):
        adapter.start(config.seed, start)
        config = preflight(unet, adapter, plan, config, noise_schedule)
        stack.enter_context(checkpointing(unet, config.gradient_checkpointing))
        optimizer = make_optimizer(config, adapter.matrices(), vectors.parameters() if vectors is not None else ())
        losses = [] if resume is None else restore_run(resume, origin, adapter, optimizer)

        def save() -> Path | None:
            if checkpoint is None or not losses or not team.leads:
                return checkpoint if losses else None
            save_run(checkpoint, origin, adapter, optimizer, losses)
            return checkpoint

        doing, kept_at = "", time.monotonic()
        try:
            for step in range(len(losses), config.steps):
                doing = f"Step {step + 1}"
                loss, stop = _step(unet, plan, config, noise_schedule, adapter, optimizer, team, asked_to_stop, step)
                losses.append(loss)
                if on_step is not None:
                    on_step(step + 1, config.steps, loss)
                if (stop or (team.size == 1 and asked_to_stop())) and step + 1 < config.steps:
                    raise KeyboardInterrupt
                saves = bool(config.save_every) and (step + 1) % config.save_every == 0
                if step + 1 < config.steps and (saves or time.monotonic() - kept_at > KEPT_EVERY):
                    save()
                    kept_at = time.monotonic()
                    if saves and on_save is not None:
                        on_save(step + 1, adapter.state())
                if on_preview is not None and _is_previewed(step + 1, config):
                    doing = f"The preview after step {step + 1}"
                    with _sampling_mode(unet), ctrl_c_answers() if team.size == 1 else nullcontext():
                        on_preview(step + 1, adapter.state())
        except BaseException as error:
            # Also a host's own cancel exception and a full memory leave a file to go on from.
            if isinstance(error, NonFiniteLoss):
                sound = all(parameter.isfinite().all() for parameter in adapter.parameters())
                kept = save() if sound else None
                if kept is not None:
                    raise NonFiniteLoss(
                        f"{error} The LoRA of the {len(losses)} steps before is kept in {kept}."
                    ) from error
                raise
            saved = save()
            hint = f"Resume from {saved}." if saved is not None else "There is nothing to resume from."
            if isinstance(error, KeyboardInterrupt):
                message = f"Training was stopped after step {len(losses)} of {config.steps}. {hint}"
                raise Interrupted(message, saved) from error
            if _is_out_of_memory(error):
                raise OutOfMemory(
                    f"{doing} did not fit into memory ({config.size[0]}x{config.size[1]} px, batch "
                    f"{config.batch_size}, {config.precision}). {advice(config)} {hint}"
                ) from error
            raise
        return TrainResult(tuple(losses), adapter.state(), vectors.state() if vectors is not None else {})


def _step(
    unet: Any,
    plan: Plan,
    config: TrainConfig,
    schedule: NoiseSchedule,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    team: Team,
    asked_to_stop: Callable[[], bool],
    step: int,
) -> tuple[float, bool]:
    """One optimizer step; gives its loss, and whether any process was asked to stop."""
    set_learning_rate(optimizer, config, step)
    optimizer.zero_grad(set_to_none=True)
    losses = torch.zeros(config.accumulation, dtype=torch.float64)
    strange = torch.zeros(len(plan.latents), dtype=torch.float64)
    for part in team.share(config.accumulation):
        number = step * config.accumulation + part
        loss, errors = batch_loss(unet, adapter, plan, config, schedule, number)
        losses[part] = loss.item()
        if not losses[part].isfinite():
            samples = torch.tensor(batch_of(plan, config, number))
            strange[samples[~errors.isfinite().cpu()]] += 1
            break  # its gradient would be none either
        (loss / config.accumulation).backward()  # type: ignore[no-untyped-call]
    stop = torch.tensor([float(asked_to_stop())], dtype=torch.float64)
    team.add_up([losses, strange, stop])
    if not losses.isfinite().all():
        names = list(dict.fromkeys(plan.names[i] for i in strange.nonzero().flatten().tolist()))
        raise NonFiniteLoss(
            f"The loss became {losses.sum().item()} at step {step + 1}"
            + (f", with {', '.join(names)}" if names else "")
            + f". Lower the learning rate (it is {config.learning_rate:g}), or check that the base model makes sound "
            "pictures in this precision."
        )
    parameters = adapter.parameters()
    team.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])
    if config.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    optimizer.step()
    return losses.mean().item(), bool(stop.item())


def _check_run(unet: Any, plan: Plan, config: TrainConfig, team: Team) -> None:
    if tuple(plan.steps.shape) != (config.steps, config.samples_per_step):
        raise BadRun(
            f"The plan has {plan.steps.shape[0]} steps of {plan.steps.shape[1]} samples, the configuration "
            f"{config.steps} of {config.samples_per_step}. Make the plan with the configuration that trains."
        )
    if config.accumulation % team.size:
        raise BadRun(
            f"{team.size} processes cannot share {config.accumulation} batches of a step evenly. Set accumulation to a "
            f"multiple of {team.size}."
        )
    if stored_as(unet) != config.base_weights:
        raise BadRun(
            f"The U-Net's weights are kept as '{stored_as(unet)}', the settings say '{config.base_weights}'. Give the "
            "U-Net to quantize() first."
        )
    dtypes = {parameter.dtype for parameter in unet.parameters() if parameter.is_floating_point()}
    allowed = {torch.float32} if config.precision == "fp32" else {torch.float32, torch.bfloat16}
    if not dtypes <= allowed:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise BadRun(
            f"The U-Net's weights are {found}, which precision '{config.precision}' cannot train. Load it in "
            "float32, or in bfloat16 with precision 'bf16'."
        )


@contextmanager
def _training_mode(unet: Any) -> Iterator[None]:
    was_training = unet.training
    unet.train()
    try:
        yield
    finally:
        unet.train(was_training)


def _is_previewed(steps: int, config: TrainConfig) -> bool:
    return bool(config.preview_every) and (steps % config.preview_every == 0 or steps == config.steps)


@contextmanager
def _sampling_mode(unet: Any) -> Iterator[None]:
    unet.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        unet.train()


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU it is a plain RuntimeError that only its text gives away.
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
