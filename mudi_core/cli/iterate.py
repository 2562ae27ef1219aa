"""`iterate`: a LoRA of several subjects learns from the best of its own pictures, in rounds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import (
    add_base,
    add_command,
    add_device,
    add_models,
    add_precision,
    add_seed,
    base_and_eyes,
    precision,
)
from .talk import Answer, Talk

if TYPE_CHECKING:
    from torch import Tensor

    from ..bases.checkpoint import Checkpoint
    from ..bases.families import Family
    from ..jobs.best_pictures import Paint
    from ..jobs.iterate import IterateConfig, Iterated
    from ..jobs.train import LoraFiles
    from ..lora.reading import Lora
    from ..progress import Progress
    from ..train.config import TrainConfig
    from ..types import Comparison, SubjectSet


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "iterate",
        run,
        summary="a LoRA learns from the best of its own pictures",
        description="Makes pictures of all subjects with their LoRA, keeps the best of those that show every subject "
        "as itself, and trains on them on top of it, held to what it can do. After each round the same fresh prompts "
        "and seeds are scored; it stops by itself when they are no better. The same command goes on where it stopped.",
        example="python -m mudi_core iterate dogs --base mini --lora dogs.safetensors --out better",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="the subjects' photos and masks")
    add_base(parser, "the model that the LoRA was trained on: mini, an SDXL .safetensors file, or a diffusers folder")
    parser.add_argument("--lora", type=Path, required=True, metavar="FILE", help="a LoRA of all subjects")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="pictures, LoRAs, best.safetensors")
    for name, value, words in (
        ("--rounds", 3, "most rounds"),
        ("--count", 200, "pictures of a round"),
        ("--keep", 50, "of these are learned from"),
        ("--per-prompt", 0, "most of one prompt; 0: twice an even share"),
        ("--least", 10, "sound pictures without which it stops"),
        ("--checks", 32, "fresh pictures that a round is judged by"),
    ):
        parser.add_argument(name, type=int, default=value, metavar="N", help=f"{words} (default: {value})")
    for name, words in (("--prompt", "to learn from"), ("--fresh", "to check with")):
        parser.add_argument(
            name,
            action="append",
            metavar="TEXT",
            help=f"a prompt {words}, '{{subjects}} on a beach'; give it several times (default: simple scenes)",
        )
    parser.add_argument("--steps", type=int, metavar="N", help="training steps of a round (default: 250)")
    parser.add_argument("--rank", type=int, metavar="R", help="of each round's LoRA (default: as usual for the model)")
    parser.add_argument("--batch", type=int, metavar="N", help="images at once in training")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="default: as usual for the model")
    parser.add_argument("--kl-weight", type=float, metavar="W", help="how firmly it is held (default: 1, the paper's)")
    parser.add_argument("--picture-steps", type=int, metavar="N", help="sampler steps (default: 50; mini: 20)")
    add_models(parser, "detector", "embedder")
    parser.add_argument("--cut-out", action="store_true", help="compare with the cut-out subjects instead of photos")
    add_seed(parser, "of pictures and training")
    add_precision(parser)
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..jobs.iterate import iterate
    from ..score.compare import References, compare_all
    from ..subjects import storage

    subjects = storage.read_subjects(args.dataset, packed=True)
    checkpoint, (detector, embedder) = base_and_eyes(args, talk, "detector", "embedder")
    family = checkpoint.usual
    references = References(subjects, embedder, args.cut_out or family.cut_out)
    threshold = family.threshold if args.threshold is None else args.threshold

    def judge(pictures: Sequence[Tensor]) -> list[Comparison]:
        return list(compare_all(pictures, references, detector, embedder, threshold=threshold))

    model = _Model(checkpoint, subjects, args, talk.progress)
    made_of = {
        "base": checkpoint.name,
        "subjects": [[one.name, len(one.photos)] for one in subjects],
        "training": model.config.to_json(),
    }
    talk.on_disk = f"What is there is in {args.out}; the same command goes on."
    config = _config(args, subjects, family)
    done = iterate(args.lora, subjects, model, judge, config, args.out, made_of, talk.progress)
    return _answer(args.out, done)


def _config(args: argparse.Namespace, subjects: SubjectSet, family: Family) -> IterateConfig:
    from ..jobs.best_pictures import BestConfig
    from ..jobs.iterate import IterateConfig
    from ..lora.metadata import UnknownLora, read_lora_subjects
    from ..stage.captions import SENTENCE
    from ..subjects.prompt import MANY_SCENES, OTHER_SCENES, write_prompt

    try:
        style = read_lora_subjects(args.lora).captions
    except UnknownLora:
        style = SENTENCE
    names = [subject.name for subject in subjects]
    many, others = family.scenes or (MANY_SCENES, OTHER_SCENES)
    learned, fresh = (
        tuple(write_prompt(names, scene, style=style) for scene in scenes)
        for scenes in (args.prompt or many, args.fresh or others)
    )
    best = BestConfig(learned, args.count, args.keep, args.per_prompt, args.least, args.seed)
    return IterateConfig(best, fresh, args.checks, args.rounds)


class _Model:
    """A base model of the command line that iterates: a `jobs.iterate.Model`."""

    def __init__(
        self, checkpoint: Checkpoint, subjects: SubjectSet, args: argparse.Namespace, progress: Progress
    ) -> None:
        from ..jobs.generate import GenerateConfig
        from ..stage.cutouts import cut_outs

        self.checkpoint, self.progress = checkpoint, progress
        self.cutouts = cut_outs(subjects, max_side=checkpoint.side)
        usual = GenerateConfig.usual(checkpoint.usual, "", len(subjects), count=1)
        self.pictures = replace(usual, steps=args.picture_steps or usual.steps)
        self.config = _training(args, checkpoint)

    @contextmanager
    def wearing(self, lora: Lora) -> Iterator[Paint]:
        """Inside the block the base model has a LoRA, and the value paints from MuDI's start."""
        from ..jobs.fuse_checkpoint import wearing
        from ..jobs.generate import generate

        def paint(prompt: str, seed: int) -> Tensor:
            config = replace(self.pictures, prompt=prompt, seed=seed)
            (picture,) = generate(self.checkpoint, self.cutouts, config)
            return picture.image

        with wearing(self.checkpoint, lora):
            yield paint

    def train(self, subjects: SubjectSet, on: Lora, files: LoraFiles, seed: int) -> None:
        """Train on pictures of its own on top of a LoRA; VAE and text encoders leave the card meanwhile."""
        import torch

        from ..jobs.fuse_checkpoint import wearing
        from ..jobs.train import Training, train_lora, whole_of

        assert files.lora is not None and files.stopped is not None
        training = Training(self.checkpoint, subjects, self.config.but(seed=seed), on=on)
        if files.lora.exists():
            if not whole_of(files.lora).exists():
                training.write_whole(files.lora)
            return
        with wearing(self.checkpoint, on):
            plan = training.plan(self.progress)
            self.checkpoint.move_encoders(torch.device("cpu"))
            try:
                train_lora(training, plan, files, self.progress, goes_on=files.stopped.exists())
            finally:
                self.checkpoint.move_encoders(self.checkpoint.device)


def _training(args: argparse.Namespace, checkpoint: Checkpoint) -> TrainConfig:
    """Return how a round is trained: as usual for the model, by the preset, and what the user says."""
    from ..train.config import GOING_ON, TrainConfig

    said = {
        "steps": args.steps,
        "rank": args.rank,
        "batch_size": args.batch,
        "learning_rate": args.learning_rate,
        "kl_weight": args.kl_weight,
    }
    chosen: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    usual = TrainConfig.usual(
        checkpoint.usual, resolution=checkpoint.side, precision=precision(args, checkpoint.device)
    )
    return usual.but(**{**GOING_ON["iterate"], **chosen})


def _answer(out: Path, done: Iterated) -> Answer:
    first = done.rounds[0]
    lines = [
        f"before: D&C {first.mean:.3f} on fresh prompts and seeds, {first.themselves:.0%} with everybody as itself"
    ]
    before = first
    for one in done.rounds[1:]:
        gain, error = one.gain(before)
        lines.append(
            f"round {one.number}: {one.sound} sound pictures, {one.kept} kept; D&C {one.mean:.3f} ({gain:+.3f}, "
            f"standard error {error:.3f}), {one.themselves:.0%} with all as themselves"
        )
        before = one if one.improves(before) else before
    why = "It stopped by itself: the last round was no better. " if done.stopped else ""
    lines.append(f"{why}{out / 'best.safetensors'} is the LoRA of round {done.best.number}.")
    rounds = [{"round": one.number, "mean": one.mean, "themselves": one.themselves, "sound": one.sound,
               "kept": one.kept, "lora": str(one.lora)} for one in done.rounds]  # fmt: skip
    best = {"lora": str(out / "best.safetensors"), "round": done.best.number}
    return Answer("\n".join(lines), {**best, "stopped": done.stopped, "rounds": rounds})
