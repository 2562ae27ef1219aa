"""`from-loras`: pictures of each subject, painted by its own LoRA, into a dataset for `train --on`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from .loras import add_loras, concepts_of
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
        "from-loras",
        run,
        summary="subjects from LoRAs of single subjects, for train --on",
        description="Paints each subject by its own LoRA, of any program, and keeps the pictures that show it exactly "
        "once and are most like each other. The dataset is what train needs to decouple the subjects in a fusion of "
        "these LoRAs, where nobody has the photos they were trained on.",
        example="python -m mudi_core from-loras rex.safetensors bella.safetensors --base mini --out dogs",
    )
    add_loras(parser, "LoRA files for this base model, one for each subject")
    add_base(parser, "the model that they are for: mini, an SDXL .safetensors file, or a diffusers folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET", help="folder of the pictures and masks")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="pictures of each subject (default: 8)")
    parser.add_argument(
        "--spare", type=int, default=4, metavar="N", help="more to choose the most alike from (default: 4)"
    )
    parser.add_argument(
        "--scene",
        action="append",
        metavar="TEXT",
        help="what follows the name in the prompts, such as 'in the snow'; give it several times (default: seven)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="sampler steps (default: 50; mini: 20)")
    add_models(parser, "detector", "segmenter", "embedder", threshold="0.25; mini: 0.03")
    add_seed(parser, "of the pictures")
    add_precision(parser)
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..jobs.from_loras import PicturesConfig, paint_subjects
    from ..jobs.fuse_checkpoint import painting
    from ..jobs.generate import GenerateConfig
    from ..lora.concepts import check_concepts
    from ..subjects import storage
    from ..subjects.prompt import SCENES

    config = PicturesConfig(args.count, args.spare, tuple(args.scene or SCENES), args.seed)
    concepts = concepts_of(args)
    check_concepts(concepts, least=1)
    checkpoint, (detector, segmenter, embedder) = base_and_eyes(args, talk, "detector", "segmenter", "embedder")
    usual = checkpoint.usual.photo_threshold
    config = replace(config, threshold=usual if args.threshold is None else args.threshold)
    picture = GenerateConfig.usual(checkpoint.usual, "", 1)
    paint = painting(checkpoint, replace(picture, steps=args.steps or picture.steps))
    painted = paint_subjects(concepts, paint, detector, segmenter, embedder, config, talk.progress)
    folder = storage.write_subjects(painted.subjects, args.out)
    return Answer(
        " ".join([f"{args.out}:", *painted.told()]),
        {
            "dataset": str(folder),
            "subjects": [subject.name for subject in painted.subjects],
            "kept": [list(one) for one in painted.kept],
            "left_out": [list(one) for one in painted.left_out],
        },
    )
