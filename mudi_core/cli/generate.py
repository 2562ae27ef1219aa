"""`generate`: a LoRA and a dataset into pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_base, add_command, add_device, add_precision, add_seed, device, open_base, relative_scale
from .talk import Answer, Talk

if TYPE_CHECKING:
    from ..bases.checkpoint import Checkpoint
    from ..jobs.generate import GenerateConfig
    from ..stage.layout_text import Place
    from ..types import SubjectSet


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "generate",
        run,
        summary="pictures of all subjects",
        description="Makes pictures that start from noise shifted towards the subjects' cut-outs, at random or given "
        "places, so that each keeps its own looks. The same seed gives the same noise and places with any LoRA.",
        example="python -m mudi_core generate --base mini --lora dogs.safetensors --dataset dogs --out pictures "
        '--prompt "a photo of olis dog and hta dog, in the meadow"',
    )
    add_base(parser, "the model that the LoRA was trained on: mini, an SDXL .safetensors file, or a diffusers folder")
    _add_trained(parser)
    parser.add_argument(
        "--dataset", type=Path, required=True, metavar="DATASET", help="the subjects and their cut-outs"
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help='names every subject, "olis corgi and hta cat on a beach" or "{subjects} on a beach" (default: just the '
        "names)",
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help='default: "sticker, collage" (SDXL), nothing (mini)')
    parser.add_argument(
        "--gamma",
        type=float,
        metavar="G",
        help="strength of the start: 0 is plain noise, 2 is for two or three subjects, 3 for more (default: by number)",
    )
    parser.add_argument(
        "--layout",
        default="random",
        metavar="HOW|TEXT|FILE",
        help="random (default), row, grid, ask (a language model, see --llm), or boxes by token in 0..1 or 0..1000, or "
        'a file of them: \'{"olis": [0, 0.2, 0.45, 1], "hta": {"box": [0.5, 0, 1, 1], "mirror": true}}\'',
    )
    parser.add_argument(
        "--relative-scale",
        type=relative_scale,
        metavar="A:B=1:2",
        help="heights by token or class noun, when no boxes are given",
    )
    parser.add_argument(
        "--photos",
        default="random",
        metavar="CHOICE",
        help="which photo of each subject stands there: random (default), best (whole and largest), or "
        "olis:hta=#1:#3, counted from 1 (a number without # counts from 0, as in older versions)",
    )
    parser.add_argument("--mirror", action="store_true", help="mirror cut-outs at random, by the seed")
    parser.add_argument(
        "--rotation", type=float, default=0.0, metavar="DEG", help="rotate each cut-out by up to this (default: 0)"
    )
    _add_llm(parser)
    _add_sampling(parser)
    add_seed(parser, "of noise and places")
    add_precision(parser)
    add_device(parser)


def _add_trained(parser: argparse.ArgumentParser) -> None:
    """Add the options of what was trained."""
    parser.add_argument("--lora", type=Path, metavar="FILE", help="from train (default: none, only the base model)")
    parser.add_argument("--lora-scale", type=float, default=1.0, metavar="X", help="its strength (default: 1)")
    parser.add_argument(
        "--residual",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="from residual: the prompt then names the subjects by their class nouns; equal nouns are files in order",
    )


def _add_llm(parser: argparse.ArgumentParser) -> None:
    """Add the options of the language model that is asked for a layout."""
    parser.add_argument(
        "--llm",
        default="",
        metavar="URL",
        help="OpenAI-compatible endpoint for --layout ask (default: $MUDI_LLM_URL, or Ollama's on this machine; a key "
        "is read from $MUDI_LLM_KEY)",
    )
    parser.add_argument(
        "--llm-model", default="", metavar="NAME", help="model of the endpoint (default: the first that it lists)"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options for number, size, steps and folder of the pictures."""
    parser.add_argument("--count", type=int, default=4, metavar="N", help="how many pictures (default: 4)")
    parser.add_argument("--batch", type=int, metavar="N", help="how many at once (default: 1; mini: 8)")
    parser.add_argument("--steps", type=int, metavar="N", help="sampler steps (default: 50; mini: 20)")
    parser.add_argument("--guidance", type=float, metavar="X", help="how closely to follow the prompt; 1 is least")
    parser.add_argument("--size", type=size, metavar="WxH", help="pixels, multiples of 8 (default: the model's)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the PNGs and generate.json")


def size(text: str) -> tuple[int, int]:
    """Read "1024x768" as (1024, 768)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} should look like 1024x768, in pixels")
    return int(width), int(height)


def config(args: argparse.Namespace, subjects: SubjectSet, checkpoint: Checkpoint) -> GenerateConfig:
    """Return the usual settings for the base model with the user's settings in their place."""
    from ..jobs.generate import GenerateConfig
    from ..stage.cutouts import Poses, parse_photos
    from ..subjects.prompt import SUBJECTS, TEXT, with_article, write_prompt

    prompt = (args.prompt or "").strip() or TEXT
    if SUBJECTS in prompt:
        names = [with_article(one.class_noun) if args.residual else one.name for one in subjects]
        prompt = write_prompt(names, prompt, style=_style(args.lora))
    start = GenerateConfig.usual(checkpoint.usual, prompt, len(subjects))
    chosen = {
        "gamma": args.gamma,
        "batch_size": args.batch,
        "steps": args.steps,
        "guidance": args.guidance,
        "size": args.size,
        "negative_prompt": args.negative_prompt,
    }
    config = replace(
        start,
        count=args.count,
        seed=args.seed,
        layout=replace(start.layout, relative_scale=args.relative_scale),
        arrangement=args.layout if args.layout in ("row", "grid") else "random",
        poses=Poses(parse_photos(args.photos), args.mirror, args.rotation),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    if config.negative_prompt is None:
        config = replace(config, negative_prompt=checkpoint.negative_prompt)
    side = checkpoint.side
    return replace(config, places=places(args, subjects, config.prompt, config.size or (side, side)))


def _style(lora: Path | None) -> str:
    """Return the style of captions that a LoRA was taught; sentences without one, or when its file says nothing."""
    from ..lora.metadata import UnknownLora, read_lora_subjects
    from ..stage.captions import SENTENCE

    try:
        return SENTENCE if lora is None else read_lora_subjects(lora).captions
    except UnknownLora:
        return SENTENCE


def places(
    args: argparse.Namespace, subjects: SubjectSet, prompt: str, size: tuple[int, int]
) -> dict[str, Place] | None:
    """Return the places that the user wrote, or those from a language model; None when there are none."""
    from ..files import read_text
    from ..stage.ask import ask_layout
    from ..stage.endpoint import Endpoint
    from ..stage.layout_text import parse_places

    if args.layout in ("random", "row", "grid"):
        return None
    if args.layout == "ask":
        names = [subject.name for subject in subjects]
        return ask_layout(names, prompt, size, Endpoint(args.llm, args.llm_model), args.seed)
    is_file = not args.layout.lstrip().startswith("{")
    return parse_places(read_text(Path(args.layout)) if is_file else args.layout)


@contextmanager
def _wearing(checkpoint: Checkpoint, path: Path | None, scale: float) -> Iterator[None]:
    """Inside the block a base model wears a LoRA of any program. Raise `BadLora`."""
    from ..jobs.fuse_checkpoint import wearing
    from ..lora.adapter import apply_lora
    from ..lora.file import is_linear, state_of
    from ..lora.reading import read_lora

    if path is None:
        yield
        return
    lora = read_lora(path)
    if is_linear(lora):
        with apply_lora(checkpoint.unet, state_of(lora), scale):
            yield
        return
    with wearing(checkpoint, lora, scale):
        yield


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..bases.residual import load_residual
    from ..jobs.generate import draw_layout, generate
    from ..jobs.picture_folder import PictureFolder
    from ..lora.metadata import UnknownLora, read_lora_subjects
    from ..stage.cutouts import cut_outs, old_numbers
    from ..stage.layout import remarks
    from ..subjects import storage

    subjects = storage.read_subjects(args.dataset, packed=True)
    checkpoint = open_base(args, device(args))
    settings = config(args, subjects, checkpoint)
    for subject in subjects:
        if not args.residual and subject.token not in settings.prompt:
            talk.say(f"Warning: the prompt does not name '{subject.name}', so this subject may not appear.")
    if args.lora is not None:
        try:
            known = read_lora_subjects(args.lora)
            for doubt in known.disagreements([subject.name for subject in subjects]):
                talk.say(f"Warning: {doubt}")
        except UnknownLora as error:
            talk.say(f"Warning: {error}")
    size = settings.size or (checkpoint.side, checkpoint.side)
    cutouts = cut_outs(subjects, max_side=max(size))
    if old := old_numbers(args.photos):
        talk.say(f"Note: {old}")
    for remark in remarks(draw_layout(cutouts, settings, 0, size), subjects.tokens):
        talk.say(f"Warning: {remark}")
    residuals = [load_residual(path) for path in args.residual]
    with _wearing(checkpoint, args.lora, args.lora_scale):
        of = {"residuals": " ".join(map(str, args.residual))} if args.residual else {}
        folder = PictureFolder(args.out, settings, {"base": checkpoint.name, "lora": str(args.lora or ""), **of})
        with talk.progress("sampling") as progress:
            for picture in generate(checkpoint, cutouts, settings, progress, residuals):
                folder.add(picture)
                talk.on_disk = f"{len(folder.written)} of {settings.count} pictures are in {args.out}."
    return Answer(
        f"{args.out}: {settings.count} pictures, '{settings.prompt}', gamma {settings.gamma:g}, seed {settings.seed}.",
        {**folder.settings, "out": str(args.out), "pictures": folder.written},
    )
