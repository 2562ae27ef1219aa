"""A blind look at pictures: numbered sheets that name no method, and the agreement with the verdicts.

    python -m workshop.blind sheets benchmark-out SPEC --to DIR [--count 200] [--seed 0]
    python -m workshop.blind sheets loras-out --to DIR
    python -m workshop.blind agree DIR

The first draws the pictures of a benchmark by the seed, in a random order, beside photos of their subjects, and writes
the key to DIR/key.json, which stays closed; the second does so with those of benchmarks/loras.py. Whoever looks writes
DIR/answers.txt: a line for each number, "17 yes" when both subjects are there once, each as itself, and nobody else, or
"17 no". The third opens the key.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mudi_core.benchmark.results import Results
from mudi_core.benchmark.spec_file import read_spec
from mudi_core.toy.world import PAIRS, SubjectSpec, photo

COLUMNS, TILE, HEAD = 5, 256, 22
"""Pictures in a row, the side of one, and the height of its number, in pixels."""
ANSWERS = {"yes": True, "no": False}


class Shown(NamedTuple):
    """A picture that can be drawn for a sheet."""

    characters: tuple[SubjectSpec, ...]
    path: Path
    about: dict[str, Any]
    """What the key says of it: "method", "verdict" and more."""


def of_benchmark(results: Results) -> Iterator[Shown]:
    """Yield the pictures of a benchmark. Raise `BadSpec` for subjects that are not drawn."""
    for cell in results.spec.cells():
        if results.is_done(cell):
            result = results.read(cell)
            about = {**cell._asdict(), "verdict": result.success, "score": result.comparison.score}
            yield Shown(results.spec.characters(cell.combo), results.path(cell, ".png"), about)


def of_loras(out: Path) -> Iterator[Shown]:
    """Yield the pictures of benchmarks/loras.py on its held-out pairs."""
    for path in sorted(out.glob("pair-*/training-*/pictures/*/*.json")):
        pair, training, _, method, name = path.relative_to(out).parts
        result = json.loads(path.read_text(encoding="utf-8"))
        about = {"pair": pair, "training": training, "method": method, "name": name}
        about |= {"verdict": result["sound"], "score": result["score"]}
        yield Shown(PAIRS[int(pair.removeprefix("pair-"))], path.with_suffix(".png"), about)


def sheets(pictures: Sequence[Shown], count: int, seed: int, to: Path) -> int:
    """Write the sheets, one for each combo, and the key; return how many pictures they show: at most all."""
    chosen = random.Random(seed).sample(list(pictures), min(count, len(pictures)))
    to.mkdir(parents=True, exist_ok=True)
    key: dict[int, dict[str, Any]] = {}
    for characters in dict.fromkeys(one.characters for one in pictures):
        tiles = [("", image) for image in _photos(characters)]
        first = len(key) + 1
        for one in chosen:
            if one.characters == characters:
                key[len(key) + 1] = one.about
                with Image.open(one.path) as image:
                    tiles.append((str(len(key)), _pixels(np.asarray(image.convert("RGB")))))
        if len(key) >= first:
            _sheet(tiles).save(to / f"sheet {first:03d} to {len(key):03d}.png")
    (to / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    return len(key)


def agreement(key: dict[str, dict[str, object]], answers: dict[str, bool]) -> dict[str, object]:
    """Return how the eye and the verdict agree, and what the eye says of each method.

    ``kappa`` is Cohen's: 0 is chance, 1 is perfect. Raise `ValueError` when a picture has no answer.
    """
    if missing := sorted(set(key) - set(answers), key=int):
        raise ValueError(f"No answer for {', '.join(missing)}.")
    eye = np.array([answers[number] for number in key])
    verdict = np.array([bool(key[number]["verdict"]) for number in key])
    agree, chance = np.mean(eye == verdict), eye.mean() * verdict.mean() + (1 - eye.mean()) * (1 - verdict.mean())
    methods = sorted({str(about["method"]) for about in key.values()})
    of = {method: np.array([about["method"] == method for about in key.values()]) for method in methods}
    return {
        "pictures": len(key),
        "yes by both": int((eye & verdict).sum()),
        "yes by the eye alone": int((eye & ~verdict).sum()),
        "yes by the verdict alone": int((~eye & verdict).sum()),
        "no by both": int((~eye & ~verdict).sum()),
        "kappa": round(float((agree - chance) / (1 - chance)), 3) if chance < 1 else 1.0,
        "methods": {
            name: {"pictures": int(mine.sum()), "eye": float(eye[mine].mean()), "verdict": float(verdict[mine].mean())}
            for name, mine in of.items()
        },
    }


def read_answers(path: Path) -> dict[str, bool]:
    """Return the answers of a file, by number; raise `ValueError` for a line that is none."""
    answers = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        number, _, word = line.strip().partition(" ")
        if number and (not number.isdigit() or word not in ANSWERS or number in answers):
            raise ValueError(f"{path}: {line!r} is not a number, new to the file, with yes or no.")
        if number:
            answers[number] = ANSWERS[word]
    return answers


def _photos(characters: tuple[SubjectSpec, ...]) -> list[Image.Image]:
    shots = [(subject, i) for subject in characters for i in range(2)]
    return [_pixels(photo(one.character, random.Random(f"{one.token}/{i}"), TILE).image) for one, i in shots]


def _pixels(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.round().astype(np.uint8)).resize((TILE, TILE), Image.Resampling.LANCZOS)


def _sheet(tiles: list[tuple[str, Image.Image]]) -> Image.Image:
    """Four photos alone in the first row, the numbered pictures below."""
    rows = [tiles[:4], *(tiles[i : i + COLUMNS] for i in range(4, len(tiles), COLUMNS))]
    sheet = Image.new("RGB", (COLUMNS * TILE, len(rows) * (TILE + HEAD)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for y, row in enumerate(rows):
        for x, (name, image) in enumerate(row):
            draw.text((x * TILE + 4, y * (TILE + HEAD)), name, "black", font)
            sheet.paste(image, (x * TILE, y * (TILE + HEAD) + HEAD))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("sheets")
    make.add_argument("out", type=Path, help="the folder of the benchmark, or of benchmarks/loras.py")
    make.add_argument("spec", type=Path, nargs="?", help="the benchmark's TOML file")
    make.add_argument("--to", type=Path, required=True)
    make.add_argument("--count", type=int, default=200)
    make.add_argument("--seed", type=int, default=0)
    commands.add_parser("agree").add_argument("dir", type=Path)
    args = parser.parse_args()
    if args.command == "sheets":
        pictures = of_benchmark(Results(args.out, read_spec(args.spec))) if args.spec else of_loras(args.out)
        print(f"{sheets(list(pictures), args.count, args.seed, args.to)} pictures")
    else:
        key = json.loads((args.dir / "key.json").read_text(encoding="utf-8"))
        print(json.dumps(agreement(key, read_answers(args.dir / "answers.txt")), indent=1))


if __name__ == "__main__":
    main()
