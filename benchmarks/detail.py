"""What a detail pass is worth: pictures of two characters, before and after the node Detail Subjects.

    COMFYUI_DIR=~/ComfyUI python benchmarks/detail.py --out OUT
    COMFYUI_DIR=~/ComfyUI python benchmarks/detail.py --out OUT --table

Held-out pairs of the embedded model, one LoRA each, painted and detailed by ComfyUI's nodes. The pass keeps a figure
where Detect-and-Compare likes the picture no less, so that no score falls; the judge of looks is another model, and
chooses nothing. Every picture is a file: the same command goes on where it was stopped. It exits
with 1 where a mean fell, or where a pixel outside the masks has changed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from loras import Painter, nodes_of, photos, table  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

BEFORE = "before"
PASSES = {"detailed": True, "detailed, every figure new": False}
"""The passes, and whether each keeps a figure only where it is better."""
EYES = "embedded (drawn toys only)"


def train(pair: Path, place: Path, quick: bool) -> None:
    """Train the LoRA of a pair where it is not there."""
    from mudi_core.cli import main as command

    place.mkdir(parents=True, exist_ok=True)
    lora = place / "both.safetensors"
    more = ["--resume"] if lora.with_suffix(".stopped.safetensors").exists() else []
    short = ["--steps", "2", "--batch", "1", "--rank", "2"] if quick else []
    if not lora.exists() and command(
        ["train", str(pair / "both"), "--base", "mini", "--out", str(lora), *short, *more]
    ):
        sys.exit("The training failed.")


class Passes:
    """Details the pictures of one training with the node."""

    def __init__(self, load: Callable[[str], Any], painter: Painter, lora: Path, options: argparse.Namespace) -> None:
        tensors = importlib.import_module("comfy.utils").load_torch_file(str(lora), safe_load=True)
        wear = importlib.import_module("comfy.sd").load_lora_for_models
        model, clip = wear(painter.model, painter.clip, tensors, 1.0, 1.0)
        self.node = load("nodes.detail").DetailSubjects
        self.given: dict[str, Any] = {
            "subjects": painter.subjects, "model": model, "clip": clip, "vae": painter.vae,
            "prompt": "a photo of {name}", "negative": "", "steps": options.steps,
            "cfg": 5.0, "sampler_name": "euler", "scheduler": "ddim_uniform",
            "denoise": options.denoise, "side": 192, "margin": 0.25, "feather": 0.04, "detector": EYES,
            "segmenter": EYES, "embedder": EYES, "threshold": 0.05, "query": "", "cut_out": True, "download": False,
        }  # fmt: skip

    def __call__(self, picture: Tensor, seed: int, only_better: bool) -> tuple[Tensor, Tensor]:
        """Return the new picture ``[h, w, 3]`` and the mask ``[h, w]`` of what may have changed."""
        given = {**self.given, "seed": seed, "only_better": only_better}
        result = self.node.execute([picture[None]], **{name: [value] for name, value in given.items()}).result
        return result[0][0][0], result[2][0][0]


def save(picture: Tensor, path: Path, judge: Callable[[Any], dict[str, Any]], more: dict[str, Any]) -> None:
    """Write a picture, and what its judges say of the file."""
    import torch
    from PIL import Image

    from mudi_core.files import whole
    from mudi_core.subjects.storage import read_photo

    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (picture * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    Image.fromarray(levels).save(path)
    with whole(path.with_suffix(".json")) as part:
        part.write_text(json.dumps({**judge(read_photo(path).image), **more}), encoding="utf-8")


def paint(load: Callable[[str], Any], pair: Path, place: Path, options: argparse.Namespace) -> None:
    """Paint and detail every picture of a training that is not there."""
    import torch

    from mudi_core.subjects.storage import read_photo

    def path(method: str, number: int) -> Path:
        return place / "pictures" / method / f"{number:03d}.json"

    numbers = range(options.pictures)
    if all(path(method, number).exists() for method in (BEFORE, *PASSES) for number in numbers):
        return
    painter = Painter(load, pair, options.steps)
    detailed = Passes(load, painter, place / "both.safetensors", options)
    for number in numbers:
        picture = path(BEFORE, number).with_suffix(".png")
        with torch.inference_mode():
            if not path(BEFORE, number).exists():
                save(painter.paint("MuDI", place, number).float().cpu().clone(), picture, painter.judge, {})
            before = read_photo(picture).image
            for method, only_better in PASSES.items():
                if path(method, number).exists():
                    continue
                after, mask = detailed(before, number, only_better)
                still = mask == 0
                told = {"same": bool(torch.equal(after[still], before[still])), "new": 1 - still.float().mean().item()}
                save(after, path(method, number).with_suffix(".png"), painter.judge, told)


def check(out: Path, pairs: dict[str, Any]) -> list[str]:
    """Return what must not be: means of the pass that fell, and pictures that changed outside their masks."""
    rows = {
        method: {
            path.relative_to(out).parts[0] + path.stem: json.loads(path.read_text(encoding="utf-8"))
            for pair in pairs
            for path in (out / pair / "training-0" / "pictures" / method).glob("*.json")
        }
        for method in (BEFORE, *PASSES)
    }
    wrong = [
        f"{method}, {name}: changed outside its mask"
        for method in PASSES
        for name, row in rows[method].items()
        if not row["same"]
    ]
    both = rows[BEFORE].keys() & rows["detailed"].keys()
    for what in ("score", "sound"):
        before, after = (sum(float(rows[method][name][what]) for name in both) for method in (BEFORE, "detailed"))
        if after < before:
            wrong.append(f"{what}: {before / len(both):.3f} before, {after / len(both):.3f} after")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of all files")
    parser.add_argument("--pairs", type=int, default=2, help="of held-out characters (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=16, help="of each pair (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (default: %(default)s)")
    parser.add_argument("--denoise", type=float, default=0.4, help="of the pass (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="trainings of two steps, to try the program itself")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and make nothing")
    options = parser.parse_args()
    comfyui = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI").expanduser()
    from mudi_core.toy.world import PAIRS

    last = options.first + options.pairs
    pairs = {f"pair-{i}": specs for i, specs in enumerate(PAIRS) if options.first <= i < last}
    if not options.table:
        with nodes_of(comfyui) as load:
            for name, specs in pairs.items():
                pair, place = options.out / name, options.out / name / "training-0"
                photos(pair, specs)
                train(pair, place, options.quick)
                paint(load, pair, place, options)
                print(f"{name}: done", flush=True)
    print(table(options.out, pairs, 1, (BEFORE, *PASSES)))
    if wrong := check(options.out, pairs):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
