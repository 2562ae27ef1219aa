"""Options that several commands share, and what becomes of them."""

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
    """A command with what all have in common."""
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
    parser.add_argument("--base", required=True, metavar="mini|FILE", help=use)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1, mps"
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="of the base model's weights and of computing; default: bf16 on a GPU, else fp32",
    )


def add_seed(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"{what} (default: 0); the same seed gives the same result")


def add_models(parser: argparse.ArgumentParser, *kinds: Role, threshold: str = "") -> None:
    """``kinds`` of "detector", "segmenter", "embedder"; ``threshold``: a default of the command, in words."""
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
        help=f"least confidence of the detector, 0..1 (default: {threshold or 0.25}): lower finds more, higher finds "
        "surer",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="where their weights lie (default: $MUDI_MODELS, or ~/.cache/mudi)"
    )
    parser.add_argument("--download", action="store_true", help="fetch weights that are missing; without it nothing is")


def relative_scale(text: str) -> dict[str, float]:
    """ "olis:hta=1:2" as {"olis": 1, "hta": 2}."""
    from ..stage.layout_config import BadRelativeScale, parse_relative_scale

    try:
        return parse_relative_scale(text)
    except BadRelativeScale as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def device(args: argparse.Namespace) -> torch.device:
    """The device asked for. Raise `BadDevice` when it is not there."""
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
    """ "fp32" or "bf16"."""
    return str(args.precision or ("bf16" if on.type == "cuda" and usual(args.base).bf16 else "fp32"))


def open_base(args: argparse.Namespace, on: torch.device, unet_on: torch.device | None = None) -> Checkpoint:
    """The base model asked for, in the precision asked for; its U-Net elsewhere if ``unet_on`` says so."""
    import torch

    from ..bases.checkpoint import open_checkpoint

    _no_foreign_bars()
    return open_checkpoint(args.base, on, torch.bfloat16 if precision(args, on) == "bf16" else torch.float32, unet_on)


def load_detector(args: argparse.Namespace, on: torch.device, talk: Talk) -> Detector:
    from .. import eyes

    return eyes.load_detector(*_chosen(args, "detector", talk), on)


def load_segmenter(args: argparse.Namespace, on: torch.device, talk: Talk) -> Segmenter:
    from .. import eyes

    return eyes.load_segmenter(*_chosen(args, "segmenter", talk), on)


def load_embedder(args: argparse.Namespace, on: torch.device, talk: Talk) -> Embedder:
    from .. import eyes

    return eyes.load_embedder(*_chosen(args, "embedder", talk), on)


def load_text_scorer(args: argparse.Namespace, on: torch.device, talk: Talk) -> TextScorer:
    from .. import eyes

    return eyes.load_text_scorer(*_chosen(args, "text scorer", talk), on)


def _chosen(args: argparse.Namespace, role: Role, talk: Talk) -> tuple[str, Path | None]:
    """The name that was asked for, or the usual one of the base model, and where its weights lie."""
    from ..eyes import eyes

    known, name = eyes(role), getattr(args, role.replace(" ", "_")) or usual_eye(args, role)
    return name, _weights(args, known[name].weights if name in known else None, talk)


def usual_eye(args: argparse.Namespace, role: Role) -> str:
    """What looks at this base model's pictures: the embedded model's own at its own, else the first of the table."""
    from ..eyes import eyes

    return usual(args.base).eye or next(iter(eyes(role)))


def _no_foreign_bars() -> None:
    """The libraries' own progress bars would stand between ours."""
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
