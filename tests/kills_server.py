"""ComfyUI's whole server, killed while Train LoRA works: python tests/kills_server.py --kills 20

The real server trains with LoRAs saved along the way and scored previews, is killed at some moment of the node, is
started again on the same folders, and gets the same graph again (killed again now and then). In the end every LoRA and
preview must be that of a training that nobody disturbed, byte for byte, and nothing else may lie in the folders.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import comfyui_server
from coloured import coloured
from comfyui_server import Graph, Server, changed
from test_server_train import TRAIN

from mudi_core.subjects.storage import write_subjects

AGAIN = 0.3
"""How often a run is killed once more."""
SETTINGS = {
    **{"learning": "as in Train LoRA", "memory": "as in Train LoRA", "optimizer": "adamw", "schedule": "constant"},
    **{"warm_up": 0, "accumulation": 1, "alpha": 0.0, "min_snr_gamma": 0.0, "noise_offset": 0.0, "kl_weight": 0.0},
    **{"buckets": False, "save_every": 2, "resolution": 64, "start_from": "none"},
}
LAYOUT = {"width": 64, "height": 64, "mode": "random", "seed": 0, "relative_sizes": "", "overlap": 0.4}
EYE = "embedded (drawn toys only)"
PREVIEW = {
    **{"every": 3, "seed": 0, "count": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"},
    **{"detector": EYE, "embedder": EYE, "threshold": 0.05, "cut_out": False, "download": False},
}


@dataclass
class Report:
    """What became of the runs."""

    kills: int = 0
    runs: int = 0
    lost: int = 0
    """Files that are missing or other than those of the undisturbed run."""
    left: int = 0
    """Files that should not lie there."""
    seconds: float = 0.0


def graph(name: str) -> Graph:
    """A short training called ``name``, with a LoRA every second step and a preview every third."""
    words = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["checkpoint", 1], "text": "a photo of olis cat"}}
    layout = {"class_type": "MudiLayout", "inputs": {"subjects": ["subjects", 0], **LAYOUT}}
    links: dict[str, Any] = {"layout": ["layout", 0], "positive": ["words", 0], "negative": ["words", 0]}
    return {
        **changed(TRAIN, train={"name": name, "steps": 7, "settings": ["settings", 0], "preview": ["preview", 0]}),
        "words": words,
        "layout": layout,
        "settings": {"class_type": "MudiTrainSettings", "inputs": SETTINGS},
        "preview": {"class_type": "MudiTrainPreview", "inputs": {**links, **PREVIEW}},
    }


@contextmanager
def started(base: Path) -> Any:
    """The server on these folders."""
    yield from comfyui_server.serve(base)


def files(base: Path, name: str) -> dict[str, bytes]:
    """LoRAs and previews of a training, and whatever else of it lies there; without its name and its key."""
    found = {}
    for folder in (base / "models" / "loras", base / "output" / "mudi"):
        for path in folder.rglob("*"):
            if path.is_file() and name in str(path.relative_to(base)):
                told = "_".join(part for part in path.name.replace(name, "").split("_") if len(part) != 12)
                found[f"{path.parent.name.replace(name, '')}/{told}"] = path.read_bytes()
    return found


def is_done(base: Path, name: str) -> bool:
    """Whether the LoRA is written and nothing waits to go on: the same graph would train a second one."""
    is_written = (base / "models" / "loras" / f"{name}_00001.safetensors").is_file()
    return is_written and not list((base / "output" / "mudi" / name).glob("stopped_*"))


def killed(base: Path, name: str, seconds: float) -> bool:
    """Queue the training and kill the server so many seconds after the node began; whether that was in time."""
    with started(base) as server:
        prompt = server.queue(graph(name))
        began = _begun(server)
        while time.monotonic() - began < seconds:
            if prompt in server.get(f"/history/{prompt}"):
                return False
            time.sleep(0.02)
        os.kill(server.process, signal.SIGKILL)
    return True


def _begun(server: Server) -> float:
    deadline = time.monotonic() + 120
    while "got prompt" not in server.log() and time.monotonic() < deadline:
        time.sleep(0.02)
    return time.monotonic()


def run(kills: int, seed: int, base: Path) -> Report:
    """So many kills in the folders of ``base``."""
    rng, report, began = random.Random(seed), Report(), time.monotonic()
    write_subjects(coloured("red", "blue", photos=1), base / "input" / "to_learn")
    with started(base) as server:
        since = time.monotonic()
        server.run(graph("whole0"))
        lasts = time.monotonic() - since
    wanted = files(base, "whole0")
    assert len(wanted) == 8, sorted(wanted)  # three LoRAs saved along the way, the last and the best; three previews
    while report.kills < kills:
        name = f"run{report.runs:03d}"
        report.runs += 1
        while True:
            report.kills += killed(base, name, rng.uniform(0, lasts))
            if rng.random() > AGAIN or is_done(base, name):
                break
        if not is_done(base, name):
            with started(base) as server:
                server.run(graph(name))
        found = files(base, name)
        report.lost += sum(found.get(path) != content for path, content in wanted.items())
        report.left += len(found.keys() - wanted.keys())
        if found != wanted:
            print(name, sorted(wanted.keys() ^ found.keys()), file=sys.stderr)
        print(f"{name}: {report.kills} kills, {report.lost} lost, {report.left} left", file=sys.stderr, flush=True)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(options.kills, options.seed, Path(folder))
    print(json.dumps(asdict(report), indent=1))
    sys.exit(bool(report.lost or report.left))


if __name__ == "__main__":
    main()
