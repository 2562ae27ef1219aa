"""The training of a LoRA: a network takes the steps of a plan."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..bases.promise import Denoiser
from ..bases.tokens import TokenVectors
from ..lora.adapter import Adapter
from ..lora.file import LoraState
from ..lora.start_from import StartLora
from ..types import MudiError
from .config import TrainConfig
from .ctrl_c import ctrl_c_waits
from .memory import preflight
from .optimizer import make_optimizer
from .plan import Plan
from .resume import origin_of, restore_run
from .run import NOBODY, Events, Run, in_training
from .step import Trainee
from .team import Team


class BadRun(MudiError):
    """A plan, a configuration and a network that do not fit together."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained LoRA."""

    losses: tuple[float, ...]
    """One per step. A single loss says little because its timesteps are random: look at means of many."""
    state: LoraState
    """Float32, on the CPU, by kohya name: ready for `lora.file.save_lora` and `lora.adapter.apply_lora`."""
    vectors: dict[str, Tensor]
    """The vectors of the tokens, if they were learned: `tokens.TokenVectors.state`."""
    remark: str = ""
    """What `step.layers_left_out` says of the first step."""


@dataclass(frozen=True, eq=False)
class Beginning:
    """How a run begins, beside the seed."""

    lora: StartLora | None = None
    """The LoRA to start from; None: one without effect."""
    vectors: TokenVectors | None = None
    """The vectors of the subjects' tokens, when the settings say ``learn_tokens``."""
    stopped: Path | None = None
    """The checkpoint of a stopped run, to resume."""


def train(
    denoiser: Denoiser,
    plan: Plan,
    config: TrainConfig,
    events: Events = NOBODY,
    *,
    begin: Beginning = Beginning(),
    checkpoint: Path | None = None,
    team: Team | None = None,
) -> TrainResult:
    """Train a LoRA for a network, on the device on which the network computes.

    The network is as before when this returns or raises: weights, modes and gradients. Noise and its levels depend only
    on the seed and the step, so a run that was stopped and resumed ends with the same bits.

    ``checkpoint``: where to save a file to resume from when the run ends early, every `KEPT_EVERY` seconds, and every
    ``fit.save_every`` steps. ``team``: the processes that share the batches of a step; each calls this with the same
    arguments, all get the same result, and only the first writes.

    Raise `Interrupted` after Ctrl-C (after the step, or at once in a preview), `NonFiniteLoss`, `OutOfMemory`,
    `BadRun`, `step.NoGradient`, `resume.BadCheckpoint`, `optimizer.MissingOptimizer`, `team.BrokenTeam`, and the errors
    of the denoiser's ``ready``.
    """
    team = team or Team()
    _check_run(denoiser, plan, config, team)
    if config.learning.learn_tokens != (begin.vectors is not None):
        raise BadRun("A run needs token vectors exactly when its settings say learn_tokens.")
    origin = origin_of(plan, denoiser, begin.lora, config)
    team.agree(json.dumps(origin) + config.to_json(), "photos, settings or base models")
    with torch.inference_mode(False), torch.enable_grad(), ctrl_c_waits() as asked_to_stop:
        learning = config.learning
        adapter = Adapter.new(denoiser, learning.rank, learning.lora_alpha, learning.target_modules, begin.vectors)
        adapter.start(config.samples.seed, None if begin.lora is None else begin.lora.state)
        trainee = Trainee(denoiser, adapter, plan, config)
        with in_training(replace(trainee, config=config.but(gradient_checkpointing="off"))):
            trainee = replace(trainee, config=preflight(trainee))
        vectors = begin.vectors.parameters() if begin.vectors is not None else ()
        optimizer = make_optimizer(learning, adapter.matrices(), vectors)
        losses, shown = ([], 0) if begin.stopped is None else restore_run(begin.stopped, origin, adapter, optimizer)
        run = Run(trainee, optimizer, losses, shown, origin, checkpoint, events, team, asked_to_stop)
        try:
            run.to_the_end()
        except BaseException as error:
            # A host's own cancel exception and a full memory also leave a file to resume from.
            run.failed(error)
            raise
        learned = begin.vectors.state() if begin.vectors is not None else {}
        return TrainResult(tuple(losses), adapter.state(), learned, run.remark or "")


def _check_run(denoiser: Denoiser, plan: Plan, config: TrainConfig, team: Team) -> None:
    samples = config.samples
    if tuple(plan.steps.shape) != (samples.steps, samples.samples_per_step):
        raise BadRun(
            f"The plan has {plan.steps.shape[0]} steps of {plan.steps.shape[1]} samples, the configuration "
            f"{samples.steps} of {samples.samples_per_step}. Make the plan with the configuration that trains."
        )
    if config.accumulation % team.size:
        raise BadRun(
            f"{team.size} processes cannot share {config.accumulation} batches of a step evenly. Set accumulation to a "
            f"multiple of {team.size}."
        )
    if denoiser.stored_as != config.learning.base_weights:
        raise BadRun(
            f"The model's weights are stored as '{denoiser.stored_as}', but the settings say "
            f"'{config.learning.base_weights}'. Give the model to quantize() first."
        )
