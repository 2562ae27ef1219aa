"""Seconds to the first picture: the real server, the quickstart as it is published, Run.

    python benchmarks/first_picture.py
    python benchmarks/first_picture.py --workflow 0_quickstart --repeats 3

Each time is one new server, with an empty folder and this pack alone. Told are the seconds until it answers, and from
Run until the first file lies in its output folder; CPU time beside the clock's, which a busy machine stretches. Several
threads on a busy machine wait for each other: there, only --threads 1 tells something. Needs requirements-dev.txt.
`COMFYUI_DIR` names the checkout (default: ~/ComfyUI).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests"), str(Path(__file__).resolve().parent.parent)]

from comfyui_server import Server, serve  # noqa: E402
from workflow_files import api_graph  # noqa: E402

LEAST = 1000
"""Bytes of a picture: a file that was only begun has fewer."""
WAIT = 600.0
"""Seconds after which nobody waits any longer."""


def spent(process: int) -> float:
    """Return the seconds of CPU that a process took so far."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def first_file(server: Server, prompt_id: str) -> float:
    """Return the moment at which a graph's first picture is there; exit where it has none within `WAIT` seconds."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if any(file.stat().st_size > LEAST for file in (server.base / "output").rglob("*.png")):
            return time.monotonic()
        ended = server.get(f"/history/{prompt_id}").get(prompt_id)
        if ended and ended["status"]["status_str"] == "error":
            sys.exit(json.dumps(ended["status"], indent=1))
        time.sleep(0.05)
    sys.exit(f"no picture within {WAIT:.0f} s")


def measure(workflow: str, folder: Path, steps: int = 0) -> dict[str, float]:
    """Return the seconds of one new server: its start, and its first picture.

    ``steps``: of the sampler, instead of the workflow's own.
    """
    began = time.monotonic()
    with closing(serve(folder)) as servers:
        server = next(servers)
        answered, before = time.monotonic(), spent(server.process)
        graph = api_graph(workflow, server.get("/object_info"))
        for node in graph.values():
            if steps and node["class_type"] == "KSampler":
                node["inputs"]["steps"] = steps
        run = time.monotonic()
        there = first_file(server, server.queue(graph))
        told = {"start": answered - began, "start_cpu": before, "picture": there - run}
        return {
            name: round(value, 1) for name, value in {**told, "picture_cpu": spent(server.process) - before}.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflow", default="0_quickstart", help="of the folder workflows (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="servers one after the other (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            load = os.getloadavg()[0]
            print(json.dumps({**measure(options.workflow, Path(folder)), "load_before": round(load, 1)}), flush=True)


if __name__ == "__main__":
    main()
