"""Does the start help a flow model? DreamBooth, Seg-Mix, and Seg-Mix with the start, on the mini FLUX.

    python benchmarks/flow_start.py --out OUT
    python benchmarks/flow_start.py --out OUT --table

Two development pairs, on which gamma was chosen, and four others; all methods have the same photos,
prompts, noise and sampler. Every LoRA and every picture is a file: the same command goes on where it was stopped, with
the weights and settings that it began with. `--dev` takes the development pairs alone, `--gammas 1 2 4` several starts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from loras import photos, table  # noqa: E402

from mudi_core.bases.checkpoint import Checkpoint, open_mini_flux  # noqa: E402
from mudi_core.eyes import load_detector, load_embedder  # noqa: E402
from mudi_core.files import whole  # noqa: E402
from mudi_core.jobs.generate import GenerateConfig, generate  # noqa: E402
from mudi_core.jobs.train import LoraFiles, Training, train_lora  # noqa: E402
from mudi_core.lora.adapter import apply_lora  # noqa: E402
from mudi_core.score.compare import References, compare  # noqa: E402
from mudi_core.stage.cutouts import cut_outs  # noqa: E402
from mudi_core.subjects.prompt import write_prompt  # noqa: E402
from mudi_core.subjects.storage import read_photo, read_subjects  # noqa: E402
from mudi_core.toy.world import DEV_PAIRS, PAIRS  # noqa: E402
from mudi_core.train.config import TrainConfig  # noqa: E402

WEIGHTS = Path(__file__).resolve().parent.parent / "workshop" / "weights" / "flux.safetensors"
PROMPTS = ("{subjects} in the meadow", "{subjects} on the beach", "{subjects} in the snow", "{subjects}")
FIXED = ("steps", "batch", "rate", "sampler_steps", "guidance")
"""The settings that a folder keeps."""
Methods = dict[str, tuple[str, float]]
"""The training and the gamma of each."""


def methods_of(gammas: list[float]) -> Methods:
    """Return the methods by their names in the table, which are names of folders too."""
    starts = {f"Seg-Mix with start, gamma {gamma:g}": ("segmix", gamma) for gamma in gammas}
    return {"DreamBooth": ("dreambooth", 0.0), "Seg-Mix": ("segmix", 0.0), **starts}


def begin(options: argparse.Namespace) -> Checkpoint:
    """Open the mini FLUX with the weights that the folder began with; exit where its settings are others."""
    options.out.mkdir(parents=True, exist_ok=True)
    ours, kept = {name: getattr(options, name) for name in FIXED}, options.out / "settings.json"
    if not kept.exists():
        shutil.copyfile(options.weights, options.out / "flux.safetensors")
        kept.write_text(json.dumps(ours) + "\n", encoding="utf-8")
    theirs = json.loads(kept.read_text(encoding="utf-8"))
    if theirs != ours:
        sys.exit(f"{options.out} was begun with {theirs}. Give the same, or another --out.")
    return open_mini_flux(options.out)


def train(base: Checkpoint, pair: Path, place: Path, method: str, seed: int, options: argparse.Namespace) -> Path:
    """Return the file of a LoRA, trained where it is not there."""
    lora, stopped = place / f"{method}.safetensors", place / f"{method}.stopped.safetensors"
    if not lora.exists():
        place.mkdir(parents=True, exist_ok=True)
        config = TrainConfig.usual(base.usual).but(
            method=method, steps=options.steps, batch_size=options.batch, learning_rate=options.rate, seed=seed
        )
        training = Training(base, read_subjects(pair / "both"), config)
        train_lora(training, training.plan(), LoraFiles(lora, stopped), goes_on=stopped.exists())
    return lora


class Judge:
    """Detect-and-Compare with the embedded eyes, and the strict verdict."""

    def __init__(self, pair: Path) -> None:
        cpu = torch.device("cpu")
        self.detector, self.embedder = load_detector("mini", None, cpu), load_embedder("mini", None, cpu)
        self.references = References(read_subjects(pair / "both"), self.embedder, True)

    def __call__(self, image: torch.Tensor) -> dict[str, Any]:
        found = compare(image, self.references, self.detector, self.embedder, threshold=0.05)
        return {"score": found.score, "sound": found.success, "boxes": found.detections.xyxy.tolist()}


def paint(base: Checkpoint, pair: Path, place: Path, methods: Methods, options: argparse.Namespace) -> None:
    """Paint every picture of a training that is not there."""
    subjects = read_subjects(pair / "both")
    names, cutouts = [subject.name for subject in subjects], cut_outs(subjects, max_side=base.side)
    each = -(-options.pictures // len(PROMPTS))
    for method, (training, gamma) in methods.items():
        folder = place / "pictures" / method
        folder.mkdir(parents=True, exist_ok=True)
        for number, prompt in enumerate(PROMPTS):
            if (folder / f"{number}-{each - 1:03d}.png").exists():
                continue
            config = GenerateConfig.usual(
                base.usual, write_prompt(names, f"a photo of {prompt}"), len(names), gamma=gamma, count=each,
                seed=number, steps=options.sampler_steps, guidance=options.guidance,
            )  # fmt: skip
            with apply_lora(base.unet, place / f"{training}.safetensors"):
                for picture in generate(base, cutouts, config):
                    levels = (picture.image * 255).round().clamp(0, 255).to(torch.uint8).numpy()
                    with whole(folder / f"{number}-{picture.number:03d}.png") as part:
                        Image.fromarray(levels).save(part, "PNG")


def judge(pair: Path, place: Path, again: bool) -> None:
    """Judge every picture of a training that is not judged, or ``again`` all of them."""
    judge = Judge(pair)
    for picture in sorted((place / "pictures").glob("*/*.png")):
        path = picture.with_suffix(".json")
        if again or not path.exists():
            with whole(path) as part:
                part.write_text(json.dumps(judge(read_photo(picture).image)), encoding="utf-8")


def make(options: argparse.Namespace, pairs: Mapping[str, Any], methods: Methods) -> None:
    """Make everything that is not there."""
    base = begin(options)
    for seed in range(options.seeds):
        for name, specs in pairs.items():
            pair = options.out / name
            place = pair / f"training-{seed}"
            photos(pair, specs)
            for training in ("dreambooth", "segmix"):
                train(base, pair, place, training, seed, options)
            paint(base, pair, place, methods, options)
            judge(pair, place, options.judge)
            print(f"{name}, training {seed}: done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of all files")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of the transformer (default: the workshop's)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each pair (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=16, help="of each training and method (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=150, help="of a training (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images of a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning (default: %(default)s)")
    parser.add_argument("--gammas", type=float, nargs="+", default=[2.0], help="of the start (default: %(default)s)")
    parser.add_argument("--sampler-steps", type=int, default=12, help="(default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=5.0, help="(default: %(default)s)")
    parser.add_argument("--dev", action="store_true", help="only the pairs on which settings are chosen")
    parser.add_argument("--judge", action="store_true", help="judge every picture again, with the eyes of today")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and make nothing")
    options = parser.parse_args()
    chosen = {f"dev-{i}": specs for i, specs in enumerate(DEV_PAIRS[:2])}
    others = {} if options.dev else {f"pair-{i}": specs for i, specs in enumerate(PAIRS[:4])}
    methods = methods_of(options.gammas)
    if not options.table:
        make(options, {**chosen, **others}, methods)
    for words, pairs in (("Development pairs", chosen), ("Other pairs", others)):
        if pairs:
            print(f"\n{words}:\n\n{table(options.out, pairs, options.seeds, methods)}")


if __name__ == "__main__":
    main()
