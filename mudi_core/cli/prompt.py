"""`prompt`: the subjects of a LoRA or a dataset in words."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..stage.captions import SENTENCE, STYLES
from .options import add_command
from .talk import Answer, Talk


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "prompt",
        run,
        summary="who a LoRA knows, as a prompt",
        description="Writes the prompt that names every subject by its token and class noun, read from a LoRA's own "
        "metadata or from a dataset, and the paper's negative prompt.",
        example='python -m mudi_core prompt "playing in the snow" --lora dogs.safetensors --kind dogs',
    )
    parser.add_argument(
        "text",
        nargs="?",
        default="",
        metavar="TEXT",
        help='what they do, or a whole text with {subjects} in it (default: "a photo of {subjects}")',
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lora", type=Path, metavar="FILE", help="a file from train, which names its subjects")
    source.add_argument("--dataset", type=Path, metavar="DATASET", help="the subjects")
    parser.add_argument(
        "--kind", default="", metavar="NOUN", help='what they are together: "dogs" begins with "2 dogs:"'
    )
    parser.add_argument(
        "--captions",
        choices=tuple(STYLES),
        help="how the subjects are named (default: as the LoRA was taught; sentence for a dataset)",
    )
    parser.add_argument(
        "--every-order", action="store_true", help="a prompt for every order of the subjects, one per line"
    )


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..lora.metadata import read_lora_subjects
    from ..subjects import storage
    from ..subjects.prompt import NEGATIVE, write_prompts

    talk.on_disk = "Prompts are not written to files."
    known = None if args.lora is None else read_lora_subjects(args.lora)
    subjects = () if known is not None else storage.read_subjects(args.dataset, packed=True)
    names = [subject.name for subject in subjects] if known is None else known.names
    style = args.captions or (SENTENCE if known is None else known.captions)
    prompts = write_prompts(names, args.text, args.kind, args.every_order, style)
    data: dict[str, Any] = {"prompts": prompts, "negative_prompt": NEGATIVE, "subjects": names, "captions": style}
    if known is not None:
        talk.say(f"{args.lora}: {', '.join(names)}; trained on {known.base} at {known.size[0]}x{known.size[1]} px.")
        data |= {"base": known.base, "size": list(known.size)}
    return Answer("\n".join(prompts), data)
