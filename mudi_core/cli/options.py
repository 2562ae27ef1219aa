"""Options that several commands share, and the values that they become."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bases.families import EMBEDDED, usual
from ..types import MudiError
from .talk import Talk

if TYPE_CHECKING:
    import torch

    from ..bases.checkpoint import Checkpoint
    from ..eyes import Detector, Embedder, Role, Segmenter, TextScorer


class BadDevice(MudiError):
    """A device that this machine does not have."""


def add_command(
    commands: Any, name: str, run: Any, *, summary: str, example: str, description: str
) -> argparse.ArgumentParser:
    """Add a command with the options that all commands have, and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 80),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of text")
    parser.set_defaults(run=run)
    return parser


def add_base(parser: argparse.ArgumentParser, use: str) -> None:
    """Add --base; ``use``: what the base model is for, in the help."""
    parser.add_argument("--base", required=True, metavar="mini|FILE", help=use)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1, mps"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="number format for weights and computing; default: bf16 on a GPU, else fp32",
    )


def add_seed(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --seed; ``what``: what depends on it, in the help."""
    parser.add_argument("--seed", type=int, default=0, help=f"{what} (default: 0); the same seed gives the same result")


def add_models(parser: argparse.ArgumentParser, *kinds: Role, threshold: str = "") -> None:
    """Add the options that choose models. ``kinds``: roles such as "detector", "segmenter", "embedder".

    ``threshold``: the default of the command, in words.
    """
    from ..eyes import eyes

    for kind in kinds:
        known = list(eyes(kind))
        parser.add_argument(
            f"--{kind}",
            metavar="NAME",
            help=f"{', '.join(known)}; default: {usual(EMBEDDED).eye} with --base {EMBEDDED}, else {known[0]}",
        )
    add_weights(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        default=None if threshold else 0.25,
        help=f"least confidence of the detector, 0..1 (default: {threshold or 0.25}): a lower value "
        "finds more, a higher value only what is more certain",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add --models and --download."""
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="folder of their weights (default: $MUDI_MODELS, or ~/.cache/mudi)"
    )
    parser.add_argument(
        "--download", action="store_true", help="download missing weights; without this nothing is downloaded"
    )


def relative_scale(text: str) -> dict[str, float]:
    """Read "olis:hta=1:2" as {"olis": 1, "hta": 2}."""
    from ..stage.layout_config import BadRelativeScale, parse_relative_scale

    try:
        return parse_relative_scale(text)
    except BadRelativeScale as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def device(args: argparse.Namespace) -> torch.device:
    """Return the device asked for. Raise `BadDevice` when it does not exist."""
    import torch

    wanted = args.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=wanted)
        return torch.device(wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadDevice(f"There is no device '{wanted}' here ({reason}). Use --device cpu, or auto.") from None


def precision(args: argparse.Namespace, on: torch.device) -> str:
    """Return "fp32" or "bf16": what was asked for, or the usual one of the device."""
    return str(args.precision or ("bf16" if on.type == "cuda" and usual(args.base).bf16 else "fp32"))


def open_base(args: argparse.Namespace, on: torch.device, unet_on: torch.device | None = None) -> Checkpoint:
    """Open the base model in the precision asked for. ``unet_on``: another device for its U-Net.

    Raise `MissingCheckpoint` or `sdxl.BadCheckpointFile`.
    """
    import torch

    from ..bases.checkpoint import open_checkpoint

    _no_foreign_bars()
    return open_checkpoint(args.base, on, torch.bfloat16 if precision(args, on) == "bf16" else torch.float32, unet_on)


def base_and_eyes(args: argparse.Namespace, talk: Talk, *roles: Role) -> tuple[Checkpoint, list[Any]]:
    """Open the base model and load the eyes of these roles, in their order, all on the device asked for.

    The eyes come first: they may be missing, and a base model takes its time. Raise as `open_base` and `load_detector`
    do.
    """
    load = {"detector": load_detector, "segmenter": load_segmenter, "embedder": load_embedder}
    on = device(args)
    found = [load[role](args, on, talk) for role in roles]
    return open_base(args, on), found


def load_detector(args: argparse.Namespace, on: torch.device, talk: Talk) -> Detector:
    """Load the detector asked for, or the usual one. Raise `MissingWeights`, `BadWeights` or `DownloadFailed`."""
    from .. import eyes

    return eyes.load_detector(*_chosen(args, "detector", talk), on)


def load_segmenter(args: argparse.Namespace, on: torch.device, talk: Talk) -> Segmenter:
    """Load the segmenter asked for, or the usual one. Raise as `load_detector` does."""
    from .. import eyes

    return eyes.load_segmenter(*_chosen(args, "segmenter", talk), on)


def load_embedder(args: argparse.Namespace, on: torch.device, talk: Talk) -> Embedder:
    """Load the embedder asked for, or the usual one. Raise as `load_detector` does."""
    from .. import eyes

    return eyes.load_embedder(*_chosen(args, "embedder", talk), on)


def load_text_scorer(args: argparse.Namespace, on: torch.device, talk: Talk) -> TextScorer:
    """Load the text scorer asked for, or the usual one. Raise as `load_detector` does."""
    from .. import eyes

    return eyes.load_text_scorer(*_chosen(args, "text scorer", talk), on)


def _chosen(args: argparse.Namespace, role: Role, talk: Talk) -> tuple[str, Path | None]:
    """Return the name asked for, or the usual one of the base model, and the path of its weights."""
    from ..eyes import eyes

    known, name = eyes(role), getattr(args, role.replace(" ", "_")) or usual_eye(args, role)
    return name, _weights(args, known[name].weights if name in known else None, talk)


def usual_eye(args: argparse.Namespace, role: Role) -> str:
    """Return the usual model of a role: the embedded one for the embedded base model, else the first in the table."""
    from ..eyes import eyes

    return usual(args.base).eye or next(iter(eyes(role)))


def _no_foreign_bars() -> None:
    """Turn off the progress bars of libraries, which would stand between ours."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _weights(args: argparse.Namespace, name: str | None, talk: Talk) -> Path | None:
    if name is None:
        return None
    from ..eyes import weights

    _no_foreign_bars()

    folders = () if args.models is None else (args.models,)
    if not args.download:
        return weights.locate(name, folders)
    with talk.progress(f"fetching {name}") as progress:
        return weights.locate(name, folders, download=True, on_step=progress)
