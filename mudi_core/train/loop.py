"""The training itself: U-Net steps over a plan, and nothing else."""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..types import MudiError
from .config import TrainConfig
from .lora import Adapter, LoraState
from .loss import NoiseSchedule, mask_weight, min_snr_weight, noisy, target, training_loss
from .plan import Plan
from .resume import fingerprint, restore_run, save_run

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, float], None]
"""``(steps done, steps in all, loss of this step)``; an exception from it ends the run, which can be resumed."""


class BadRun(MudiError):
    """A plan, a configuration and a U-Net that do not fit together."""


class NonFiniteLoss(MudiError):
    """The loss became NaN or infinite."""


class OutOfMemory(MudiError):
    """A step needs more memory than there is."""


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


def train(
    unet: Any,
    plan: Plan,
    config: TrainConfig,
    noise_schedule: NoiseSchedule,
    on_step: OnStep | None = None,
    resume: Path | None = None,
    checkpoint: Path | None = None,
) -> TrainResult:
    """Trains a LoRA on a diffusers U-Net of the SDXL kind, on the device where the U-Net is.

    The U-Net is as before when this returns or raises: weights, modes and gradients. Noise and timesteps hang on the
    seed and the step alone, so a run that was stopped and resumed ends with the same bits. ``resume``: a checkpoint to
    go on from; ``checkpoint``: where to leave one when the run is stopped before its end.

    Raises `Interrupted` at Ctrl-C (within one step), `NonFiniteLoss`, `OutOfMemory`, `BadRun`, `resume.BadCheckpoint`.
    """
    _check_run(unet, plan, config)
    origin = {"plan": plan.plan_hash, "unet": fingerprint(unet), "config": config.to_json()}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _training_mode(unet, config),
        Adapter(unet, config.rank, config.lora_alpha, config.target_modules) as adapter,
        _ctrl_c_waits_for_the_step() as asked_to_stop,
    ):
        adapter.start(config.seed)
        optimizer = torch.optim.AdamW(
            adapter.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        losses = restore_run(resume, origin, adapter.parameters(), optimizer) if resume is not None else []
        try:
            for step in range(len(losses), config.steps):
                losses.append(_step(unet, plan, config, noise_schedule, adapter, optimizer, step))
                if on_step is not None:
                    on_step(step + 1, config.steps, losses[-1])
                if asked_to_stop() and step + 1 < config.steps:
                    raise KeyboardInterrupt
        except NonFiniteLoss:
            raise
        except BaseException as error:
            # Also a host's own cancel exception and a full memory leave a file to go on from.
            saved = checkpoint if losses else None
            if saved is not None:
                save_run(saved, origin, adapter.parameters(), optimizer, losses)
            hint = f"Resume from {saved}." if saved is not None else "There is nothing to resume from."
            if isinstance(error, KeyboardInterrupt):
                message = f"Training was stopped after step {len(losses)} of {config.steps}. {hint}"
                raise Interrupted(message, saved) from error
            if _is_out_of_memory(error):
                raise OutOfMemory(
                    f"Step {len(losses) + 1} did not fit into memory ({config.size[0]}x{config.size[1]} px, batch "
                    f"{config.batch_size}, {config.precision}). Use gradient checkpointing, bf16, a smaller resolution "
                    f"or batch size 1. {hint}"
                ) from error
            raise
        return TrainResult(tuple(losses), adapter.state())


def _step(
    unet: Any,
    plan: Plan,
    config: TrainConfig,
    schedule: NoiseSchedule,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> float:
    """One optimizer step; gives its loss."""
    device, dtype = _device(unet), plan.latents.dtype
    chosen = torch.cat([plan.steps[step], plan.priors[step]])
    z0 = (plan.latents[chosen] * schedule.latent_scale).to(device)
    eps, timesteps = draw_noise(config, z0.shape, schedule.timesteps, step)
    eps = eps.to(device, dtype)
    abar = schedule.alphas_cumprod[timesteps].to(device, dtype).reshape(-1, 1, 1, 1)
    texts = plan.caption_of[chosen]
    weight = mask_weight(plan.masks[chosen].to(device), config.background_weight) * min_snr_weight(
        abar, config.min_snr_gamma, schedule.prediction_type
    )
    inputs = {
        "sample": noisy(z0, eps, abar),
        "timestep": timesteps.to(device),
        "encoder_hidden_states": plan.contexts[texts].to(device),
        "added_cond_kwargs": {
            "text_embeds": plan.pooled[texts].to(device),
            "time_ids": plan.time_ids[chosen].to(device),
        },
    }

    optimizer.param_groups[0]["lr"] = config.learning_rate * min(1.0, (step + 1) / max(1, config.lr_warmup))
    optimizer.zero_grad(set_to_none=True)
    reference = None
    if config.dco_beta > 0:
        with torch.no_grad(), adapter.off():
            reference = _predict(unet, config, inputs)
    loss = training_loss(
        _predict(unet, config, inputs),
        target(z0, eps, abar, schedule.prediction_type),
        weight,
        priors=plan.priors.shape[1],
        prior_weight=config.prior_loss_weight,
        reference=reference,
        dco_beta=config.dco_beta,
    )
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteLoss(
            f"The loss became {value} at step {step + 1}. Lower the learning rate (it is {config.learning_rate:g}), or "
            "check that the base model makes sound pictures in this precision."
        )
    loss.backward()  # type: ignore[no-untyped-call]
    if config.max_grad_norm > 0:
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), config.max_grad_norm)
    optimizer.step()
    return value


def draw_noise(config: TrainConfig, shape: torch.Size, timesteps: int, step: int) -> tuple[Tensor, Tensor]:
    """Noise of ``shape`` and timesteps ``[b]`` of one step, on the CPU, from the seed and the step alone."""
    digest = hashlib.sha256(f"{config.seed}/noise/{step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    eps = torch.randn(shape, generator=generator)
    t = torch.randint(0, timesteps, shape[:1], generator=generator)
    if config.noise_offset > 0:
        eps = eps + config.noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
    return eps, t


def _device(unet: Any) -> torch.device:
    device: torch.device = next(unet.parameters()).device
    return device


def _predict(unet: Any, config: TrainConfig, inputs: dict[str, Any]) -> Tensor:
    with torch.autocast(_device(unet).type, torch.bfloat16, enabled=config.precision == "bf16"):
        prediction: Tensor = unet(**inputs).sample
    return prediction


def _check_run(unet: Any, plan: Plan, config: TrainConfig) -> None:
    if tuple(plan.steps.shape) != (config.steps, config.batch_size):
        raise BadRun(
            f"The plan has {plan.steps.shape[0]} steps of {plan.steps.shape[1]} samples, the configuration "
            f"{config.steps} of {config.batch_size}. Make the plan with the configuration that trains."
        )
    dtypes = {parameter.dtype for parameter in unet.parameters()}
    allowed = {torch.float32} if config.precision == "fp32" else {torch.float32, torch.bfloat16}
    if not dtypes <= allowed:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise BadRun(
            f"The U-Net's weights are {found}, which precision '{config.precision}' cannot train. Load it in "
            "float32, or in bfloat16 with precision 'bf16'."
        )


@contextmanager
def _training_mode(unet: Any, config: TrainConfig) -> Iterator[None]:
    was_training, was_checkpointing = unet.training, unet.is_gradient_checkpointing
    unet.train()
    if config.gradient_checkpointing and not was_checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.train(was_training)
        if config.gradient_checkpointing and not was_checkpointing:
            unet.disable_gradient_checkpointing()


@contextmanager
def _ctrl_c_waits_for_the_step() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted and answered after the step: an optimizer update cut in half could not be resumed.

    Only Python's own handler is replaced, and only in the main thread, where Ctrl-C arrives; a host keeps its own.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield asked.is_set
        return

    def note(*_: object) -> None:
        log.warning("Stopping after this step.")
        asked.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU it is a plain RuntimeError that only its text gives away.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
