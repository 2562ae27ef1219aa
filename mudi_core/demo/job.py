"""The demo's job: draw photos of two characters, prepare them, train twice, sample three ways, compare, report."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..bases.checkpoint import open_checkpoint
from ..bases.families import EMBEDDED
from ..eyes import load_detector, load_embedder, load_segmenter
from ..jobs.generate import Picture, default_prompt, generate
from ..jobs.prepare import Wanted, prepare
from ..jobs.train import LoraFiles, Training, train_lora
from ..lora.adapter import apply_lora
from ..progress import Progress, Update, silent
from ..report.statistics import interval
from ..score.compare import References, compare
from ..stage.cutouts import cut_outs
from ..stage.segmix import SegMixConfig, segmix
from ..subjects import storage
from ..toy.world import PAIRS, SubjectSpec, photo
from ..train.loop import TrainResult
from ..train.parts import Method
from ..types import Comparison, MudiError, SubjectSet
from .page import page
from .result import DemoResult, Pair
from .settings import ARMS, DemoSettings

log = logging.getLogger(__name__)

SHEET = 12
"""Compositions on the report's Seg-Mix sheet."""


class BadDemo(MudiError):
    """A pair that does not exist, or a folder that cannot be written."""


@dataclass
class _Clock:
    """Announces stages and measures how long each takes."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, words: str) -> Iterator[Update]:
        begun = time.monotonic()
        with self.progress(words) as update:
            yield update
        self.seconds[name] = self.seconds.get(name, 0.0) + round(time.monotonic() - begun, 2)

    def under(self, name: str, more: str = "") -> Progress:
        """Return a `Progress` whose stages all count under one name; ``more`` follows their own words."""
        return lambda words: self.stage(name, f"{words} {more}".rstrip())


def run_demo(out: Path, pair: int = 0, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Run the demo with one of the reported pairs; return the content of report.json. Raise `BadDemo`."""
    if not 0 <= pair < len(PAIRS):
        raise BadDemo(f"There is no pair {pair}; there are 0 to {len(PAIRS) - 1}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").unlink(missing_ok=True)  # an old report must not stand beside new pictures
    except OSError as error:
        raise BadDemo(f"{out} cannot be written: {error.strerror}. Choose another folder with --out.") from error
    result = measure(out, PAIRS[pair], seed, progress=progress)
    report = as_json(result, pair)
    (out / "report.html").write_text(page(result, report), encoding="utf-8")
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def measure(
    out: Path, pair: Pair, seed: int = 0, settings: DemoSettings | None = None, progress: Progress = silent
) -> DemoResult:
    """Run the job without the page, for any pair and settings. ``out`` gets photos, dataset, LoRAs and pictures."""
    settings = settings or DemoSettings()
    clock = _Clock(progress)
    with clock.stage("photos", "drawing photos"):
        folders = [draw_photos(out / "photos", spec, seed, settings) for spec in pair]
    subjects = prepare_photos(folders, pair, settings, clock.under("prepare"))
    with clock.stage("segmix", "composing the Seg-Mix sheet"):
        storage.write_subjects(subjects, out / "dataset")
        cutouts = cut_outs(subjects, max_side=settings.size)
        mix_config = SegMixConfig(size=(settings.size, settings.size), layout=settings.layout)
        sheet = tuple(segmix(cutouts, random.Random(f"{seed}/sheet/{i}"), mix_config) for i in range(SHEET))

    checkpoint = open_checkpoint(EMBEDDED)
    trained: dict[Method, TrainResult] = {}
    methods: tuple[Method, ...] = tuple(dict.fromkeys(arm.training for arm in ARMS.values()))
    for method in methods:
        training = Training(checkpoint, subjects, settings.train_config(method, seed))
        stage = clock.under(f"train_{method}", f"for {method}")
        trained[method] = train_lora(training, training.plan(stage), LoraFiles(out / f"{method}.safetensors"), stage)

    prompt = default_prompt(subjects)
    pictures: dict[str, tuple[Picture, ...]] = {}
    for name, arm in ARMS.items():
        with clock.stage("generate", f"pictures by {arm.title}") as update:
            config = settings.generate_config(prompt, arm.with_start, seed)
            with apply_lora(checkpoint.unet, trained[arm.training].state):
                pictures[name] = tuple(generate(checkpoint, cutouts, config, update))
            _save_pictures(pictures[name], out / "pictures" / name)

    comparisons: dict[str, tuple[Comparison, ...]] = {}
    with clock.stage("compare", "comparing") as update:
        detector, embedder = (
            load_detector(EMBEDDED, None, checkpoint.device),
            load_embedder(EMBEDDED, None, checkpoint.device),
        )
        references = References(subjects, embedder, settings.cut_out_references)
        for i, name in enumerate(ARMS):
            comparisons[name] = tuple(
                compare(p.image, references, detector, embedder, threshold=settings.threshold) for p in pictures[name]
            )
            update(i + 1, len(ARMS))
    losses = {method: result.losses for method, result in trained.items()}
    return DemoResult(
        pair, seed, settings, subjects, cutouts, sheet, losses, pictures, comparisons, prompt, clock.seconds
    )


def draw_photos(folder: Path, spec: SubjectSpec, seed: int, settings: DemoSettings) -> Path:
    """Draw photos of one character as JPEG files, like those of a user; return their folder."""
    place = folder / spec.token
    place.mkdir(parents=True, exist_ok=True)
    for number in range(settings.photos):
        rng = random.Random(f"{seed}/{spec.token}/{number}")
        picture = photo(spec.character, rng, settings.photo_side).image
        Image.fromarray(np.ascontiguousarray(picture)).save(place / f"photo_{number + 1}.jpg", quality=92)
    return place


def prepare_photos(
    folders: Sequence[Path], cast: Sequence[SubjectSpec], settings: DemoSettings, progress: Progress = silent
) -> SubjectSet:
    """Find and cut out the photos of `draw_photos` with the embedded models."""
    cpu = torch.device("cpu")
    detector, segmenter = load_detector(EMBEDDED, None, cpu), load_segmenter(EMBEDDED, None, cpu)
    found = []
    for folder, spec in zip(folders, cast, strict=True):
        wanted = Wanted(spec.token, spec.class_noun, threshold=settings.photo_threshold, which="best")
        found.append(prepare(storage.read_photos(folder), wanted, detector, segmenter, progress))
    return SubjectSet(tuple(found))


def _save_pictures(pictures: tuple[Picture, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        levels = (picture.image.numpy() * 255).round().astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{picture.number:02d}.png")


def as_json(result: DemoResult, pair: int) -> dict[str, Any]:
    """Return the content of report.json."""
    methods = {}
    for name, arm in ARMS.items():
        scores = result.scores(name)
        methods[name] = {
            "title": arm.title,
            "dc": [round(score, 4) for score in scores],
            "mean": round(sum(scores) / len(scores), 4),
            "interval": [round(bound, 4) for bound in interval(scores)],
            "right_count": sum(comparison.count_is_right for comparison in result.comparisons[name]),
            "both_found": result.both_found(name),
        }
    return {
        "pair": pair,
        "subjects": [
            {"token": spec.token, "class_noun": spec.class_noun, "looks": spec.character.describe()}
            for spec in result.pair
        ],
        "seed": result.seed,
        "prompt": result.prompt,
        "methods": methods,
        "seconds": result.seconds,
    }
