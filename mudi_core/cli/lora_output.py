"""The LoRA file that a training writes: whether it is there already, and what is told of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..types import MudiError, SubjectSet
from .talk import Answer

if TYPE_CHECKING:
    from ..jobs.train import Training
    from ..train.best import BestLora
    from ..train.loop import TrainResult
    from ..train.plan import Plan


class OutputExists(MudiError):
    """A LoRA that would replace a file that another run made."""


def check_writable(out: Path) -> None:
    """Check this before hours of training, not after. Raise `BadTensorFile`."""
    from ..tensor_file import BadTensorFile

    if out.suffix != ".safetensors":
        raise BadTensorFile(f"A LoRA is a .safetensors file. Name it {out.with_suffix('.safetensors')}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise BadTensorFile(f"{out.parent} cannot be written: {reason}. Choose another place with --out.") from error


def answer(training: Training, plan: Plan, trained: TrainResult, out: Path, best: BestLora, remark: str = "") -> Answer:
    """Return what is told of a training that has ended; ``remark``: a sentence of how it began."""
    from ..jobs.train import whole_of

    samples = training.config.samples
    last = trained.losses[-max(1, len(trained.losses) // 10) :]
    words = (
        f"{out}: a LoRA for {_named(training.subjects)}, {samples.steps} steps of {samples.method}, "
        f"{out.stat().st_size / 1e6:.1f} MB. Use those names in the prompt."
    )
    if best.step:
        words += f" The pictures were best after {best.step} steps, {best.score:.2f}: {best.path}."
    if training.on is not None:
        words += f" It acts on top of {training.on.name}; both as one file: {whole_of(out)}."
    words = " ".join(filter(None, [words, remark, trained.remark]))
    return Answer(
        words,
        {
            "lora": str(out),
            "whole": None if training.on is None else str(whole_of(out)),
            "method": samples.method,
            "steps": samples.steps,
            "seed": samples.seed,
            "layers": len(trained.state) // 3,
            "loss": sum(last) / len(last),
            "plan_hash": plan.plan_hash,
            "trained": True,
            "best": {"lora": str(best.path), "step": best.step, "score": best.score} if best.step else None,
        },
    )


def nothing_to_do(training: Training, out: Path, there: str, plan_hash: str) -> Answer:
    """Return the answer for a LoRA that already exists. Raise `OutputExists` when its plan is another.

    Where it acts on top of another, and no file with both was written, as on a full disk, write that.
    """
    from ..jobs.train import whole_of

    if there != plan_hash:
        raise _exists(out, "other photos")
    if training.on is not None and not whole_of(out).exists():
        training.write_whole(out)
    text = f"{out} already exists, from the same photos and settings: nothing to do."
    return Answer(text, {"lora": str(out), "plan_hash": there, "trained": False})


def read_existing(out: Path, training: Training) -> str | None:
    """Return the plan hash of the LoRA that exists; None when there is none.

    Compare the settings, base model and start in the file. Raise `OutputExists` when they differ.
    """
    from ..lora.change import BadLora
    from ..lora.file import load_lora
    from ..lora.metadata import plain_base
    from ..lora.start_from import fingerprint_of
    from ..lora.together import ON
    from ..tensor_file import BadTensorFile

    if not out.exists():
        return None
    try:
        about = load_lora(out)[1]
    except (BadLora, BadTensorFile):
        raise _exists(out, "something else") from None
    made_of = {
        "mudi_config": (training.config.to_json(), "other settings"),
        "mudi_base": (plain_base(training.base.name), "another base model"),
        "mudi_start": (fingerprint_of(training.start), "another LoRA to start from"),
        ON: (training.about_on().get(ON), "another LoRA on the base model"),
    }
    for key, (ours, what) in made_of.items():
        if about.get(key) != ours:
            raise _exists(out, what)
    return about.get("mudi_plan_hash", "")


def _exists(out: Path, origin: str) -> OutputExists:
    return OutputExists(
        f"{out} already exists, made from {origin}. Choose another name with --out, or replace it with --overwrite."
    )


def _named(subjects: SubjectSet) -> str:
    return " and ".join(f"'{subject.name}'" for subject in subjects)
