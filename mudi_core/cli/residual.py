"""`residual`: photos of subjects into residual token embeddings, for `generate --residual`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_base, add_command, add_device, add_precision, add_seed, device, open_base, precision
from .talk import Answer, Talk


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "residual",
        run,
        summary="a dataset into residual token embeddings (Cones 2)",
        description="Trains, for each subject of a dataset, what is added to the text at its class noun: a file of a "
        "few KB. The model stays as it is, and several subjects need no training together. For this the text encoders "
        "are tuned on the photos and then thrown away; for SDXL that takes about 12 GB beside the model (reckoned).",
        example="python -m mudi_core residual dogs --base mini --out residuals",
    )
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="folder made by prepare, or of the official format"
    )
    add_base(parser, "mini, an SDXL, SD 1.5 or SD 2 .safetensors file, or a folder in diffusers' layout")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the files, each with its subject's token"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="default: 4000, as the authors; mini: 200")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="default: 5e-6, as the authors; mini: 1e-3")
    parser.add_argument("--batch-size", type=int, metavar="N", help="photos in a step (default: 1; mini: 4)")
    parser.add_argument("--resolution", type=int, metavar="PX", help="of the photos (default: the model's)")
    parser.add_argument("--overwrite", action="store_true", help="train what is there already, and replace it")
    add_seed(parser, "of every random choice")
    add_precision(parser)
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..bases.residual import save_residual
    from ..bases.text import CheckpointText
    from ..jobs.residual import residual_config, train_residual
    from ..subjects import storage

    subjects = storage.read_subjects(args.dataset, packed=True)
    on = device(args)
    checkpoint = open_base(args, on)
    given = {name: getattr(args, name) for name in ("steps", "learning_rate", "batch_size", "resolution")}
    chosen = {"resolution": checkpoint.side, **{name: one for name, one in given.items() if one is not None}}
    config = residual_config(checkpoint.usual, **{**chosen, "seed": args.seed, "precision": precision(args, on)})
    files: dict[str, Path] = {subject.token: args.out / f"{subject.token}.safetensors" for subject in subjects}
    for subject in subjects:
        file = files[subject.token]
        if file.is_file() and not args.overwrite:
            talk.say(f"{file} is there already; --overwrite trains it again.")
            continue
        made = train_residual(checkpoint, CheckpointText(checkpoint), subject, config, progress=talk.progress)
        save_residual(file, made.residual)
        talk.on_disk = f"{file} is written."
    nouns = " and ".join(f"a {subject.class_noun}" for subject in subjects)
    return Answer(
        f"{args.out}: residual tokens of {', '.join(subjects.tokens)}. Name them by their class nouns, '{nouns}', in "
        f"generate --residual {' '.join(str(file) for file in files.values())}",
        {"residuals": [str(file) for file in files.values()], "steps": config.samples.steps},
    )
