"""`priors`: pictures of other members of each class, made by the base model, into a dataset for `train --priors`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import (
    add_base,
    add_command,
    add_device,
    add_models,
    add_precision,
    add_seed,
    base_and_eyes,
)
from .talk import Answer, Talk


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "priors",
        run,
        summary="pictures of each class, for train --priors",
        description="Makes pictures of other members of each subject's class with the base model, for prior "
        "preservation: with them the model does not turn every corgi into yours. A picture is kept only when exactly "
        "one is detected and segmented in it.",
        example="python -m mudi_core priors dogs --base sdxl.safetensors --out dog-priors",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="the subjects, whose class nouns are used")
    add_base(parser, "the model that will be trained: mini, an SDXL .safetensors file, or a diffusers folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET", help="folder of the pictures and masks")
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="NOUN",
        help="further class nouns, for train --others: strangers of the subject's own class and of these",
    )
    parser.add_argument("--count", type=int, default=50, metavar="N", help="pictures of each class (default: 50)")
    parser.add_argument("--prompt", metavar="TEXT", help="prompt with {} for the class noun (default: the paper's)")
    parser.add_argument("--steps", type=int, metavar="N", help="sampler steps (default: 50; mini: 20)")
    add_models(parser, "detector", "segmenter", threshold="0.4; mini: 0.03")
    add_seed(parser, "of the pictures")
    add_precision(parser)
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..jobs import priors
    from ..subjects import storage

    subjects = storage.read_subjects(args.dataset, packed=True)
    checkpoint, (detector, segmenter) = base_and_eyes(args, talk, "detector", "segmenter")
    family = checkpoint.usual
    sample = priors.sampler(checkpoint, args.steps or None)
    wanted = priors.PriorsConfig(
        args.count,
        args.seed,
        family.photo_threshold if args.threshold is None else args.threshold,
        args.prompt or family.prior_prompt or priors.PROMPT,
        tuple(args.also),
    )
    with talk.progress("making pictures of each class") as progress:
        made = priors.make_priors(subjects, sample, detector, segmenter, wanted, progress)
    folder = storage.write_subjects(made, args.out)
    nouns = ", ".join(subject.class_noun for subject in made)
    return Answer(
        f"{args.out}: {args.count} pictures of each of {nouns}. Train with --priors {args.out}.",
        {"dataset": str(folder), "count": args.count, "class_nouns": [subject.class_noun for subject in made]},
    )
