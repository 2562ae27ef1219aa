"""One setting of a training tried on development pairs: what the embedded model paints with it, under both judges.

    python benchmarks/ablate.py --out OUT usual learning_rate=1e-3,lr_schedule=constant rank=32

Each change is one or more settings of `mudi_core.train.config.SETTINGS`, "usual" none of them; names of layers are
joined by "+". Every change has the same photos, seeds, places and start: 4 prompts of 4 pictures a pair. LoRAs are
files, so the same command goes on where it was stopped. `--method dreambooth` paints without the start, as that does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from loras import PROMPTS, photos  # noqa: E402

SEEDS = 4
"""Pictures of each prompt."""
COLUMNS = {
    "score": "D&C",
    "count": "right count",
    "sound": "both as themselves",
    "right": "looks right",
    "leaked": "looks leaked",
}


def settings_of(change: str) -> dict[str, Any]:
    """Return the settings that a change names: "rank=32,lr_schedule=cosine"."""
    if change == "usual":
        return {}
    found: dict[str, Any] = {}
    for one in change.split(","):
        name, _, value = one.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
        if name == "target_modules":
            found[name] = tuple(value.split("+"))
    return found


class Pair:
    """A pair's photos and judges, and what each change makes of it."""

    def __init__(self, place: Path, specs: Any, method: str) -> None:
        import torch

        from mudi_core.bases.checkpoint import open_checkpoint
        from mudi_core.eyes import load_detector, load_embedder
        from mudi_core.score.compare import References
        from mudi_core.stage.cutouts import cut_outs
        from mudi_core.subjects.storage import read_subjects
        from workshop import looks

        photos(place, specs)
        self.place, self.specs, self.method = place, specs, method
        self.base, self.subjects = open_checkpoint("mini"), read_subjects(place / "both")
        self.cutouts = cut_outs(self.subjects, max_side=self.base.side)
        cpu = torch.device("cpu")
        self.detector, self.embedder = load_detector("mini", None, cpu), load_embedder("mini", None, cpu)
        self.references, self.reader = References(self.subjects, self.embedder, True), looks.load()

    def lora(self, change: str, seed: int) -> Path:
        """Return the LoRA of a change, trained where it is not there. All its settings are in its name, as a number."""
        from mudi_core.jobs.train import LoraFiles, Training, train_lora
        from mudi_core.train.config import TrainConfig

        config = TrainConfig.usual(self.base.usual, method=self.method, seed=seed).but(**settings_of(change))
        path = self.place / f"{self.method}-{crc32(config.to_json().encode()):08x}.safetensors"
        if not path.exists():
            training = Training(self.base, self.subjects, config)
            train_lora(training, training.plan(), LoraFiles(path))
        return path

    def pictures(self, lora: Path) -> list[dict[str, float]]:
        """Return what both judges say of each picture; the pictures lie beside the LoRA, in one sheet."""
        import torch
        from PIL import Image

        from mudi_core.jobs.generate import GenerateConfig, generate
        from mudi_core.lora.adapter import apply_lora

        start = {} if self.method == "segmix" else {"gamma": 0.0}
        names = " and ".join(subject.name for subject in self.subjects)
        images = []
        for number, prompt in enumerate(PROMPTS):
            text, seed = f"a photo of {prompt.format(names)}", 10 * number
            config = GenerateConfig.usual(self.base.usual, text, 2, count=SEEDS, seed=seed, **start)
            with apply_lora(self.base.unet, lora):
                images += [made.image for made in generate(self.base, self.cutouts, config)]
        rows = [torch.cat(images[first : first + SEEDS], 1) for first in range(0, len(images), SEEDS)]
        levels = (torch.cat(rows) * 255).round().clamp(0, 255).to(torch.uint8)
        Image.fromarray(levels.numpy()).save(lora.with_suffix(".png"))
        return [self._judged(image) for image in images]

    def _judged(self, image: Any) -> dict[str, float]:
        from mudi_core.score.compare import compare
        from workshop import looks

        found = compare(image, self.references, self.detector, self.embedder, threshold=self.base.usual.threshold)
        figures = looks.read(self.reader, image, found.detections.xyxy)
        seen = looks.seen(figures, [spec.character for spec in self.specs])
        return {
            "score": found.score, "count": float(found.count_is_right), "sound": float(found.success),
            "right": seen.right, "leaked": seen.leaked,
        }  # fmt: skip


def line(change: str, pair: str, rows: Sequence[Mapping[str, float]]) -> str:
    """Return a row of the table."""
    means = [sum(row[name] for row in rows) / len(rows) for name in COLUMNS]
    return f"| {' | '.join([change, pair, str(len(rows)), *(f'{mean:.2f}' for mean in means)])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="+", help='"usual", or "name=value,name=value"')
    parser.add_argument("--out", type=Path, required=True, help="folder of all files")
    parser.add_argument("--pairs", type=int, default=2, help="development pairs (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them, from 0")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: %(default)s)")
    parser.add_argument("--method", default="segmix", choices=["segmix", "dreambooth"])
    options = parser.parse_args()
    from mudi_core.toy.world import DEV_PAIRS

    heads = ("change", "pair", "pictures", *COLUMNS.values())
    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n", flush=True)
    for number in range(options.first, options.first + options.pairs):
        pair = Pair(options.out / f"pair-{number}", DEV_PAIRS[number], options.method)
        for change in options.changes:
            rows = pair.pictures(pair.lora(change, options.seed))
            print(line(change, str(number), rows), flush=True)


if __name__ == "__main__":
    main()
