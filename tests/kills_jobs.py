"""Priors, a benchmark and Train LoRA in ComfyUI, killed anywhere: python tests/kills_jobs.py --kills 30

So many kills of each. Each run is done by one process or by two at once, which are killed up to twice: before one of
their dealings with a file, at some moment of their computing, or at a byte of a file. All have the process number 2, as
in a container after each start. Then one more does it to its end. Every file must then be that of a run that nobody
disturbed, byte for byte, none may be missing, and nothing else may lie there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import comfyui
import kills
from coloured import coloured

from mudi_core.benchmark.results import Results
from mudi_core.benchmark.run import Worker
from mudi_core.benchmark.spec_file import read_spec
from mudi_core.cli import main as mudi
from mudi_core.eyes import embedded
from mudi_core.subjects.storage import write_subjects
from mudi_core.types import MudiError, SubjectSet

KILLS_OF_A_RUN = 2
SPEC = """
base = "mini"
methods = ["segmix", "mudi"]
prompts = ["{subjects}"]
seeds = 1
[combos]
cats = 0
[train]
steps = 2
rank = 2
batch_size = 1
resolution = 64
max_composites = 2
crops_per_photo = 1
[generate]
steps = 1
size = [64, 64]
"""

Job = Callable[[Path], None]
"""Does it in a folder, or what is left to do there."""


@dataclass
class Report:
    kills: int
    """Processes that were killed."""
    with_two: int
    """Of them, those that had another beside them."""
    runs: int
    lost: int
    """Runs in whose end a file was missing or another."""
    left: int
    """Files of other names in the end, and files that were not whole at any time."""
    seconds: float


def priors(folder: Path) -> Job:
    """The priors command."""
    subjects = coloured("red", photos=1).subjects
    dataset = write_subjects(SubjectSet((replace(subjects[0], class_noun="cat"),)), folder / "subjects")
    command = f"priors {dataset} --base mini --count 2 --steps 8 --threshold 0.001 --device cpu --json --out"

    def work(place: Path) -> None:
        assert mudi([*command.split(), str(place / "priors")]) == 0

    return work


def benchmark(folder: Path) -> Job:
    """Photos drawn and cut out, LoRAs trained, pictures made and judged."""
    path = folder / "spec.toml"
    path.write_text(SPEC)
    spec = read_spec(path)
    return lambda place: Worker(Results(place, spec), embedded.load_detector(), embedded.load_embedder()).run()


def node(folder: Path) -> Job:
    """Train LoRA in ComfyUI, which saves now and then."""
    comfy = comfyui.load(folder)
    paths = comfy.core("folder_paths")
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    inputs = comfy.node("MudiTrainSettings").GET_SCHEMA().inputs
    defaults = {one.id: one.options[0] if hasattr(one, "options") else one.default for one in inputs}
    settings = comfy.run("MudiTrainSettings", **{**defaults, "save_every": 2}).result[0]
    segmix = {"probability": 0.5, "relative_sizes": "", "overlap": 0.2, "background_weight": 1.0}
    dataset, _ = comfy.run("MudiSegMixDataset", subjects=coloured("red", "blue", photos=1), **segmix).result
    widgets = {
        "method": "segmix", "preset": "mini, 192 px", "steps": 5, "rank": 2, "learning_rate": 1e-3, "batch_size": 1,
        "seed": 7,
    }  # fmt: skip

    def work(place: Path) -> None:
        paths.output_directory = str(place / "output")
        paths.folder_names_and_paths["loras"] = ([str(place / "loras")], {".safetensors"})
        comfy.run(
            "MudiTrainLora",
            model=model,
            clip=clip,
            vae=vae,
            dataset=dataset,
            name="killed",
            settings=settings,
            **widgets,
        )

    return work


JOBS = {"priors": priors, "benchmark": benchmark, "node": node}


def dying(job: Job, place: Path, rng: random.Random, about: Undisturbed) -> int:
    """A process that does the job until it is killed, or is done before; its number."""
    kind, number = rng.randrange(3), rng.randint(1, about.dealings)
    byte, moment = rng.randrange(about.longest), rng.random() * about.seconds

    def run() -> None:
        if kind == 0:
            kills.die_before_a_file(number, place)
        elif kind == 1:
            kills.die_after(moment)
        else:
            kills.at_a_dealing(number, place, lambda: kills.die_at_a_byte(byte))
        with contextlib.suppress(MudiError):  # the second of two may be told so
            job(place)

    return kills.in_a_container(run)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbs: what it leaves, and what it takes."""

    files: dict[str, bytes]
    dealings: int
    longest: int
    seconds: float


def files(place: Path) -> dict[str, bytes]:
    """By name without the number of a LoRA: one that was done when its process was killed stays, with its number.

    How many seconds a picture of the benchmark took is not what it shows.
    """
    found: dict[str, bytes] = {}
    for path in sorted(path for path in place.rglob("*") if not path.is_dir()):
        name = re.sub(r"killed_\d{5}", "killed", str(path.relative_to(place)))
        held = re.sub(rb'"seconds": [0-9.e-]+', b"", path.read_bytes())
        found[name if found.get(name, held) == held else str(path)] = held
    return found


def undisturbed(job: Job, place: Path, notes: Path) -> Undisturbed:
    def run() -> None:
        dealings = kills.at_a_dealing(0, place, lambda: None)
        job(place)
        used = resource.getrusage(resource.RUSAGE_SELF)
        notes.write_text(json.dumps([dealings(), used.ru_utime + used.ru_stime]))

    assert not kills.ended(kills.in_a_process(run))
    dealings, seconds = json.loads(notes.read_text())
    found = files(place)
    return Undisturbed(found, dealings, max(map(len, found.values())), seconds)


def run(name: str, wanted: int, seed: int, folder: Path) -> Report:
    """So many kills at least."""
    rng, began, report = random.Random(seed), time.monotonic(), Report(0, 0, 0, 0, 0, 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    job = JOBS[name](folder)
    about = undisturbed(job, folder / "undisturbed", folder / "notes.json")
    while report.kills < wanted:
        report.runs += 1
        place = folder / f"run {report.runs}"
        for _ in range(rng.randint(1, KILLS_OF_A_RUN)):
            died = [
                kills.ended(process) for process in [dying(job, place, rng, about) for _ in range(rng.randint(1, 2))]
            ]
            report.kills += sum(died)
            report.with_two += sum(died) if len(died) == 2 else 0
            report.left += kills.broken(place)
        assert not kills.ended(kills.in_a_container(lambda place=place: job(place)))  # type: ignore[misc]
        found = files(place)
        for path, content in about.files.items():
            if found.get(path) != content:
                print(f"{name}, run {report.runs}: lost {path}", file=sys.stderr)
                report.lost += 1
        for path in found.keys() - about.files:
            print(f"{name}, run {report.runs}: left {path}", file=sys.stderr)
            report.left += 1
        shutil.rmtree(place)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    options = parser.parse_args()
    ends = []
    for name in options.jobs:
        with tempfile.TemporaryDirectory() as folder:
            report = run(name, options.kills, options.seed, Path(folder))
        print(json.dumps({name: asdict(report)}, indent=1), flush=True)
        ends.append(report.lost + report.left)
    sys.exit(any(ends))


if __name__ == "__main__":
    main()
