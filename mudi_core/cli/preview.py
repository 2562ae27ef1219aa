"""What `train` shows during a run: pictures of the LoRA so far, with scores."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_models, load_detector, load_embedder
from .talk import Talk

if TYPE_CHECKING:
    from ..bases.checkpoint import Checkpoint
    from ..jobs.previews import Previews
    from ..train.config import TrainConfig
    from ..types import SubjectSet


STEPS = 25
"""Most sampler steps of a preview."""


def add_previews(parser: argparse.ArgumentParser) -> None:
    """Add the options for previews and for reports about the training."""
    parser.add_argument(
        "--preview-count", type=int, default=2, metavar="N", help="pictures of a preview from each start (default: 2)"
    )
    parser.add_argument(
        "--preview-prompt", metavar="TEXT", help='names every subject, or "{subjects} on a beach" (default: the names)'
    )
    parser.add_argument(
        "--log-every", type=int, default=0, metavar="N", help="a line of loss, speed and time left every N steps"
    )
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="log there for TensorBoard, an extra package")
    add_models(parser, "detector", "embedder", threshold="0.25; mini: 0.05")


def open_previews(
    args: argparse.Namespace, talk: Talk, checkpoint: Checkpoint, settings: TrainConfig, subjects: SubjectSet
) -> Previews | None:
    """Return the previews, if asked for. Detector and embedder stay on the CPU, away from the training."""
    import torch

    from ..jobs.generate import GenerateConfig
    from ..jobs.previews import Previews, scorer
    from ..subjects.prompt import SUBJECTS, TEXT, write_prompt

    if not settings.fit.preview_every:
        return None
    prompt = args.preview_prompt or TEXT
    if SUBJECTS in prompt:
        prompt = write_prompt([subject.name for subject in subjects], prompt, style=settings.samples.captions)
    family = checkpoint.usual
    config = GenerateConfig.usual(family, prompt, len(subjects), seed=args.seed)
    config = replace(config, steps=min(STEPS, config.steps))
    cpu = torch.device("cpu")
    score = scorer(
        subjects,
        load_detector(args, cpu, talk),
        load_embedder(args, cpu, talk),
        family.threshold if args.threshold is None else args.threshold,
        cut_out=family.cut_out,
    )
    config = replace(config, count=args.preview_count, size=settings.samples.size, layout=settings.samples.layout)
    return Previews(checkpoint, subjects, config, score)
