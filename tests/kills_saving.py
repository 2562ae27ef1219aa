"""Saving sets and downloading weights, killed anywhere: python tests/kills_saving.py --kills 1000 --downloads 100

Each round one or two processes save another set to a folder that holds one, or to a new one, and are killed: before one
of their dealings with a file, at some moment of their computing, or at a byte of a file. All of them say that they have
the same process number, as in a container after each start. Whoever opens the folder next must find the old set or a
new one, whole, and the user's other files, and nothing else, and must be able to save. Downloads likewise.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kills
from coloured import coloured

from mudi_core.eyes import weights
from mudi_core.eyes.pins import TABLE, WeightFile, Weights
from mudi_core.eyes.weights import MissingWeights
from mudi_core.subjects.saving import take_up
from mudi_core.subjects.storage import read_subjects, write_subjects
from mudi_core.types import MudiError

OLD, NEW = ("red", "blue"), (("black", "orange"), ("orange",))
SECONDS = 0.03
"""That saving such a set computes."""
SIZE = 3_000_000


@dataclass
class Report:
    kills: int
    """Processes that were killed."""
    with_two: int
    """Of them, those that had another writer beside them."""
    rounds: int
    lost: int
    """Rounds in which no whole set stood there, a file of the user was gone, or nobody could save any more."""
    left: int
    """Rounds after which something else lay there."""
    seconds: float


def dying(work: Callable[[], object], rng: random.Random, place: Path, longest: int) -> int:
    """A process that works until it is killed, or is done before; its number."""
    kind, number, moment, byte = rng.randrange(3), rng.randint(1, 60), rng.random() * SECONDS, rng.randrange(longest)

    def run() -> None:
        os.getpid = lambda: 7  # type: ignore[method-assign]
        if kind == 0:
            kills.die_before_a_file(number, place)
        elif kind == 1:
            kills.die_after(moment)
        else:
            kills.die_at_a_byte(byte)
        with contextlib.suppress(MudiError):
            work()

    return kills.in_a_process(run)


def was_killed(process: int) -> bool:
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or status == 0, "a process failed by itself"
    return os.WIFSIGNALED(status)


def run_sets(wanted: int, seed: int, folder: Path) -> Report:
    """So many kills at least."""
    rng, began = random.Random(seed), time.monotonic()
    sets = {tokens: coloured(*tokens, photos=1) for tokens in (OLD, *NEW)}
    report = Report(0, 0, 0, 0, 0, 0.0)
    while report.kills < wanted:
        report.rounds += 1
        place = folder / str(report.rounds)
        place.mkdir(parents=True)
        there = rng.random() < 0.7
        if there:
            write_subjects(sets[OLD], place / "set")
            (place / "set" / "notes.txt").write_text("mine")
            (place / "set" / "empty").mkdir()
        writers = NEW[: rng.randint(1, 2)]
        save = [lambda tokens=tokens, place=place: write_subjects(sets[tokens], place / "set") for tokens in writers]
        ended = [was_killed(process) for process in [dying(one, rng, place, 1500) for one in save]]
        report.kills += sum(ended)
        report.with_two += sum(ended) if len(ended) == 2 else 0
        if rng.random() < 0.7:  # else the next who saves is the first who looks
            take_up(place / "set")
            report.left += not is_clean(place)
            report.lost += not is_whole(place / "set", there, [sets[tokens].tokens for tokens in (OLD, *writers)])
        report.lost += read_subjects(write_subjects(sets[OLD], place / "set")).tokens != OLD
        report.left += not is_clean(place)
        shutil.rmtree(place)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def is_clean(place: Path) -> bool:
    return not [path for path in place.rglob("*") if path.name.startswith(".")] and len(list(place.iterdir())) <= 1


def is_whole(folder: Path, there: bool, allowed: list[tuple[str, ...]]) -> bool:
    if not there and not folder.exists():
        return True  # nothing was saved yet
    try:
        if there and not ((folder / "empty").is_dir() and (folder / "notes.txt").read_text() == "mine"):
            return False
        return read_subjects(folder).tokens in allowed[not there :]
    except (MudiError, OSError) as error:
        print(error, file=sys.stderr)
        return False


def run_downloads(wanted: int, seed: int, folder: Path) -> Report:
    """So many kills at least, of one or two who fetch the same file."""
    rng, began = random.Random(seed), time.monotonic()
    content = rng.randbytes(SIZE)
    source = folder / "source.bin"
    folder.mkdir(parents=True, exist_ok=True)
    source.write_bytes(content)
    file = WeightFile("model.bin", source.as_uri(), hashlib.sha256(content).hexdigest(), SIZE)
    TABLE["killed"] = Weights("killed", "nowhere", (file,))
    report = Report(0, 0, 0, 0, 0, 0.0)
    while report.kills < wanted:
        report.rounds += 1
        place = folder / str(report.rounds)
        fetch = [lambda place=place: weights.locate("killed", [place], download=True)] * rng.randint(1, 2)
        ended = [was_killed(process) for process in [dying(one, rng, place, SIZE) for one in fetch]]
        report.kills += sum(ended)
        report.with_two += sum(ended) if len(ended) == 2 else 0
        with contextlib.suppress(MissingWeights):
            weights.locate("killed", [place])
        report.left += bool(list(place.rglob("*.part")))
        report.lost += weights.locate("killed", [place], download=True).read_bytes() != content
        report.left += [path.name for path in (place / "killed").iterdir()] != ["model.bin"]
        shutil.rmtree(place)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--downloads", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reports = {
            "sets": run_sets(options.kills, options.seed, Path(folder) / "sets"),
            "downloads": run_downloads(options.downloads, options.seed, Path(folder) / "downloads"),
        }
    print(json.dumps({name: asdict(report) for name, report in reports.items()}, indent=1))
    sys.exit(any(report.lost + report.left for report in reports.values()))


if __name__ == "__main__":
    main()
