"""A training in progress: its steps, what is due after each, and what is saved when it ends early."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..lora.file import LoraState
from ..types import MudiError
from .ctrl_c import ctrl_c_answers
from .memory import OutOfMemory, advice
from .optimizer import set_learning_rate
from .recompute import checkpointing
from .resume import save_run
from .step import Trainee, batch_loss, batch_of, layers_left_out
from .team import Team

log = logging.getLogger(__name__)


KEPT_EVERY = 300.0
"""Seconds between two saves, so at most this much work is lost in a power cut."""


OnStep = Callable[[int, int, float], None]
"""``(steps done, steps in all, loss of this step)``; an exception from it ends the run, which can be resumed."""


OnSave = Callable[[int, LoraState], None]
"""``(steps done, the LoRA so far)``."""


OnPreview = Callable[[int, LoraState], None]
"""The same; meanwhile the network is as before the training, without the LoRA and without gradients."""


class NonFiniteLoss(MudiError):
    """The loss became NaN or infinite."""


class Interrupted(MudiError):
    """Ctrl-C. ``checkpoint`` is the file to resume from; None without one or when no step was done."""

    def __init__(self, message: str, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class Events:
    """The functions to call during a run."""

    on_step: OnStep | None = None
    on_save: OnSave | None = None
    """Called every ``fit.save_every`` steps."""
    on_preview: OnPreview | None = None
    """Called every ``fit.preview_every`` steps and after the last step."""


NOBODY = Events()
"""Events to which nobody listens."""


@contextmanager
def in_training(trainee: Trainee) -> Iterator[None]:
    """Inside the block the network has the LoRA, and its predictions have gradients."""
    config = trainee.config
    with (
        trainee.denoiser.ready(config.learning.precision == "bf16"),
        trainee.adapter,
        checkpointing(trainee.denoiser, config.fit.gradient_checkpointing),
    ):
        yield


@dataclass(eq=False)
class Run:
    """A training in progress."""

    trainee: Trainee
    optimizer: torch.optim.Optimizer
    losses: list[float]
    """One per step done."""
    shown: int
    """The step up to which every LoRA and preview during the run was handed out."""
    origin: Mapping[str, str]
    checkpoint: Path | None
    events: Events
    team: Team
    asked_to_stop: Callable[[], bool]
    doing: str = ""
    remark: str | None = None
    """The result of `layers_left_out`, after the first step here."""
    kept_at: float = field(default_factory=time.monotonic)

    def to_the_end(self) -> None:
        """Take all steps that are left, from one preview to the next."""
        steps = self.trainee.config.samples.steps
        if self.shown < len(self.losses):  # it was stopped between a step and what was due after it
            self._give()
            self._look()
        while len(self.losses) < steps:
            with in_training(self.trainee):
                while len(self.losses) < steps:
                    self._step()
                    if self._previews():
                        break
            self._look()

    def _previews(self) -> bool:
        every, done = self.trainee.config.fit.preview_every, len(self.losses)
        return bool(every) and (done % every == 0 or done == self.trainee.config.samples.steps)

    def _saves(self) -> bool:
        every, done = self.trainee.config.fit.save_every, len(self.losses)
        return bool(every) and done % every == 0 and done < self.trainee.config.samples.steps

    def _give(self) -> None:
        """Hand out the LoRA so far when it is due."""
        if self._saves() and self.events.on_save is not None:
            self.events.on_save(len(self.losses), self.trainee.adapter.state())

    def _look(self) -> None:
        """Show the preview when it is due; nothing else of this step is due after it."""
        if self._previews() and self.events.on_preview is not None:
            self.doing = f"The preview after step {len(self.losses)}"
            with torch.no_grad(), ctrl_c_answers() if self.team.size == 1 else nullcontext():
                self.events.on_preview(len(self.losses), self.trainee.adapter.state())
        self.shown = len(self.losses)

    def _step(self) -> None:
        """Take one step, and do what is due after it except the preview."""
        steps, done = self.trainee.config.samples.steps, len(self.losses) + 1
        self.doing = f"Step {done}"
        loss, stop = _step(self.trainee, self.optimizer, self.team, self.asked_to_stop, done - 1)
        if self.remark is None:
            self.remark = layers_left_out(self.trainee.adapter)
            if self.remark and self.team.leads:
                log.warning(self.remark)
        self.losses.append(loss)
        if not (self._saves() or self._previews()):
            self.shown = done
        if self.events.on_step is not None:
            self.events.on_step(done, steps, loss)
        if done == steps:
            return
        if stop or (self.team.size == 1 and self.asked_to_stop()):
            raise KeyboardInterrupt
        if self._saves() or time.monotonic() - self.kept_at > KEPT_EVERY:
            if not self._sound():
                raise NonFiniteLoss(
                    f"The LoRA became NaN or infinite at step {done}. Lower the learning rate (it is "
                    f"{self.trainee.config.learning.learning_rate:g})."
                )
            self.save()  # first: after a kill in between, the resumed run gives out what was not written
            self.kept_at = time.monotonic()
            self._give()
            if not self._previews():
                self.shown = done

    def _sound(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.trainee.adapter.parameters())

    def save(self) -> Path | None:
        """Save a file to resume from; return its path, or None when there is nothing to resume."""
        if self.checkpoint is None or not self.losses:
            return None
        if self.team.leads:
            save_run(self.checkpoint, self.origin, self.trainee.adapter, self.optimizer, self.losses, self.shown)
        return self.checkpoint

    def failed(self, error: BaseException) -> None:
        """Save what there is, and raise the error for the caller when it differs from this one."""
        config = self.trainee.config
        saved = self.save() if self._sound() else None
        if isinstance(error, NonFiniteLoss):
            if saved is not None:
                raise NonFiniteLoss(
                    f"{error} The LoRA of the {len(self.losses)} steps before is kept in {saved}."
                ) from error
            return
        hint = f"Resume from {saved}." if saved is not None else "There is nothing to resume from."
        if isinstance(error, KeyboardInterrupt):
            message = f"Training was stopped after step {len(self.losses)} of {config.samples.steps}. {hint}"
            raise Interrupted(message, saved) from error
        if _is_out_of_memory(error):
            width, height = config.samples.size
            raise OutOfMemory(
                f"{self.doing} did not fit into memory ({width}x{height} px, batch {config.fit.batch_size}, "
                f"{config.learning.precision}). {advice(config)} {hint}"
            ) from error


def _step(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    team: Team,
    asked_to_stop: Callable[[], bool],
    step: int,
) -> tuple[float, bool]:
    """Take one optimizer step; return its loss, and whether any process was asked to stop."""
    plan, config = trainee.plan, trainee.config
    set_learning_rate(optimizer, config.learning, step, config.samples.steps)
    optimizer.zero_grad(set_to_none=True)
    losses = torch.zeros(config.accumulation, dtype=torch.float64)
    strange = torch.zeros(len(plan.latents), dtype=torch.float64)
    for part in team.share(config.accumulation):
        number = step * config.accumulation + part
        loss, errors = batch_loss(trainee, number)
        losses[part] = loss.item()
        if not losses[part].isfinite():
            samples = torch.tensor(batch_of(plan, config, number))
            strange[samples[~errors.isfinite().cpu()]] += 1
            break  # its gradient would not be finite either
        (loss / config.accumulation).backward()  # type: ignore[no-untyped-call]
    stop = torch.tensor([float(asked_to_stop())], dtype=torch.float64)
    team.add_up([losses, strange, stop])
    if not losses.isfinite().all():
        names = list(dict.fromkeys(plan.names[i] for i in strange.nonzero().flatten().tolist()))
        raise NonFiniteLoss(
            f"The loss became {losses.sum().item()} at step {step + 1}"
            + (f", with {', '.join(names)}" if names else "")
            + f". Lower the learning rate (it is {config.learning.learning_rate:g}), or check that the base model "
            "makes good pictures in this precision."
        )
    parameters = trainee.adapter.parameters()
    team.add_up([parameter.grad for parameter in parameters if parameter.grad is not None])
    if (longest := config.learning.max_grad_norm) > 0:
        torch.nn.utils.clip_grad_norm_(parameters, longest)
    optimizer.step()
    return losses.mean().item(), bool(stop.item())


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU it is a plain RuntimeError: only its text tells.
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
