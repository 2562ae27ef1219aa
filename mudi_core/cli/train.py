"""`train`: a dataset into a LoRA."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import MudiError
from .options import add_base, add_command, add_device, add_precision, add_seed, device, open_base, precision
from .preview import add_previews, open_previews
from .settings import add_settings, train_config
from .talk import Answer, Talk

if TYPE_CHECKING:
    import torch

    from ..bases.checkpoint import Checkpoint
    from ..jobs.train import LoraFiles, Training
    from ..train.best import BestLora
    from ..train.config import TrainConfig
    from ..train.loop import TrainResult
    from ..train.plan import Plan
    from ..train.team import Team
    from ..types import SubjectSet


_LOCK = re.compile(r"\..+\.safetensors\.lock", re.DOTALL)
"""The lock file beside a LoRA during its training."""


class OutputExists(MudiError):
    """A LoRA that would replace a file that another run made."""


class OutputBusy(MudiError):
    """A LoRA that another process is training."""


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        summary="a dataset into a LoRA",
        description="Trains one LoRA for all subjects of a dataset, on their photos and on Seg-Mix compositions of "
        "them. The file loads in ComfyUI and diffusers. After Ctrl-C, continue with --resume. "
        "Defaults are the paper's for SDXL; with --base mini they are the demo's. With several GPUs: accelerate launch "
        "--multi_gpu -m mudi_core train ...",
        example="python -m mudi_core train dogs --base mini --out dogs.safetensors",
    )
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="folder made by prepare, or of the official format"
    )
    add_base(parser, "mini, an SDXL, SD 1.5 or SD 2 .safetensors file, or a folder in diffusers' layout")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the LoRA, ending in .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="train even if the file exists, and replace it")
    add_settings(parser)
    parser.add_argument(
        "--priors", type=Path, metavar="DATASET", help="pictures of other members of each class, with masks"
    )
    parser.add_argument("--start-from", type=Path, metavar="FILE", help="a LoRA to start from, of this rank or less")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="save what is encoded for the next run (4 GB at most)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run that Ctrl-C stopped")
    add_previews(parser)
    add_seed(parser, "of every random choice")
    add_precision(parser)
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer | None:
    import torch

    from ..train.team import joined, local_rank, team_size

    if args.memory and args.precision is None:
        args.precision = "bf16"
    on = device(args)
    if on.type == "cuda" and team_size() > 1:
        on = torch.device("cuda", local_rank())
        torch.cuda.set_device(on)
    with joined(on) as team, _alone(args.out) if team.leads else nullcontext():
        return _train(args, talk if team.leads else Talk(silent=True), on, team)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Inside the block no other process trains into this file. Raise `OutputBusy`."""
    from ..lock import beginning, claimed

    _check_writable(out)
    with ExitStack() as stack:
        with beginning(out.parent, _LOCK):
            ours = stack.enter_context(claimed(out.with_name(f".{out.name}.lock")))
        if not ours:
            raise OutputBusy(
                f"Another training is writing {out} now. Wait until it is done, or choose another name with --out."
            )
        yield


def _train(args: argparse.Namespace, talk: Talk, on: torch.device, team: Team) -> Answer | None:
    import torch

    from ..jobs.train import LoraFiles, Training, train_lora
    from ..lora.file import load_lora
    from ..subjects import storage
    from ..train.best import BestLora
    from .journal import Journal

    journal = Journal(talk, args.log_every, args.tensorboard if team.leads else None)
    files = LoraFiles(args.out, args.out.with_suffix(".stopped.safetensors"))
    _check_stopped(args, files)
    start = None if args.start_from is None else load_lora(args.start_from)[0]
    subjects = storage.read_subjects(args.dataset, packed=True)
    priors = None if args.priors is None else storage.read_priors(args.priors, subjects, packed=True)
    checkpoint = open_base(args, on, torch.device("cpu"))  # the U-Net waits until the encoders have left the card
    settings = train_config(args, checkpoint.usual, checkpoint.side, precision(args, on))
    # So the saved settings of a step do not depend on the number of processes.
    settings = settings.but(accumulation=settings.accumulation * team.size)
    training = Training(checkpoint, subjects, settings, priors, start)
    there = None if args.overwrite else _read_existing(args.out, training)
    previews = open_previews(args, talk, checkpoint, settings, subjects) if team.leads else None
    plan = training.plan_of_team(talk.progress, args.cache, team, args.out.with_name(f".{args.out.stem}.plan"))
    if there is not None:
        return _nothing_to_do(args.out, there, plan.plan_hash) if team.leads else None
    _make_room(checkpoint, settings, on, keep_encoders=previews is not None)
    style = checkpoint.usual.file_names
    best = BestLora(args.out.with_stem(f"{args.out.stem}-best"), training.about(plan), args.resume, style)
    watch = journal.watch(previews, args.out.with_name(f"{args.out.stem}-previews"))
    with journal:
        trained = train_lora(training, plan, files, talk.progress, watch, best=best, goes_on=args.resume, team=team)
    return _answer(training, plan, trained, args.out, best) if team.leads else None


def _check_stopped(args: argparse.Namespace, files: LoraFiles) -> None:
    from ..tensor_file import BadTensorFile

    if args.resume and not (files.stopped is not None and files.stopped.is_file()):
        raise BadTensorFile(f"There is no stopped run to resume: {files.stopped} is missing. Leave out --resume.")


def _make_room(checkpoint: Checkpoint, settings: TrainConfig, on: torch.device, keep_encoders: bool) -> None:
    """Move the U-Net to its device, in the format of the settings; VAE and text encoders leave it before."""
    import torch

    from ..bases.quantize import quantize

    if keep_encoders:
        checkpoint.move_encoders(torch.device("cpu"))
    else:
        checkpoint.release_encoders()
    if on.type == "cuda":
        torch.cuda.empty_cache()
    quantize(checkpoint.unet, settings.learning.base_weights)
    checkpoint.unet.to(on)


def _answer(training: Training, plan: Plan, trained: TrainResult, out: Path, best: BestLora) -> Answer:
    samples = training.config.samples
    last = trained.losses[-max(1, len(trained.losses) // 10) :]
    words = (
        f"{out}: a LoRA for {_named(training.subjects)}, {samples.steps} steps of {samples.method}, "
        f"{out.stat().st_size / 1e6:.1f} MB. Use those names in the prompt."
    )
    if best.step:
        words += f" The pictures were best after {best.step} steps, {best.score:.2f}: {best.path}."
    if trained.remark:
        words += f" {trained.remark}"
    return Answer(
        words,
        {
            "lora": str(out),
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


def _nothing_to_do(out: Path, there: str, plan_hash: str) -> Answer:
    """Return the answer for a LoRA that already exists. Raise `OutputExists` when its plan is another."""
    if there != plan_hash:
        raise _exists(out, "other photos")
    text = f"{out} already exists, from the same photos and settings: nothing to do."
    return Answer(text, {"lora": str(out), "plan_hash": there, "trained": False})


def _read_existing(out: Path, training: Training) -> str | None:
    """Return the plan hash of the LoRA that exists; None when there is none.

    Compare the settings, base model and start in the file. Raise `OutputExists` when they differ.
    """
    from ..lora.change import BadLora
    from ..lora.file import load_lora
    from ..lora.metadata import plain_base
    from ..tensor_file import BadTensorFile
    from ..train.resume import lora_fingerprint

    if not out.exists():
        return None
    try:
        about = load_lora(out)[1]
    except (BadLora, BadTensorFile):
        raise _exists(out, "something else") from None
    made_of = {
        "mudi_config": (training.config.to_json(), "other settings"),
        "mudi_base": (plain_base(training.base.name), "another base model"),
        "mudi_start": (lora_fingerprint(training.start), "another LoRA to start from"),
    }
    for key, (ours, what) in made_of.items():
        if about.get(key) != ours:
            raise _exists(out, what)
    return about.get("mudi_plan_hash", "")


def _exists(out: Path, origin: str) -> OutputExists:
    return OutputExists(
        f"{out} already exists, made from {origin}. Choose another name with --out, or replace it with --overwrite."
    )


def _check_writable(out: Path) -> None:
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


def _named(subjects: SubjectSet) -> str:
    return " and ".join(f"'{subject.name}'" for subject in subjects)
