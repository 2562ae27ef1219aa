"""`train`: a dataset into a LoRA."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import MudiError
from .lora_output import answer, check_writable, nothing_to_do, read_existing
from .options import add_base, add_command, add_device, add_precision, add_seed, device, open_base, precision
from .preview import add_previews, open_previews
from .settings import add_settings, train_config
from .talk import Answer, Talk

if TYPE_CHECKING:
    import torch

    from ..bases.checkpoint import Checkpoint
    from ..jobs.train import LoraFiles
    from ..train.config import TrainConfig
    from ..train.team import Team


_LOCK = re.compile(r"\..+\.safetensors\.lock", re.DOTALL)
"""The lock file beside a LoRA during its training."""


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
    parser.add_argument(
        "--others",
        type=Path,
        nargs="+",
        metavar="DATASET",
        help="strangers to compose the subjects with, such as those that the command priors makes: a subject that is "
        "trained alone then learns to be one figure among others",
    )
    parser.add_argument(
        "--on",
        type=Path,
        metavar="FILE",
        help="a LoRA that stays on the base model, such as a fusion: what is learned is added to it, and both are "
        "written as one file, too",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="FILE",
        help="a LoRA of any kind to start from; what is beyond the rank is cut off",
    )
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

    check_writable(out)
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

    from ..jobs.fuse_checkpoint import wearing
    from ..jobs.train import LoraFiles, Training, train_lora
    from ..lora.reading import read_lora
    from ..lora.start_from import start_of
    from ..stage.strangers import strangers_of
    from ..subjects import storage
    from ..train.best import BestLora
    from .journal import Journal

    journal = Journal(talk, args.log_every, args.tensorboard if team.leads else None)
    files = LoraFiles(args.out, args.out.with_suffix(".stopped.safetensors"))
    _check_stopped(args, files)
    begun = None if args.start_from is None else read_lora(args.start_from)
    on_it = None if args.on is None else read_lora(args.on)
    subjects = storage.read_subjects(args.dataset, packed=True)
    priors = None if args.priors is None else storage.read_priors(args.priors, subjects, packed=True)
    others = None
    if args.others is not None:
        others = strangers_of(*(storage.read_subjects(one, packed=True) for one in args.others))
    checkpoint = open_base(args, on, torch.device("cpu"))  # the U-Net waits until the encoders have left the card
    settings = train_config(args, checkpoint.usual, checkpoint.side, precision(args, on))
    # So the saved settings of a step do not depend on the number of processes.
    settings = settings.but(accumulation=settings.accumulation * team.size)
    settings = settings.but(compose_with_others=others is not None)
    with wearing(checkpoint, on_it):
        start = None
        if begun is not None:
            start = start_of(begun, checkpoint.denoiser(), settings.learning.rank, progress=talk.progress)
        training = Training(checkpoint, subjects, settings, priors, others, start, on_it)
        there = None if args.overwrite else read_existing(args.out, training)
        previews = open_previews(args, talk, checkpoint, settings, subjects) if team.leads else None
        plan = training.plan_of_team(talk.progress, args.cache, team, args.out.with_name(f".{args.out.stem}.plan"))
        if there is not None:
            return nothing_to_do(training, args.out, there, plan.plan_hash) if team.leads else None
        _make_room(checkpoint, settings, on, keep_encoders=previews is not None)
        style = checkpoint.usual.file_names
        best = BestLora(args.out.with_stem(f"{args.out.stem}-best"), training.about(plan), args.resume, style)
        watch = journal.watch(previews, args.out.with_name(f"{args.out.stem}-previews"))
        with journal:
            trained = train_lora(training, plan, files, talk.progress, watch, best=best, goes_on=args.resume, team=team)
    remark = start.told(begun.name) if start is not None and begun is not None else ""
    return answer(training, plan, trained, args.out, best, remark) if team.leads else None


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
