"""Training that is killed anywhere, and goes on to the same file: python tests/kills.py --kills 100

Each run trains a tiny U-Net of SDXL's architecture in a process of its own, which is killed up to three times: by the
kernel at some moment of its computing or at a byte of a file that it writes, or with SIGKILL before one of its dealings
with a file. Nothing of it runs after that. Then it is resumed to its end. Whatever lies in the folder under its final
name must be whole at every moment, and the LoRA in the end must be that of a run that nobody disturbed, byte for byte.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tiny_sdxl
import torch
from test_train_loop import CONFIG, plan_for
from tiny_sdxl import tiny_unet

from mudi_core.lora.file import save_lora
from mudi_core.tensor_file import read_tensors

SETTINGS = CONFIG.but(steps=9, save_every=2, preview_every=3, rank=2)
KINDS = ("in a step", "before a file is dealt with", "at a byte of a file")
LORA, STOPPED = "lora.safetensors", "stopped.safetensors"
KILLS_OF_A_RUN = 3
NEW_NUMBERS, KILLED = 0x20000000, 99
"""Linux's CLONE_NEWPID, and how the first process of a container says that the second was killed."""


@dataclass
class Report:
    kills: int
    """Processes that were killed, by kind."""
    by_kind: dict[str, int]
    runs: int
    lost: int
    """Runs that ended in another LoRA, or in none, or without a LoRA or preview that was due along the way."""
    halves: int
    """Files under their final name that were not whole, and any others left in the end."""
    seconds: float


def train(folder: Path, unet: Any, on_step: Callable[[int, int, float], None] | None = None) -> None:
    """As the train command does it: on from what is there, a checkpoint now and then, the LoRA, no checkpoint."""
    stopped = folder / STOPPED

    def gives(what: str) -> Callable[[int, Any], object]:
        return lambda step, state: save_lora(folder / f"{what}-{step:06d}.safetensors", state, {"step": str(step)})

    result = tiny_sdxl.train(
        unet,
        plan_for(SETTINGS),
        SETTINGS,
        on_step=on_step,
        resume=stopped if stopped.is_file() else None,
        checkpoint=stopped,
        on_save=gives("lora"),
        on_preview=gives("preview"),
    )
    save_lora(folder / LORA, result.state, {"step": str(SETTINGS.samples.steps)})
    stopped.unlink(missing_ok=True)


def die_after(seconds: float) -> None:
    """The kernel ends this process after so much computing."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-6))


def die_before_a_file(number: int, folder: Path) -> None:
    """SIGKILL at so-manyth of this process's dealings with the folder's files."""
    at_a_dealing(number, folder, lambda: os.kill(os.getpid(), signal.SIGKILL))


def at_a_dealing(number: int, folder: Path, then: Callable[[], object]) -> Callable[[], int]:
    """What happens before so-manyth of this process's dealings with the folder's files; gives how many there were."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.scandir", "os.mkdir", "os.rmdir") and str(folder) in str(
            arguments
        ):
            seen += 1
            if seen == number:
                then()

    sys.addaudithook(hook)
    return lambda: seen


def die_at_a_byte(byte: int) -> None:
    """The kernel ends this process when a file of it grows beyond."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))


def in_a_process(work: Callable[[], None]) -> int:
    """The process's number; it ends with 0 if the work ends well."""
    process = os.fork()
    if process:
        return process
    try:
        torch.set_num_threads(1)  # threads do not outlive a fork
        work()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def in_a_container(work: Callable[[], None]) -> int:
    """As `in_a_process`, and whoever works has the number 2 each time, where a process may make such places."""

    def outside() -> None:
        if sys.platform != "linux" or ctypes.CDLL(None).unshare(NEW_NUMBERS):
            work()
        # The first of a container cannot be killed from inside, so that it only waits.
        elif ended(in_a_process(lambda: os._exit(KILLED if ended(in_a_process(work)) else 0))):
            os.kill(os.getpid(), signal.SIGKILL)

    return in_a_process(outside)


def ended(process: int) -> bool:
    """Whether a process was killed; it may have been done before, but does not fail by itself."""
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, KILLED), "a process failed by itself"
    return status != 0


def killed(folder: Path, unet: Any, kind: str, rng: random.Random, seconds: float) -> bool:
    """Whether a process that trains, and is to die in this way, did; it may have been done before.

    ``seconds``: that the whole training computes.
    """
    number, byte, first = rng.randint(1, 40), rng.randint(0, 120_000), rng.randint(1, SETTINGS.samples.steps)
    moment = rng.random() * seconds

    def work() -> None:
        if kind == KINDS[0]:
            die_after(moment)
        if kind == KINDS[1]:
            die_before_a_file(number, folder)
        later = (lambda done, *_: die_at_a_byte(byte) if done >= first else None) if kind == KINDS[2] else None
        train(folder, unet, later)

    return ended(in_a_process(work))


def broken(folder: Path) -> int:
    """Files that claim to be whole and are not."""
    count = 0
    for path in folder.rglob("*.safetensors"):
        try:
            read_tensors(path)
        except Exception as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            count += 1
    return count


def run(kills: int, seed: int, folder: Path) -> Report:
    """So many kills at least."""
    unet, rng, began = tiny_unet(), random.Random(seed), time.monotonic()
    undisturbed = folder / "undisturbed"
    process = in_a_process(lambda: train(undisturbed, unet))
    _, status, used = os.wait4(process, 0)
    assert status == 0
    seconds = used.ru_utime + used.ru_stime
    wanted = {path.name: path.read_bytes() for path in undisturbed.iterdir()}
    assert LORA in wanted and STOPPED not in wanted
    by_kind: Counter[str] = Counter()
    runs = lost = halves = 0
    while by_kind.total() < kills:
        runs += 1
        place = folder / f"run {runs}"
        for _ in range(rng.randint(1, KILLS_OF_A_RUN)):
            kind = min(KINDS, key=lambda kind: by_kind[kind])
            if killed(place, unet, kind, rng, seconds):
                by_kind[kind] += 1
            halves += broken(place)
        process = in_a_process(lambda place=place: train(place, unet))  # type: ignore[misc]
        _, status = os.waitpid(process, 0)
        found = {path.name: path.read_bytes() for path in place.iterdir()} if place.is_dir() else {}
        lost += status != 0 or any(found.get(name) != content for name, content in wanted.items())
        halves += len([name for name in found if found[name] != wanted.get(name)])
    return Report(by_kind.total(), dict(by_kind), runs, lost, halves, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(options.kills, options.seed, Path(folder))
    print(json.dumps(asdict(report), indent=1))
    sys.exit(report.lost + report.halves > 0)


if __name__ == "__main__":
    main()
