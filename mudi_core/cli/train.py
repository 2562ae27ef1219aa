"""`train`: a dataset into a LoRA."""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import MudiError
from .options import add_base, add_command, add_device, add_precision, add_seed, device, open_base, precision
from .preview import add_previews, open_previews, write_preview
from .settings import add_settings, train_config
from .talk import Answer, Talk

if TYPE_CHECKING:
    import torch

    from ..bases.checkpoint import Checkpoint
    from ..train.config import TrainConfig
    from ..train.plan import Plan
    from ..train.team import Team
    from ..types import SubjectSet


_LOCK = re.compile(r"\..+\.safetensors\.lock", re.DOTALL)
"""Claimed beside a LoRA while it is trained."""


class OutputExists(MudiError):
    """A LoRA would replace a file that something else made."""


class OutputBusy(MudiError):
    """A LoRA that another process is training."""


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        summary="a dataset into a LoRA",
        description="Trains one LoRA for all subjects of a dataset, on their photos and on Seg-Mix compositions of "
        "them. The file loads in ComfyUI and diffusers. Ctrl-C leaves a file beside it to go on from with --resume. "
        "Defaults are the paper's for SDXL; with --base mini they are the demo's. With several GPUs: accelerate launch "
        "--multi_gpu -m mudi_core train ...",
        example="python -m mudi_core train dogs --base mini --out dogs.safetensors",
    )
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="folder made by prepare, or of the official format"
    )
    add_base(parser, "mini, an SDXL, SD 1.5 or SD 2 .safetensors file, or a folder in diffusers' layout")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the LoRA, ending in .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="train even if the file is there, and replace it")
    add_settings(parser)
    parser.add_argument(
        "--priors", type=Path, metavar="DATASET", help="pictures of other members of each class, with masks"
    )
    parser.add_argument("--start-from", type=Path, metavar="FILE", help="a LoRA to begin with, of this rank or less")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep what was encoded here for the next run (4 GB at most)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that Ctrl-C stopped")
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
    """Nobody else trains into this file while the block lasts. Raises `OutputBusy`."""
    from ..lock import beginning, claimed

    _check_writable(out)
    with ExitStack() as stack:
        with beginning(out.parent, _LOCK):
            ours = stack.enter_context(claimed(out.with_name(f".{out.name}.lock")))
        if not ours:
            raise OutputBusy(
                f"Another training writes {out} just now. Wait until it is done, or choose another name with --out."
            )
        yield


def _train(args: argparse.Namespace, talk: Talk, on: torch.device, team: Team) -> Answer | None:
    import torch

    from ..bases import quantize
    from ..lora.file import LoraState, load_lora, save_lora
    from ..lora.metadata import lora_metadata
    from ..subjects import storage
    from ..tensor_file import BadTensorFile
    from ..train import loop
    from ..train.best import BestLora
    from ..train.resume import lora_fingerprint
    from .journal import Journal

    journal = Journal(talk, args.log_every, args.tensorboard if team.leads else None)
    stopped = args.out.with_suffix(".stopped.safetensors")
    if args.resume and not stopped.is_file():
        raise BadTensorFile(f"There is no stopped run to go on with: {stopped} is missing. Leave out --resume.")
    start = None if args.start_from is None else load_lora(args.start_from)[0]
    subjects = storage.read_subjects(args.dataset)
    priors = None if args.priors is None else storage.read_priors(args.priors, subjects)
    checkpoint = open_base(args, on, torch.device("cpu"))  # the U-Net waits until the encoders have left the card
    settings = train_config(args, checkpoint.side, precision(args, on))
    # Written so that it says the same of a step whatever the number of processes.
    settings = settings.but(accumulation=settings.accumulation * team.size)
    made_of = {
        "mudi_config": (settings.to_json(), "other settings"),
        "mudi_base": (checkpoint.name, "another base model"),
        "mudi_start": (lora_fingerprint(start), "another LoRA to start from"),
    }
    there = None if args.overwrite else _read_existing(args.out, made_of)
    previews = open_previews(args, talk, checkpoint, settings, subjects) if team.leads else None
    drawn = _plan(args, talk, team, checkpoint, settings, subjects, priors)
    if there is not None:
        if there != drawn.plan_hash:
            raise _exists(args.out, "other photos")
        text = f"{args.out} is there already, from the same photos and settings: nothing to do."
        return Answer(text, {"lora": str(args.out), "plan_hash": there, "trained": False}) if team.leads else None
    if previews is None:
        checkpoint.release_encoders()
    else:
        checkpoint.move_encoders(torch.device("cpu"))
    if on.type == "cuda":
        torch.cuda.empty_cache()
    quantize.quantize(checkpoint.unet, settings.learning.base_weights)
    checkpoint.unet.to(on)
    about = lora_metadata(
        settings.described(), subjects, base=checkpoint.name, plan_hash=drawn.plan_hash, family=checkpoint.family
    )
    about["mudi_start"] = lora_fingerprint(start)

    def save(step: int, state: LoraState) -> None:
        if team.leads:
            save_lora(args.out.with_stem(f"{args.out.stem}-{step:06d}"), state, {**about, "ss_steps": str(step)})

    best = BestLora(args.out.with_stem(f"{args.out.stem}-best"), about, args.resume)

    def look(step: int, state: LoraState) -> None:
        if previews is not None:
            preview = previews.draw(state)
            journal.preview(step, preview, best.offer(step, state, preview.score))
            write_preview(args.out.with_name(f"{args.out.stem}-previews"), step, preview)

    with talk.progress("training") as progress, journal:

        def stepped(done: int, total: int, loss: float) -> None:
            progress(done, total, f"loss {loss:.3f}")
            journal.step(done, total, loss)

        trained = loop.train(
            checkpoint.denoiser(),
            drawn,
            settings,
            loop.Events(stepped, save, look),
            begin=loop.Beginning(start, stopped=stopped if args.resume else None),
            checkpoint=stopped,
            team=team,
        )
    if not team.leads:
        return None
    save_lora(args.out, trained.state, about)
    stopped.unlink(missing_ok=True)
    last = trained.losses[-max(1, len(trained.losses) // 10) :]
    words = (
        f"{args.out}: a LoRA for {_named(subjects)}, {settings.samples.steps} steps of {settings.samples.method}, "
        f"{args.out.stat().st_size / 1e6:.1f} MB. Prompt it with those names."
    )
    if best.step:
        words += f" The pictures were best after {best.step} steps, {best.score:.2f}: {best.path}."
    return Answer(
        words,
        {
            "lora": str(args.out),
            "method": settings.samples.method,
            "steps": settings.samples.steps,
            "seed": settings.samples.seed,
            "layers": len(trained.state) // 3,
            "loss": sum(last) / len(last),
            "plan_hash": drawn.plan_hash,
            "trained": True,
            "best": {"lora": str(best.path), "step": best.step, "score": best.score} if best.step else None,
        },
    )


def _plan(
    args: argparse.Namespace,
    talk: Talk,
    team: Team,
    checkpoint: Checkpoint,
    settings: TrainConfig,
    subjects: SubjectSet,
    priors: SubjectSet | None,
) -> Plan:
    """The plan; of several processes the first makes it and the others read it from a folder that they share."""
    from ..train.plan import make_plan

    shared = args.out.with_name(f".{args.out.stem}.plan") if team.size > 1 and args.cache is None else None
    if not team.leads:
        team.wait()
    try:
        with talk.progress("encoding") as progress:
            plan = make_plan(
                subjects,
                settings.samples,
                checkpoint.encode_image,
                checkpoint.condition,
                priors=priors,
                on_step=lambda stage, done, total: progress(done, total, stage),
                cache_dir=shared or args.cache,
            )
        if team.leads:
            team.wait()
        team.wait()
        return plan
    finally:
        if shared is not None and team.leads:
            shutil.rmtree(shared, ignore_errors=True)


def _read_existing(out: Path, made_of: Mapping[str, tuple[str, str]]) -> str | None:
    """The plan hash of the LoRA that is there; None when there is none.

    ``made_of``: what its metadata should say, and what it was made from if it does not. Raises `OutputExists`.
    """
    from ..lora.file import BadLora, load_lora
    from ..tensor_file import BadTensorFile

    if not out.exists():
        return None
    try:
        about = load_lora(out)[1]
    except (BadLora, BadTensorFile):
        raise _exists(out, "something else") from None
    for key, (ours, what) in made_of.items():
        if about.get(key) != ours:
            raise _exists(out, what)
    return about.get("mudi_plan_hash", "")


def _exists(out: Path, origin: str) -> OutputExists:
    return OutputExists(
        f"{out} is there already, made from {origin}. Choose another name with --out, or replace it with --overwrite."
    )


def _check_writable(out: Path) -> None:
    """Find out before an hour of training, not after it."""
    from ..tensor_file import BadTensorFile

    if out.suffix != ".safetensors":
        raise BadTensorFile(f"A LoRA is a .safetensors file; call it {out.with_suffix('.safetensors')}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise BadTensorFile(f"{out.parent} cannot be written: {reason}. Choose another place with --out.") from error


def _named(subjects: SubjectSet) -> str:
    return " and ".join(f"'{subject.name}'" for subject in subjects)
