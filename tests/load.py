"""Two people at one ComfyUI, who cancel now and then: python tests/load.py --prompts 200

Both queue the stock graph on the embedded model, with our start in the place of the empty latent, each with seeds and
layouts of their own; now and then one presses Cancel, or queues something that cannot be. Told are wrong pictures (a
seed must give the same one whenever it comes again), the server's memory after its warm-up and in the end, and what is
left: threads, temporary files, ports.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from comfyui_server import Graph, Server, changed, serve

SEEDS = 5
"""Different pictures; each is asked for again and again."""
FLAT = 1.05
"""Resident memory in the end, over that after the warm-up, at most."""


@dataclass
class Report:
    prompts: int
    done: int
    cancelled: int
    refused: int
    wrong: int
    """Pictures that differ from an earlier one of the same seed, and errors that nobody provoked."""
    warm_megabytes: float
    megabytes: float
    threads_more: int
    files_left: list[str]
    ports: int
    seconds: float


def asked(graph: Graph, seed: int, number: int) -> Graph:
    """Of a seed always the same picture; the prefix makes the server save it anew."""
    return changed(
        graph,
        sampler={"seed": seed},
        layout={"seed": seed},
        latent={"seed": seed},
        save={"filename_prefix": f"load_{number}"},
    )


def put_load(server: Server, graph: Graph, prompts: int, seed: int) -> Report:
    """``graph``: with nodes "sampler", "layout", "latent", "decode" and "save"."""
    import psutil

    process = psutil.Process(server.process)
    rng, began = random.Random(seed), time.monotonic()
    known: dict[int, str] = {}
    lock = threading.Lock()
    counts = {"done": 0, "cancelled": 0, "refused": 0, "wrong": 0}

    def one(number: int, choice: float, picture: int, client: str) -> None:
        if choice < 0.1:
            server.refusal(changed(graph, layout={"width": -8}))
            key = "refused"
        else:
            prompt_id = server.queue(asked(graph, picture, number), client)
            if choice < 0.35:
                time.sleep(choice)
                server.post("/interrupt", {"prompt_id": prompt_id})
            run = server.wait(prompt_id)
            if run.status == "success":
                (path,) = server.files(run, "save")
                digest = hashlib.sha256(pixels(path)).hexdigest()
                with lock:
                    key = "done" if known.setdefault(picture, digest) == digest else "wrong"
            else:
                key = "cancelled" if "execution_interrupted" in run.messages else "wrong"
        with lock:
            counts[key] += 1

    def client(name: str, tasks: list[tuple[int, float, int]]) -> None:
        for number, choice, picture in tasks:
            one(number, choice, picture, name)

    def all_of(tasks: list[tuple[int, float, int]]) -> None:
        clients = [threading.Thread(target=client, args=(f"client {i}", tasks[i::2])) for i in range(2)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()

    tasks = [(number, rng.random(), rng.randrange(SEEDS)) for number in range(prompts)]
    warm_up = [(-1 - picture, 1.0, picture) for picture in range(SEEDS)]
    all_of(warm_up)
    warm, threads = process.memory_info().rss, process.num_threads()
    left = files(server)
    all_of(tasks)
    return Report(
        prompts=len(warm_up) + prompts,
        **counts,
        warm_megabytes=round(warm / 1e6, 1),
        megabytes=round(process.memory_info().rss / 1e6, 1),
        threads_more=process.num_threads() - threads,
        files_left=sorted(files(server) - left),
        ports=len({one.laddr.port for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}),
        seconds=round(time.monotonic() - began, 1),
    )


def files(server: Server) -> set[str]:
    """Temporary and half files; pictures of nodes' previews have the names that they had before."""
    every = (path for path in server.base.rglob("*") if path.is_file())
    kept = {path.relative_to(server.base).as_posix() for path in every}
    return {name for name in kept if name.endswith((".part", ".new", ".old", ".tmp")) or "/.tmp" in name}


def pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def drawn_set(folder: Path) -> None:
    """Two characters of the toy world as a dataset."""
    import torch

    from mudi_core.subjects.storage import write_subjects
    from mudi_core.toy.world import PAIRS, photo
    from mudi_core.types import Photo, Subject, SubjectSet

    subjects: list[Any] = []
    for spec in PAIRS[0]:
        one = photo(spec.character, random.Random(spec.token), 96)
        image = torch.from_numpy(one.image.copy()).float() / 255
        mask = torch.from_numpy(one.masks[0]).float()
        subjects.append(Subject(spec.token, spec.class_noun, (Photo(f"{spec.token}.png", image),), (mask,)))
    write_subjects(SubjectSet(tuple(subjects)), folder)


def main() -> None:
    from test_server import STARTED

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.contextmanager(serve)(Path(folder)) as server:
        drawn_set(server.base / "input" / "drawn")
        report = put_load(server, STARTED, options.prompts, options.seed)
    print(json.dumps(asdict(report), indent=1))
    sys.exit(report.wrong > 0 or report.megabytes > FLAT * report.warm_megabytes or bool(report.files_left))


if __name__ == "__main__":
    main()
