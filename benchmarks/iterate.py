"""Iterative training of drawn pairs: the same fresh pictures before and after, held by KL and not.

    python benchmarks/iterate.py --out OUT
    python benchmarks/iterate.py --out OUT --table

Each LoRA of both characters paints 200 pictures, learns from the best of those in which everybody is itself, and is
judged by prompts and seeds of its own. Both rounds of a LoRA, with KL 1 and 0, learn from the same pictures. Where too
few of these are sound there is no round and the LoRA stays as it is, so its pictures of before count as those of after.
Every picture and LoRA is a file: the same command goes on where it was stopped. A folder of `benchmarks/loras.py` has
the LoRAs already.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from loras import RESULTS, Looks, add_pairs, commands, keep, pairs_of, photos, table  # noqa: E402

WEIGHTS = ("1", "0")
"""Of KL: the paper's, and none."""
METHODS = ("before", *(f"KL {weight}" for weight in WEIGHTS))
KEPT = f"iterate-{RESULTS}"


def improve(place: Path, pair: Path, seed: int, options: argparse.Namespace) -> None:
    """Train the pair's LoRA where it is not there, and a round on top of it for each weight of KL."""
    from mudi_core.cli import main as command

    place.mkdir(parents=True, exist_ok=True)
    *_, (whole, words) = commands(place, pair, seed, options.quick)
    if not whole.exists() and command([*words, "--base", "mini"]):
        sys.exit(f"{' '.join(words)} failed.")
    first = place / f"iterate-{WEIGHTS[0]}"
    for weight in WEIGHTS:
        out = place / f"iterate-{weight}"
        for shared in ("check-0", "round-1/pictures"):
            if out != first and (first / shared).is_dir() and not (out / shared).exists():
                shutil.copytree(first / shared, out / shared)
        quick = (
            ["--count", "2", "--keep", "2", "--least", "1", "--steps", "1", "--checks", "2"] if options.quick else []
        )
        words = ["iterate", str(pair / "both"), "--base", "mini", "--lora", str(whole), "--out", str(out)]
        words += ["--rounds", "1", "--kl-weight", weight, "--seed", str(seed), "--least", str(options.least), *quick]
        if command(words) and not is_painted(out, options.quick):
            sys.exit(f"{' '.join(words)} failed.")


def is_painted(out: Path, quick: bool) -> bool:
    """Return whether all pictures to choose from are there, so that a round can have failed for want of sound ones."""
    from mudi_core.jobs.picture_shelf import LIST

    path = out / "round-1" / "pictures" / LIST
    trained = any((out / "round-1").glob("*.safetensors"))
    return not trained and path.is_file() and len(path.read_text("utf-8").splitlines()) >= (2 if quick else 200)


def fresh(place: Path, specs: Any, looks: Looks) -> Iterator[dict[str, Any]]:
    """Yield what was found in each fresh picture, with the method that painted it."""
    from mudi_core.jobs.picture_shelf import LIST

    before = place / f"iterate-{WEIGHTS[0]}" / "check-0"
    for method, check in zip(
        METHODS, (before, *(place / f"iterate-{one}" / "check-1" for one in WEIGHTS)), strict=True
    ):
        folder = check if check.is_dir() else before
        for row in map(json.loads, (folder / LIST).read_text(encoding="utf-8").splitlines()):
            yield {
                "method": method,
                "picture": f"{row['number']:03d}",
                "score": row["score"],
                "sound": len(row["boxes"]) == row["themselves"] == len(specs),
                "round": folder == check,
                **looks.of(specs, folder / row["file"], row),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pairs(parser)
    parser.add_argument("--least", type=int, default=10, help="pictures to learn from, without which there is no round")
    options = parser.parse_args()
    pairs = pairs_of(options)
    if not options.table:
        for seed in range(options.first_seed, options.seeds):
            for name, specs in pairs.items():
                pair, place = options.out / name, options.out / name / f"training-{seed}"
                if not (place / KEPT).is_file():
                    photos(pair, specs)
                    improve(place, pair, seed, options)
                    keep(fresh(place, specs, Looks()), place / KEPT)
    print(table(options.out, pairs, options.seeds, METHODS, KEPT))


if __name__ == "__main__":
    main()
