"""How many Seg-Mix composites of 1024 px one core makes: this project, a naive way, and the official code.

    python benchmarks/segmix.py                        # drawn photos of 12 megapixels
    python benchmarks/segmix.py DATASETS               # dataset folders, or a folder of them
    python benchmarks/segmix.py DATASETS --official ~/MuDI

All take turns in one process on one thread and are charged by CPU time, so a busy machine changes the numbers little
and the ratios less. The official dataset class is executed from the given checkout as it stands; nothing of it is here.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mudi_core.stage.segmix import cut_outs, segmix  # noqa: E402
from mudi_core.subjects.storage import read_subjects  # noqa: E402
from mudi_core.toy.world import PAIRS, photo  # noqa: E402

SIDE = 1024
Sample = Callable[[], object]


def draw_photos(folder: Path, size: tuple[int, int], photos: int) -> None:
    """Write a dataset folder of two drawn characters."""
    lines: list[dict[str, Any]] = [
        {"id": {i: f"{s.token} {s.class_noun}" for i, s in zip("ab", PAIRS[0], strict=True)}}
    ]
    for letter, spec in zip("ab", PAIRS[0], strict=True):
        for number in range(photos):
            drawn = photo(spec.character, random.Random(f"{letter}{number}"), size)
            name, mask = f"{letter}{number:02}.jpg", f"mask_{letter}{number:02}.png"
            Image.fromarray(np.asarray(drawn.image)).save(folder / name, quality=92)
            Image.fromarray((np.asarray(drawn.masks[0]) * 255).astype(np.uint8)).save(folder / mask)
            text = f"a photo of a {spec.token} {spec.class_noun}"
            lines.append({"id": letter, "file_name": name, "mask_path": mask, "text": text})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def ours(folder: Path) -> Sample:
    cutouts, rng = cut_outs(read_subjects(folder), SIDE), random.Random(0)
    return lambda: segmix(cutouts, rng)


def naive(folder: Path) -> Sample:
    """Compose the obvious way: read two photos and masks, crop, resize and paste, anew for every composition."""
    first, *records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    by_id = {letter: [record for record in records if record["id"] == letter] for letter in first["id"]}
    rng = random.Random(0)

    def cut(record: dict[str, str]) -> tuple[Image.Image, Image.Image]:
        picture = ImageOps.exif_transpose(Image.open(folder / record["file_name"])).convert("RGB")
        mask = Image.open(folder / record["mask_path"]).convert("L").point(lambda value: 255 * (value > 127))
        box = mask.getbbox()
        picture, mask = picture.crop(box), mask.crop(box)
        scale = rng.uniform(0.75, 1) * min(480 / picture.width, 992 / picture.height)
        size = (int(picture.width * scale), int(picture.height * scale))
        return picture.resize(size, Image.Resampling.BICUBIC), mask.resize(size, Image.Resampling.BICUBIC)

    def sample() -> tuple[Tensor, Tensor]:
        canvas, owners = Image.new("RGB", (SIDE, SIDE), "white"), []
        for on_the_left, letter in enumerate(rng.sample(sorted(by_id), 2)):
            picture, mask = cut(rng.choice(by_id[letter]))
            margin = rng.randint(1, 256)
            x, y = margin if on_the_left else SIDE - picture.width - margin, rng.randint(0, SIDE - picture.height)
            canvas.paste(picture, (x, y), mask)
            owner = np.zeros((SIDE, SIDE), dtype=np.float32)
            owner[y : y + mask.height, x : x + mask.width] = np.asarray(mask, dtype=np.float32) / 255
            owners = [below * (1 - owner) for below in owners] + [owner]
        return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255), torch.from_numpy(np.stack(owners))

    return sample


def official(checkout: Path, folder: Path) -> Sample:
    """Return the dataset class of the official training script, run from its file with the names it expects."""
    from torchvision import transforms

    script = checkout / "train_segmix_lora_sdxl.py"
    if not script.is_file():
        raise SystemExit(f"{script} is not there: --official wants a checkout of github.com/agwmon/MuDI.")
    tree = ast.parse(script.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "DreamBoothDataset"]
    around: dict[str, Any] = {
        "Dataset": torch.utils.data.Dataset,
        "Image": Image,
        "Path": Path,
        "args": SimpleNamespace(dataset_name=None, relative_scale=0.0),
        "defaultdict": defaultdict,
        "exif_transpose": ImageOps.exif_transpose,
        "itertools": itertools,
        "json": json,
        "np": np,
        "random": random,
        "torch": torch,
        "transforms": transforms,
    }
    exec(compile(tree, str(script), "exec"), around)
    dataset = around["DreamBoothDataset"](str(folder), size=SIDE, segmix_prob=1.0)
    dataset.start_segmix = True
    rng = random.Random(0)
    return lambda: dataset[rng.randrange(len(dataset))]


def measure(ways: dict[str, Callable[[], Sample]], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Per way: ms to prepare, ms per composite (median over rounds of alternating turns), composites per second."""
    once, samples = {}, {}
    for name, prepare in ways.items():
        start = time.process_time()
        samples[name] = prepare()
        once[name] = time.process_time() - start
        samples[name]()
    each: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, sample) in itertools.product(range(rounds), samples.items()):
        count, start = 0, time.process_time()
        while count == 0 or time.process_time() - start < seconds:
            sample()
            count += 1
        each[name].append((time.process_time() - start) / count)
    medians = {name: statistics.median(times) for name, times in each.items()}
    return {
        name: {
            "prepare_ms": 1000 * once[name],
            "composite_ms": 1000 * medians[name],
            "composites_per_s": 1 / medians[name],
            "ours_is_faster_by": medians[name] / medians["ours"],
        }
        for name in ways
    }


def datasets(folders: list[Path]) -> list[Path]:
    found = []
    for folder in folders:
        here = (
            [folder]
            if (folder / "metadata.jsonl").is_file()
            else sorted(p.parent for p in folder.glob("*/metadata.jsonl"))
        )
        if not here:
            raise SystemExit(f"{folder} holds no dataset (no metadata.jsonl in it or one folder below).")
        found += here
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="*", type=Path, help="dataset folders (default: drawn photos of 12 megapixels)"
    )
    parser.add_argument("--official", type=Path, metavar="DIR", help="also measure the official code in this checkout")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds a turn (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folders = datasets(options.folders)
        if not folders:
            folders = [Path(scratch) / "drawn_12_megapixels"]
            folders[0].mkdir()
            draw_photos(folders[0], (4000, 3000), 2)
        results = {}
        for folder in folders:
            ways: dict[str, Callable[[], Sample]] = {
                "ours": lambda folder=folder: ours(folder),  # type: ignore[misc]
                "naive": lambda folder=folder: naive(folder),  # type: ignore[misc]
            }
            if options.official:
                ways["official"] = lambda folder=folder: official(options.official, folder)  # type: ignore[misc]
            results[folder.name] = measure(ways, options.rounds, options.seconds)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"Seg-Mix, {SIDE} px, one core, CPU time\n")
    print(f"{'photos':32}{'way':10}{'once':>10}{'each':>10}{'per s':>8}{'ours is':>10}")
    for photos, ways_measured in results.items():
        for name, m in ways_measured.items():
            faster = "" if name == "ours" else f"{m['ours_is_faster_by']:.1f}x"
            times = f"{m['prepare_ms']:>7.0f} ms{m['composite_ms']:>7.1f} ms"
            print(f"{photos:32}{name:10}{times}{m['composites_per_s']:>8.0f}{faster:>10}")


if __name__ == "__main__":
    main()
