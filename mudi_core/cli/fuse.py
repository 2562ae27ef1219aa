"""`fuse`: LoRAs of single subjects become one LoRA that makes all of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .loras import add_loras, concepts_of
from .options import add_base, add_command, add_device, add_precision, add_seed, device, open_base
from .talk import Answer, Talk

if TYPE_CHECKING:
    from ..jobs.fusion import Fused
    from ..lora.concepts import Concept


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "fuse",
        run,
        summary="LoRAs of single subjects become one",
        description="Fuses LoRAs of any program, each of a subject of its own, into one LoRA whose layers answer to "
        "each subject as that subject's LoRA does (gradient fusion, in closed form). Loaded one after the other they "
        "would disturb each other. For every subject it reports the error of that plain sum, and of the fusion.",
        example="python -m mudi_core fuse rex.safetensors bella.safetensors --base mini --out both.safetensors",
    )
    add_loras(parser, "two or more LoRA files for this base model")
    add_base(parser, "the model that they are for: mini, an SDXL or SD .safetensors file, or a diffusers folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the LoRA, ending in .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument(
        "--method",
        choices=("fuse", "text", "sum"),
        default="fuse",
        help="fuse: every layer; text: only text encoders and the layers that read the text, without pictures; sum: "
        "add up all, as loaders do (default: fuse)",
    )
    parser.add_argument(
        "--rank", type=int, default=0, metavar="N", help="most ranks of a layer; 0: all, exact (default)"
    )
    parser.add_argument("--pictures", type=int, default=1, metavar="N", help="pictures to listen on, each (default: 1)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="sampler steps of each (default: 20)")
    parser.add_argument("--rows", type=int, default=4096, metavar="N", help="inputs kept per picture (default: 4096)")
    parser.add_argument("--ridge", type=float, metavar="R", help="share of regularization (default: 1e-3, texts 1e-6)")
    add_seed(parser, "of the pictures")
    add_precision(parser)
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..jobs.fuse_checkpoint import fuse_to_file
    from ..jobs.fusion import FuseConfig
    from ..lora.concepts import check_concepts
    from .lora_output import OutputExists

    if args.out.exists() and not args.overwrite:
        raise OutputExists(f"{args.out} already exists. Choose another name with --out, or give --overwrite.")
    config = FuseConfig(args.method, args.rank, args.pictures, args.steps, args.rows, args.ridge, args.seed)
    concepts = concepts_of(args)
    check_concepts(concepts)
    checkpoint = open_base(args, device(args))
    fused = fuse_to_file(concepts, checkpoint, config, args.out, talk.progress)
    for concept, matched in zip(concepts, fused.matched, strict=True):
        talk.say(f"{concept.lora.name}: {matched.told()}")
    return Answer(_told(args.out, concepts, fused), _data(args.out, concepts, fused))


def _told(out: Path, concepts: Sequence[Concept], fused: Fused) -> str:
    lines = [f"{out}: {len(fused.changes)} layers."]
    if fused.added_up:
        lines.append(f"{fused.added_up} of them are added up as loaders do.")
    errors = fused.relative()
    if errors is not None:
        each = zip(concepts, *errors, strict=True)
        lines += [f"{one.words}: error {plain:.2f} added up, {ours:.2f} fused." for one, plain, ours in each]
    return " ".join(lines)


def _data(out: Path, concepts: Sequence[Concept], fused: Fused) -> dict[str, Any]:
    errors = fused.relative()
    return {
        "lora": str(out),
        "layers": len(fused.changes),
        "added_up": fused.added_up,
        "subjects": [concept.words for concept in concepts],
        "error_of_sum": None if errors is None else list(errors[0]),
        "error": None if errors is None else list(errors[1]),
    }
