"""Iterative training of drawn pairs: the same fresh pictures before and after, held by KL and not.

    python benchmarks/iterate.py --out OUT
    python benchmarks/iterate.py --out OUT --table

Each LoRA of both characters paints 200 pictures, learns from the best of those in which everybody is itself, and is
judged by prompts and seeds of its own. Both rounds of a LoRA, with KL 1 and 0, learn from the same pictures. Every
picture and LoRA is a file: the same command goes on where it was stopped. A folder of `benchmarks/loras.py` has the
LoRAs already.
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
from loras import RESULTS, Looks, commands, photos, table  # noqa: E402

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
        if command(words):
            print(f"{out}: no LoRA after this round, for the reason above.", file=sys.stderr)


def keep(place: Path, specs: Any, looks: Looks) -> None:
    """Write what was found in each fresh picture of a training."""
    part = place / f"{KEPT}.part"
    lines = [json.dumps(row) for row in fresh(place, specs, looks)]
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(place / KEPT)


def fresh(place: Path, specs: Any, looks: Looks) -> Iterator[dict[str, Any]]:
    """Yield what was found in each fresh picture, with the method that painted it."""
    from mudi_core.jobs.picture_shelf import LIST

    of = {"before": f"iterate-{WEIGHTS[0]}/check-0"} | {f"KL {one}": f"iterate-{one}/check-1" for one in WEIGHTS}
    for method, name in of.items():
        path = place / name / LIST
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            row = json.loads(line)
            sound = len(row["boxes"]) == row["themselves"] == len(specs)
            yield {
                "method": method,
                "picture": f"{row['number']:03d}",
                "score": row["score"],
                "sound": sound,
                **looks.of(specs, path.parent / row["file"], row),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of all files")
    parser.add_argument("--pairs", type=int, default=4, help="of held-out characters (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of these pairs, from 0")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each pair (default: %(default)s)")
    parser.add_argument("--least", type=int, default=10, help="pictures to learn from, without which there is no round")
    parser.add_argument("--dev", action="store_true", help="the pairs on which settings are chosen")
    parser.add_argument("--quick", action="store_true", help="two pictures and a step, to try the program itself")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and make nothing")
    options = parser.parse_args()
    from mudi_core.toy.world import DEV_PAIRS, PAIRS

    every = list(enumerate(DEV_PAIRS if options.dev else PAIRS))
    pairs = {f"pair-{i}": specs for i, specs in every[options.first : options.first + options.pairs]}
    if not options.table:
        for seed in range(options.seeds):
            for name, specs in pairs.items():
                pair = options.out / name
                if not (pair / f"training-{seed}" / KEPT).is_file():
                    photos(pair, specs)
                    improve(pair / f"training-{seed}", pair, seed, options)
                    keep(pair / f"training-{seed}", specs, Looks())
    print(table(options.out, pairs, options.seeds, METHODS, KEPT))


if __name__ == "__main__":
    main()
