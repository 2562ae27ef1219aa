"""Training, once for all faces: subjects and settings become a plan, the plan becomes a LoRA file, and the best one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..bases.promise import Base
from ..bases.tokens import TokenVectors, save_token
from ..lora.file import LoraState, save_lora
from ..lora.metadata import lora_metadata
from ..lora.reading import Lora, read_lora
from ..lora.start_from import StartLora, fingerprint_of
from ..lora.together import ON, parent, together, whole_metadata
from ..lora.triggers import trigger_words
from ..progress import Progress, silent
from ..train.best import BestLora
from ..train.config import TrainConfig
from ..train.loop import Beginning, TrainResult, train
from ..train.pace import Pace
from ..train.parts import BadTrainConfig
from ..train.plan import Plan, make_plan
from ..train.run import Events
from ..train.team import Team
from ..types import SubjectSet, listed
from .previews import Preview


@dataclass(frozen=True, eq=False)
class Training:
    """A LoRA to train: for which base model, on which subjects, and how."""

    base: Base
    subjects: SubjectSet
    config: TrainConfig
    priors: SubjectSet | None = None
    """Pictures of other members of each class, with masks (paper, appendix B)."""
    others: SubjectSet | None = None
    """Strangers to compose the subjects with, where the settings say so; their tokens mean nothing."""
    start: StartLora | None = None
    """A LoRA to start from (`lora.start_from.start_of`)."""
    on: Lora | None = None
    """The LoRA that the base model has already, at strength 1, and that the new one is trained on top of."""
    vectors: TokenVectors | None = None
    """The vectors of the subjects' tokens, when the settings say ``learn_tokens``."""

    def __post_init__(self) -> None:
        if self.config.learning.min_snr_gamma is not None and self.base.denoiser().is_flow:
            raise BadTrainConfig(
                "min_snr_gamma weighs the timesteps of a noise schedule, and this model was taught a flow, which has "
                "none. Leave it off."
            )

    def plan(self, progress: Progress = silent, cache_dir: Path | None = None) -> Plan:
        """Draw and encode every sample of the run. Raise as `train.plan.make_plan` does."""
        # Tensors saved for gradients must not be made in inference mode, in which a host may run.
        with progress("encoding") as update, torch.inference_mode(False), torch.no_grad():
            return make_plan(
                self.subjects,
                self.config.samples,
                self.base.encode_image,
                self.base.condition,
                priors=self.priors,
                others=self.others,
                on_step=lambda stage, done, total: update(done, total, stage),
                cache_dir=cache_dir,
            )

    def plan_of_team(self, progress: Progress, cache_dir: Path | None, team: Team, shared: Path) -> Plan:
        """Return one plan to all processes: the first makes it, the others read it.

        They read it from ``cache_dir``, or else from the folder ``shared``, which is removed at the end.
        """
        if team.size == 1:
            return self.plan(progress, cache_dir)
        if not team.leads:
            team.wait()
        try:
            plan = self.plan(progress, cache_dir or shared)
            if team.leads:
                team.wait()
            team.wait()
            return plan
        finally:
            if team.leads:
                shutil.rmtree(shared, ignore_errors=True)

    def about(self, plan: Plan) -> dict[str, str]:
        """Return the metadata of the LoRA file."""
        settings, base = self.config.described(), self.base
        about = lora_metadata(
            settings,
            self.subjects,
            base=base.name,
            plan_hash=plan.plan_hash,
            family=base.family,
            captions=self.config.samples.captions,
        )
        return {**about, **self.about_on(), "mudi_start": fingerprint_of(self.start)}

    def about_on(self) -> dict[str, str]:
        """Return the metadata that name the LoRA that it is trained on top of, if there is one."""
        return {} if self.on is None else {ON: json.dumps([self._parent()])}

    def write_whole(self, path: Path) -> Path:
        """Write the LoRA that it was trained on and a LoRA of this training as one file beside it; return its path.

        Raise `BadLora` or `BadTensorFile`.
        """
        assert self.on is not None
        part = read_lora(path)
        names = listed([subject.name for subject in self.subjects])
        about = whole_metadata(part, [self._parent(), parent(part, names)])
        save_lora(whole_of(path), together([self.on, part]), about, style=self.base.usual.file_names)
        return whole_of(path)

    def _parent(self) -> dict[str, object]:
        assert self.on is not None
        known = [" ".join(name).strip() for name in trigger_words(self.on.about)]
        return parent(self.on, listed(known) if known else "")


def whole_of(path: Path) -> Path:
    """Return the path of a LoRA together with the one that it was trained on."""
    return path.with_stem(f"{path.stem}-whole")


@dataclass(frozen=True)
class LoraFiles:
    """Where a training writes its files."""

    lora: Path | None
    """None: no LoRA, only tokens."""
    stopped: Path | None = None
    """The file to resume from; removed once the LoRA is written."""
    embeddings: tuple[Path, ...] = ()
    """Files of the learned tokens, in the order of the subjects."""
    best: Path | None = None
    """The final name of the best LoRA's file, when it has another name during the run."""

    def of_step(self, step: int) -> Path:
        """Return the path of the LoRA after this many steps."""
        assert self.lora is not None
        return self.lora.with_stem(f"{self.lora.stem}-{step:06d}")


@dataclass(frozen=True)
class Watch:
    """The functions that watch a training."""

    on_step: Callable[[int, int, float], None] | None = None
    """``(steps done, steps in all, loss of this step)``."""
    look: Callable[[LoraState], Preview] | None = None
    """Pictures of the LoRA so far, every ``fit.preview_every`` steps."""
    on_preview: Callable[[int, Preview, bool], None] | None = None
    """``(steps done, the preview, whether it is the best so far)``."""


def train_lora(
    training: Training,
    plan: Plan,
    files: LoraFiles,
    progress: Progress = silent,
    watch: Watch = Watch(),
    *,
    best: BestLora | None = None,
    goes_on: bool = False,
    team: Team | None = None,
) -> TrainResult:
    """Train, and write each file as soon as it is due; with ``goes_on`` resume the stopped run.

    A LoRA that was trained on top of another is written together with it, too (`whole_of`).
    ``best``: keeps the LoRA whose previews score best. Of several processes only the first writes. Raise as
    `train.loop.train` does.
    """
    about, leads = training.about(plan), team is None or team.leads
    stopped, style = files.stopped, training.base.usual.file_names

    def save(step: int, state: LoraState) -> None:
        if leads and files.lora is not None:
            save_lora(files.of_step(step), state, {**about, "ss_steps": str(step)}, style=style)

    def look(step: int, state: LoraState) -> None:
        if watch.look is None:
            return
        preview = watch.look(state)
        is_best = best is not None and best.offer(step, state, preview.score)
        if watch.on_preview is not None:
            watch.on_preview(step, preview, is_best)

    with progress("training") as update:
        result = train(
            training.base.denoiser(),
            plan,
            training.config,
            Events(partial(_stepped, update, Pace(), watch.on_step), save, look),
            begin=Beginning(training.start, training.vectors, stopped if goes_on else None),
            checkpoint=stopped,
            team=team,
        )
    if leads:
        for i, path in enumerate(files.embeddings):
            save_token(path, {encoder: rows[i : i + 1] for encoder, rows in result.vectors.items()}, about)
        if files.lora is not None:
            save_lora(files.lora, result.state, about, style=style)
        if best is not None and best.step and files.best is not None:
            best.move(files.best)
        if training.on is not None and files.lora is not None:
            for path in [files.lora] + ([best.path] if best is not None and best.step else []):
                training.write_whole(path)
        if stopped is not None:
            stopped.unlink(missing_ok=True)
    return result


def _stepped(
    update: Callable[[int, int, str], None],
    pace: Pace,
    on_step: Callable[[int, int, float], None] | None,
    done: int,
    total: int,
    loss: float,
) -> None:
    if on_step is not None:
        on_step(done, total, loss)
    update(done, total, pace.words(done, total, loss))
