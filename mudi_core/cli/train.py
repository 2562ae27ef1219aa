"""`train`: a dataset into a LoRA."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import MINI, add_base, add_command, add_device, add_precision, add_seed, device, open_base, precision
from .talk import Answer, Talk

if TYPE_CHECKING:
    from ..train.config import TrainConfig
    from ..types import SubjectSet


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        summary="a dataset into a LoRA",
        description="Trains one LoRA for all subjects of a dataset, on their photos and on Seg-Mix compositions of "
        "them. The file loads in ComfyUI and diffusers. Ctrl-C leaves a file beside it to go on from with --resume. "
        "Defaults are the paper's for SDXL; with --base mini they are the demo's.",
        example="python -m mudi_core train dogs --base mini --out dogs.safetensors",
    )
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="folder made by prepare, or of the official format"
    )
    add_base(parser, "mini, an SDXL .safetensors file, or a folder in diffusers' layout")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the LoRA, ending in .safetensors")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="optimizer steps (default: 1200; 1400-1600 for fine detail)"
    )
    parser.add_argument(
        "--method",
        choices=("segmix", "dreambooth", "cutmix"),
        default="segmix",
        help="segmix (default); dreambooth: photos alone; cutmix: hard halves instead of cut-outs",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="samples of a step (default: 2)")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="default: 1e-4")
    parser.add_argument("--rank", type=int, metavar="N", help="size of the LoRA (default: 32)")
    parser.add_argument(
        "--resolution", type=int, metavar="PX", help="side of the training images (default: the model's)"
    )
    parser.add_argument("--segmix-prob", type=float, metavar="X", help="share of compositions, 0..1 (default: 0.3)")
    parser.add_argument(
        "--relative-scale",
        type=relative_scale,
        metavar="A:B=1:2",
        help='heights in compositions, e.g. "olis:hta=1:2" when hta is twice as tall (default: all about alike)',
    )
    parser.add_argument(
        "--background-weight", type=float, metavar="X", help="loss outside the subjects, 0..1 (default: 1)"
    )
    parser.add_argument(
        "--dco-beta", type=float, metavar="X", help="stay close to the base model (default: 1000; 0: off)"
    )
    parser.add_argument(
        "--priors", type=Path, metavar="DATASET", help="pictures of other members of each class, with masks"
    )
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="15 instead of 18 GB for SDXL, 30 %% slower"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep encoded images and captions here for the next run"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that Ctrl-C stopped")
    add_seed(parser, "of every random choice")
    add_precision(parser)
    add_device(parser)


def relative_scale(text: str) -> dict[str, float]:
    """ "olis:hta=1:2" as {"olis": 1, "hta": 2}."""
    from ..layout import BadRelativeScale, parse_relative_scale

    try:
        return parse_relative_scale(text)
    except BadRelativeScale as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def config(args: argparse.Namespace, side: int, compute: str) -> TrainConfig:
    """The paper's settings, or the demo's for the embedded model, and what the user said otherwise."""
    from ..demo.settings import DemoSettings
    from ..train.config import TrainConfig

    start = DemoSettings().train_config(args.method, args.seed) if args.base == MINI else TrainConfig(resolution=side)
    said = {
        "steps": args.steps,
        "batch_size": args.batch,
        "learning_rate": args.learning_rate,
        "rank": args.rank,
        "resolution": args.resolution,
        "segmix_prob": args.segmix_prob,
        "background_weight": args.background_weight,
        "dco_beta": args.dco_beta,
    }
    return replace(
        start,
        method=args.method,
        seed=args.seed,
        layout=replace(start.layout, relative_scale=args.relative_scale),
        precision="bf16" if compute == "bf16" else "fp32",
        gradient_checkpointing=args.gradient_checkpointing,
        **{name: value for name, value in said.items() if value is not None},
    )


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from .. import storage
    from ..train import loop, lora, plan
    from ..train.loss import NoiseSchedule
    from ..train.tensor_file import BadTensorFile

    _check_writable(args.out)
    stopped = args.out.with_suffix(".stopped.safetensors")
    if args.resume and not stopped.is_file():
        raise BadTensorFile(f"There is no stopped run to go on with: {stopped} is missing. Leave out --resume.")
    subjects = storage.read_subjects(args.dataset)
    priors = None if args.priors is None else storage.read_subjects(args.priors)
    on = device(args)
    checkpoint = open_base(args, on)
    settings = config(args, checkpoint.side, precision(args, on))
    with talk.progress("encoding") as progress:
        drawn = plan.make_plan(
            subjects,
            settings,
            checkpoint.encode_image,
            checkpoint.encode_text,
            priors=priors,
            on_step=lambda stage, done, total: progress(done, total, stage),
            cache_dir=args.cache,
        )
    checkpoint.release_encoders()
    with talk.progress("training") as progress:
        trained = loop.train(
            checkpoint.unet,
            drawn,
            settings,
            NoiseSchedule.of(checkpoint.scheduler, checkpoint.latent_scale),
            on_step=lambda done, total, loss: progress(done, total, f"loss {loss:.3f}"),
            resume=stopped if args.resume else None,
            checkpoint=stopped,
        )
    about = lora.lora_metadata(settings, subjects, base=checkpoint.name, plan_hash=drawn.plan_hash)
    lora.save_lora(args.out, trained.state, about)
    stopped.unlink(missing_ok=True)
    last = trained.losses[-max(1, len(trained.losses) // 10) :]
    return Answer(
        f"{args.out}: a LoRA for {_named(subjects)}, {settings.steps} steps of {settings.method}, "
        f"{args.out.stat().st_size / 1e6:.1f} MB. Prompt it with those names.",
        {
            "lora": str(args.out),
            "method": settings.method,
            "steps": settings.steps,
            "seed": settings.seed,
            "layers": len(trained.state) // 3,
            "loss": sum(last) / len(last),
            "plan_hash": drawn.plan_hash,
        },
    )


def _check_writable(out: Path) -> None:
    """Find out before an hour of training, not after it."""
    from ..train.tensor_file import BadTensorFile

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
