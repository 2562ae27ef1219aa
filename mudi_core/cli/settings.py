"""The settings of learning in `train`: its options, and the settings that options and presets make."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..stage.captions import STYLES
from .options import relative_scale

if TYPE_CHECKING:
    from ..bases.families import Family
    from ..train.config import TrainConfig

SETTINGS: dict[str, tuple[str, type, str, str]] = {
    "--steps": ("steps", int, "N", "optimizer steps (default: 1200; 1400-1600 for fine detail)"),
    "--batch": ("batch_size", int, "N", "samples that the U-Net sees at once (default: 2)"),
    "--accumulation": ("accumulation", int, "N", "batches per step, for each process (default: 1)"),
    "--learning-rate": ("learning_rate", float, "X", "default: 1e-4; with --optimizer prodigy 1"),
    "--lr-warmup": ("lr_warmup", int, "N", "steps in which the learning rate rises (default: 0)"),
    "--weight-decay": ("weight_decay", float, "X", "share of a weight lost in a step (default: 1e-4)"),
    "--max-grad-norm": ("max_grad_norm", float, "X", "longer gradients are shortened to it (default: 1; 0: never)"),
    "--save-every": ("save_every", int, "N", "steps between two saves of the LoRA so far (default: 0, never)"),
    "--preview-every": ("preview_every", int, "N", "steps between two previews with scores (default: 0, none)"),
    "--rank": ("rank", int, "N", "size of the LoRA (default: 32)"),
    "--alpha": ("alpha", float, "X", "the LoRA is scaled by alpha / rank (default: the rank)"),
    "--resolution": ("resolution", int, "PX", "side of the training images (default: the model's)"),
    "--segmix-prob": ("segmix_prob", float, "X", "share of compositions, 0..1 (default: 0.3)"),
    "--segmix-start-step": ("segmix_start_step", int, "N", "first step with a composition (default: 0)"),
    "--black-canvas": ("black_canvas", float, "X", "share of compositions on black, not white, 0..1 (default: 0)"),
    "--background-weight": ("background_weight", float, "X", "loss outside the subjects, 0..1 (default: 1)"),
    "--dco-beta": (
        "dco_beta",
        float,
        "X",
        "strength of DCO, the default loss (default: 1000; 0: the paper's)",
    ),
    "--kl-weight": ("kl_weight", float, "X", "stay close to the base model's predictions (default: 0, off)"),
    "--prior-loss-weight": ("prior_loss_weight", float, "X", "weight of the --priors (default: 1)"),
    "--min-snr-gamma": (
        "min_snr_gamma",
        float,
        "X",
        "caps the weight of steps with little noise; 5 is common (default: off)",
    ),
    "--noise-offset": ("noise_offset", float, "X", "shifts whole channels; 0.05 is common (default: 0, off)"),
}
"""Options: the setting of each, its type, its unit and its help."""
CHOICES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "--optimizer": (
        "optimizer",
        ("adamw", "adamw8bit", "prodigy"),
        "default: adamw; the others need their own packages",
    ),
    "--lr-schedule": ("lr_schedule", ("constant", "linear", "cosine"), "of the learning rate (default: constant)"),
    "--base-weights": ("base_weights", ("full", "fp8", "int8", "nf4"), "format of the frozen U-Net (default: full)"),
    "--gradient-checkpointing": (
        "gradient_checkpointing",
        ("auto", "off", "selective", "full"),
        "compute cheap values, or all, twice to use less memory (default: auto, as much as the card needs)",
    ),
    "--captions": (
        "captions",
        tuple(STYLES),
        "how captions of compositions, and of photos without one, are written (default: sentence; tags for "
        "SDXL that predicts v, such as NoobAI)",
    ),
}
SWITCHES: dict[str, tuple[str, str]] = {
    "--buckets": ("buckets", "train photos near their own aspect instead of square"),
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add every setting of a training as an option, and the presets."""
    parser.add_argument(
        "--preset",
        choices=("quick look", "standard", "paper", "official code", "decouple", "iterate"),
        help="settings for learning: few steps; a falling learning rate; the paper's loss, which needs --priors; the "
        "official code's, DCO (default); for a model that knows the subjects by a LoRA given as --on: decouple, on "
        "compositions alone, and iterate, on pictures of its own",
    )
    parser.add_argument(
        "--memory",
        type=_gigabytes,
        metavar="GB",
        help="settings for a card of 6, 8, 12, 16 or 24 GB (calculated for SDXL at 1024 px); default: none",
    )
    parser.add_argument(
        "--method",
        choices=("segmix", "dreambooth", "cutmix"),
        default="segmix",
        help="segmix (default); dreambooth: only photos; cutmix: hard halves instead of cut-outs",
    )
    parser.add_argument(
        "--relative-scale",
        type=relative_scale,
        metavar="A:B=1:2",
        help='heights in compositions, e.g. "olis:hta=1:2" when hta is twice as tall (default: all about alike)',
    )
    parser.add_argument(
        "--caption-template",
        default="",
        metavar="TEXT",
        help='your own caption of compositions: "{count}, {subjects}, {background} background, pasted"; {subjects} are '
        "the names, {classes} the class nouns (default: that of --captions)",
    )
    for option, (name, kind, metavar, words) in SETTINGS.items():
        parser.add_argument(option, dest=name, type=kind, metavar=metavar, help=words)
    for option, (name, choices, words) in CHOICES.items():
        parser.add_argument(option, dest=name, choices=choices, help=words)
    for option, (name, words) in SWITCHES.items():
        parser.add_argument(option, dest=name, action="store_true", default=None, help=words)
    parser.add_argument(
        "--target-modules", nargs="+", metavar="NAME", help="layers that get a LoRA (default: to_k to_q to_v to_out.0)"
    )


def _gigabytes(text: str) -> int:
    """Read "12", "12GB" or "12 GB" as 12, when there is a preset for it."""
    from ..train.memory import UnknownMemory, check_card

    number = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:GB)?\s*", text, re.IGNORECASE | re.ASCII)
    try:
        check_card(int(number[1]) if number else text)
    except UnknownMemory as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    assert number is not None
    return int(number[1])


def train_config(args: argparse.Namespace, usual: Family, side: int, compute: str) -> TrainConfig:
    """Return the usual settings for the kind of base model, then presets, then the user's own settings."""
    from ..train.config import GOING_ON, PRESETS, TrainConfig
    from ..train.memory import memory_settings
    from ..train.parts import PRODIGY_RATE

    start = TrainConfig.usual(usual, resolution=side)
    preset = ({**PRESETS, **GOING_ON}[args.preset] if args.preset else {}) | (
        memory_settings(args.memory) if args.memory else {}
    )
    names = [row[0] for table in (SETTINGS, CHOICES, SWITCHES) for row in table.values()]
    chosen: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if chosen.get("optimizer") == "prodigy":
        chosen.setdefault("learning_rate", PRODIGY_RATE)
    if args.target_modules:
        chosen["target_modules"] = tuple(args.target_modules)
    return start.but(
        method=args.method,
        seed=args.seed,
        layout=replace(start.samples.layout, relative_scale=args.relative_scale),
        caption_template=args.caption_template,
        **(preset | {"precision": compute} | chosen),
    )
