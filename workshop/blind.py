"""A blind look at pictures: numbered sheets that name no method, and the agreement with the verdicts.

    python -m workshop.blind sheets benchmark-out SPEC --to DIR [--count 200] [--seed 0]
    python -m workshop.blind sheets loras-out --to DIR
    python -m workshop.blind agree DIR [--limits]

The first draws the pictures of a benchmark by the seed, in a random order, beside photos of their subjects, and writes
the key to DIR/key.json, which stays closed; the second does so with those of benchmarks/loras.py. Whoever looks writes
DIR/answers.txt: a line for each number, "17 yes" when both subjects are there once, each as itself, and nobody else, or
"17 no". The third opens the key: how verdict and eye agree, how far the score and the second judge tell the eye's yes
from its no, and with `--limits` how the verdict would agree by other limits.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mudi_core.benchmark.results import Results
from mudi_core.benchmark.spec import Cell
from mudi_core.benchmark.spec_file import read_spec
from mudi_core.eyes import load_detector, load_embedder
from mudi_core.score.compare import References, compare
from mudi_core.subjects.picture_file import read_photo
from mudi_core.subjects.storage import read_subjects
from mudi_core.toy.world import DEV_PAIRS, PAIRS, SubjectSpec, photo
from mudi_core.types import Comparison

from . import looks

COLUMNS, TILE, HEAD = 5, 256, 22
"""Pictures in a row, the side of one, and the height of its number, in pixels."""
ROWS = 4
"""Most rows of numbered pictures on a sheet, so that it can be looked at as it is."""
ANSWERS = {"yes": True, "no": False}
JUDGES = {"score": 1, "right": 1, "leaked": -1}
"""What else the key says of a picture, and whether more of it is better: Detect-and-Compare's score, and the shares of
looks that the second judge finds right, or the other's."""
OWN = (2 / 3, 0.7, 0.75, 0.8, 0.85)
ALIKE = (2 / 3, 0.7, 0.73, 0.76, 0.8, 0.83, 0.86)


class Shown(NamedTuple):
    """A picture that can be drawn for a sheet."""

    characters: tuple[SubjectSpec, ...]
    path: Path
    about: dict[str, Any]
    """What the key says of it: "method" and more."""
    judged: Callable[[], dict[str, Any]]
    """What the judges say of it."""


def verdict_of(one: Comparison) -> dict[str, Any]:
    """Return verdict and score, and what the limits of verdicts are about: the least share of its own and the least
    likeness of any subject, as a share of what its photos reach; 0 where not each has one figure."""
    whole = one.count_is_right and all(verdict.status in ("found", "unlike", "mixed") for verdict in one.verdicts)
    own = min(verdict.share for verdict in one.verdicts) if whole else 0.0
    alike = float((one.s_dc.diagonal() / one.s_gt.diagonal()).min()) if whole else 0.0
    return {"verdict": one.success, "score": one.score, "own": round(own, 4), "alike": round(alike, 4)}


def of_benchmark(results: Results) -> Iterator[Shown]:
    """Yield the pictures of a benchmark. Raise `BadSpec` for subjects that are not drawn."""

    def judged(cell: Cell) -> dict[str, Any]:
        result = results.read(cell)
        return verdict_of(result.comparison) | vars(looks.look_at(results, result, reader))

    reader = looks.load()
    for cell in results.spec.cells():
        if results.is_done(cell):
            characters, path = results.spec.characters(cell.combo), results.path(cell, ".png")
            yield Shown(characters, path, cell._asdict(), partial(judged, cell))


def of_loras(out: Path, pairs: Sequence[tuple[SubjectSpec, ...]] = PAIRS) -> Iterator[Shown]:
    """Yield the pictures of benchmarks/loras.py on its held-out pairs, or on others."""
    cpu = torch.device("cpu")
    detector, embedder, reader = load_detector("mini", None, cpu), load_embedder("mini", None, cpu), looks.load()
    for folder in sorted(out.glob("pair-*")):
        characters = pairs[int(folder.name.removeprefix("pair-"))]
        references = References(read_subjects(folder / "both"), embedder, cut_out=True)

        def judged(path: Path, cast: tuple[SubjectSpec, ...], references: References) -> dict[str, Any]:
            image = read_photo(path).image
            found = compare(image, references, detector, embedder, threshold=0.05)
            figures = looks.read(reader, image, found.detections.xyxy)
            return verdict_of(found) | vars(looks.seen(figures, [one.character for one in cast]))

        for path in sorted(folder.glob("training-*/pictures/*/*.png")):
            pair, training, _, method, _ = path.relative_to(out).parts
            about = {"pair": pair, "training": training, "method": method, "name": path.stem}
            yield Shown(characters, path, about, partial(judged, path, characters, references))


def sheets(pictures: Sequence[Shown], count: int, seed: int, to: Path) -> int:
    """Write the sheets, each of one combo, and the key; return how many pictures they show: at most all."""
    chosen = random.Random(seed).sample(list(pictures), min(count, len(pictures)))
    to.mkdir(parents=True, exist_ok=True)
    key: dict[int, dict[str, Any]] = {}
    for characters in dict.fromkeys(one.characters for one in pictures):
        photos, mine = [("", image) for image in _photos(characters)], [one for one in chosen if one[0] == characters]
        for begin in range(0, len(mine), ROWS * COLUMNS):
            first, tiles = len(key) + 1, list(photos)
            for one in mine[begin : begin + ROWS * COLUMNS]:
                key[len(key) + 1] = one.about | one.judged()
                with Image.open(one.path) as image:
                    tiles.append((str(len(key)), _pixels(np.asarray(image.convert("RGB")))))
            _sheet(tiles).save(to / f"sheet {first:03d} to {len(key):03d}.png")
    lines = ",\n".join(f'"{number}": {json.dumps(about)}' for number, about in key.items())
    (to / "key.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return len(key)


def agreement(key: Mapping[str, Mapping[str, Any]], answers: Mapping[str, bool]) -> dict[str, object]:
    """Return how the eye and the verdict agree, and what the eye says of each method.

    ``kappa`` is Cohen's: 0 is chance, 1 is perfect; ``AUROC`` tells how far each of `JUDGES` tells the eye's yes from
    its no. Raise `ValueError` when a picture has no answer.
    """
    if missing := sorted(set(key) - set(answers), key=int):
        raise ValueError(f"No answer for {', '.join(missing)}.")
    eye = np.array([answers[number] for number in key])
    verdict = np.array([bool(key[number]["verdict"]) for number in key])
    methods = sorted({str(about["method"]) for about in key.values()})
    of = {method: np.array([about["method"] == method for about in key.values()]) for method in methods}
    return {
        "pictures": len(key),
        **counts(eye, verdict),
        "AUROC": {name: auroc(eye, [sign * float(one[name]) for one in key.values()]) for name, sign in JUDGES.items()},
        "methods": {
            name: {"pictures": int(mine.sum()), "eye": float(eye[mine].mean()), "verdict": float(verdict[mine].mean())}
            for name, mine in of.items()
        },
    }


def counts(eye: np.ndarray, verdict: np.ndarray) -> dict[str, float]:
    """Return how often eye and verdict agree and do not, and Cohen's kappa."""
    agree, chance = np.mean(eye == verdict), eye.mean() * verdict.mean() + (1 - eye.mean()) * (1 - verdict.mean())
    return {
        "yes by both": int((eye & verdict).sum()),
        "yes by the eye alone": int((eye & ~verdict).sum()),
        "yes by the verdict alone": int((~eye & verdict).sum()),
        "no by both": int((~eye & ~verdict).sum()),
        "kappa": round(float((agree - chance) / (1 - chance)), 3) if chance < 1 else 1.0,
    }


def auroc(eye: np.ndarray, values: Sequence[float]) -> float:
    """Return how likely a picture that the eye accepts has the greater value of two; ties count half."""
    yes, no = np.array(values)[eye][:, None], np.array(values)[~eye]
    return round(float(np.mean((yes > no) + 0.5 * (yes == no))), 3) if yes.size and no.size else 1.0


def by_limits(
    key: Mapping[str, Mapping[str, Any]], answers: Mapping[str, bool], own: float, alike: float
) -> dict[str, float]:
    """Return `counts` for a verdict by other limits, neither below the lax ones (`score.verdicts.LAX`)."""
    eye = np.array([answers[number] for number in key])
    return counts(eye, np.array([one["own"] >= own and one["alike"] >= alike for one in key.values()]))


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
    make.add_argument("--dev", action="store_true", help="benchmarks/loras.py had the development pairs")
    agree = commands.add_parser("agree")
    agree.add_argument("dir", type=Path)
    agree.add_argument("--limits", action="store_true", help="agreement by other limits of the verdict, too")
    args = parser.parse_args()
    if args.command == "sheets":
        pairs = DEV_PAIRS if args.dev else PAIRS
        found = of_benchmark(Results(args.out, read_spec(args.spec))) if args.spec else of_loras(args.out, pairs)
        print(f"{sheets(list(found), args.count, args.seed, args.to)} pictures")
        return
    key = json.loads((args.dir / "key.json").read_text(encoding="utf-8"))
    answers = read_answers(args.dir / "answers.txt")
    print(json.dumps(agreement(key, answers), indent=1))
    for own, alike in product(OWN, ALIKE) if args.limits else ():
        print(f"{own:.2f} {alike:.2f} {json.dumps(by_limits(key, answers, own, alike))}")


if __name__ == "__main__":
    main()
