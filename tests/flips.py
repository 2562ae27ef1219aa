"""One bit of a file flips, and the reader notices: python tests/flips.py --files 300

So many files of each kind that training reads: a saved set, a stopped run, kept pictures, captions and plans, a LoRA to
start from. A bad cache file is made again to the same bytes and the plan stays the same; a file of a set is named in a
warning, since it may be changed on purpose, or refused; any other is refused in a sentence.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from coloured import coloured
from safetensors import safe_open
from test_train_loop import CONFIG, Stop, plan_for, stop_after
from test_train_plan import CONFIG as SHORT
from test_train_plan import plan_of, same, subject
from tiny_sdxl import tiny_unet, train

from mudi_core.lora.file import load_lora, save_lora
from mudi_core.subjects.storage import changes, read_subjects, write_subjects
from mudi_core.train.resume import losses_so_far
from mudi_core.types import MudiError, SubjectSet

Flip = Callable[[random.Random], bool]
"""Flips a bit of a file of one kind, reads it, and says whether it was noticed; the file is then whole again."""


def flipped(path: Path, rng: random.Random, notices: Callable[[], bool]) -> bool:
    """Whether a flipped bit of a file is noticed. Every second one is in the header, which is short."""
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little") if path.suffix == ".safetensors" else len(whole)
    place = rng.randrange(8 * (header if rng.random() < 0.5 else len(whole)))
    broken = bytearray(whole)
    broken[place // 8] ^= 1 << place % 8
    path.write_bytes(broken)
    try:
        return notices()
    finally:
        path.write_bytes(whole)


def refuses(read: Callable[[], object]) -> bool:
    """Whether a reader ends in a sentence of ours; a Python error goes on."""
    try:
        read()
    except MudiError as error:
        return str(error).endswith(".")
    return False


def kinds(folder: Path) -> dict[str, Flip]:
    """A reader of each kind of file, made and kept in ``folder``."""
    config = CONFIG.but(rank=1)
    run, lora, cache = folder / "run.safetensors", folder / "lora.safetensors", folder / "cache"
    try:
        train(tiny_unet(), plan_for(config), config, stop_after(2, Stop()), checkpoint=run)
    except Stop:
        save_lora(lora, load_lora(run)[0], {"ss_steps": "2"})
    subjects = SubjectSet((subject("olis", "dog", (100, 80), (64, 64)), subject("ht", "cat", (40, 90))))
    drawn = plan_of(subjects, SHORT, cache_dir=cache)[0]
    by_kind: dict[str, list[Path]] = {"kept picture": [], "kept caption": [], "kept plan": []}
    for path in sorted(cache.iterdir()):
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
        kind = "picture" if names == {"latent"} else "caption" if names == {"context", "pooled"} else "plan"
        by_kind[f"kept {kind}"].append(path)
    (plan,) = by_kind["kept plan"]

    def cached(kind: str) -> Flip:
        def flip(rng: random.Random) -> bool:
            path = rng.choice(by_kind[kind])
            whole, kept = path.read_bytes(), plan.read_bytes()
            if path != plan:
                plan.unlink()  # or nothing else is read

            def is_made_again() -> bool:
                return same(plan_of(subjects, SHORT, cache_dir=cache)[0], drawn) and path.read_bytes() == whole

            noticed = flipped(path, rng, is_made_again)
            plan.write_bytes(kept)
            return noticed

        return flip

    saved = write_subjects(coloured("red", "blue", photos=2), folder / "set")
    files = sorted(saved.iterdir())

    def is_told() -> bool:
        try:
            read_subjects(saved)
            return bool(changes(saved))
        except MudiError:
            return True

    return {
        "subject set": lambda rng: flipped(rng.choice(files), rng, is_told),
        "stopped run": lambda rng: flipped(run, rng, lambda: refuses(lambda: losses_so_far(run))),
        "LoRA to start from": lambda rng: flipped(lora, rng, lambda: refuses(lambda: load_lora(lora))),
        **{kind: cached(kind) for kind in by_kind},
    }


def run(files: int, seed: int, folder: Path) -> dict[str, int]:
    """Of so many files of each kind, how many were not noticed."""
    rng = random.Random(seed)
    logging.getLogger("mudi_core").setLevel(logging.ERROR)
    try:
        return {kind: sum(not flip(rng) for _ in range(files)) for kind, flip in kinds(folder).items()}
    finally:
        logging.getLogger("mudi_core").setLevel(logging.NOTSET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unnoticed = run(options.files, options.seed, Path(folder))
    print(json.dumps({"files of each kind": options.files, "unnoticed": unnoticed}, indent=1))
    sys.exit(sum(unnoticed.values()) > 0)


if __name__ == "__main__":
    main()
