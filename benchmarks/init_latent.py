"""What the start costs: Layout and Init Latent, over one KSampler of 30 steps at the same size, in ComfyUI.

    COMFYUI_DIR=~/ComfyUI python benchmarks/init_latent.py
    COMFYUI_DIR=~/ComfyUI python benchmarks/init_latent.py --checkpoint sd_xl_base_1.0.safetensors --side 1024

All that the two nodes do is counted, each time anew: cutting out, the places, the canvas, its preview, the editor's
pictures, the VAE. Their subjects are two drawn characters with five photos each. Times are CPU time on a CPU, else the
clock's; the median of the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TARGET = 1.05


def pack(comfyui: Path, base: Path, cpu: bool) -> Any:
    """Load the nodes of the pack into a ComfyUI without a server; return a function from name to module."""
    sys.path.insert(0, str(comfyui))
    arguments = importlib.import_module("comfy.cli_args").args
    arguments.cpu, arguments.base_directory = cpu, str(base)
    (base / "temp").mkdir()
    spec = importlib.util.spec_from_file_location("mudi", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    sys.modules["mudi"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["mudi"])
    return lambda name: importlib.import_module(f"mudi.{name}")


def subjects(load: Callable[[str], Any], side: int) -> Any:
    """Return the first of the reported pairs, five photos each with their true masks."""
    import torch

    world, types = load("mudi_core.toy.world"), load("mudi_core.types")
    found = []
    for spec in world.PAIRS[0]:
        shots = [world.photo(spec.character, random.Random(f"{spec.token}/{i}"), side) for i in range(5)]
        photos = tuple(
            types.Photo(f"{i}.png", torch.from_numpy(shot.image.copy()).float() / 255) for i, shot in enumerate(shots)
        )
        masks = tuple(torch.from_numpy(shot.masks[0]).float() for shot in shots)
        found.append(types.Subject(spec.token, spec.class_noun, photos, masks))
    return types.SubjectSet(tuple(found))


def measured(options: argparse.Namespace, base: Path) -> dict[str, float]:
    """Return the median seconds of each node."""
    load = pack(options.comfyui, base, options.cpu)
    import torch

    generate, start = load("nodes.generate"), load("nodes.init_latent")
    stock = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    if options.checkpoint:
        model, clip, vae = importlib.import_module("comfy.sd").load_checkpoint_guess_config(str(options.checkpoint))[:3]
    else:
        model, clip, vae = load("nodes.mini").MiniCheckpoint.execute().result
    everybody = subjects(load, options.photo_side)
    with torch.inference_mode():
        (words,) = stock["CLIPTextEncode"]().encode(clip, "a photo of olis cat and hta cat")
    sampler = stock["KSampler"]()
    seconds: dict[str, list[float]] = {"Layout": [], "Init Latent": [], "KSampler": []}

    def timed(node: str, act: Callable[[], Any]) -> Any:
        begun = clock(options.cpu)
        with torch.inference_mode():
            result = act()
        seconds[node].append(clock(options.cpu) - begun)
        return result

    for seed in range(options.rounds + 1):
        for picture in (base / "temp").iterdir():
            picture.unlink()
        side = options.side
        placed = timed(
            "Layout",
            lambda seed=seed, side=side: generate.MakeLayout.execute(everybody, side, side, "random", seed, "", 0.4),
        )
        latent = timed(
            "Init Latent",
            lambda seed=seed, placed=placed: start.InitLatent.execute(placed.result[0], vae, -1.0, 1, seed),
        )
        timed(
            "KSampler",
            lambda seed=seed, latent=latent: sampler.sample(
                model, seed, options.steps, 5.0, "euler", "normal", words, words, latent.result[0], denoise=1.0
            ),
        )
    # The first round warms up.
    return {node: statistics.median(times[1:]) for node, times in seconds.items()}


def clock(cpu: bool) -> float:
    if cpu:
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="an SDXL file (default: the embedded model)")
    parser.add_argument("--side", type=int, default=192, help="of the picture, in pixels (default: %(default)s)")
    parser.add_argument("--photo-side", type=int, default=320, help="of the photos (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of the sampler (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up (default: %(default)s)")
    parser.add_argument("--gpu", dest="cpu", action="store_false", help="not on the CPU")
    parser.add_argument("--json", action="store_true", help="print JSON instead of sentences")
    options = parser.parse_args()
    options.comfyui = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI").expanduser()
    if not (options.comfyui / "comfy" / "sd.py").is_file():
        sys.exit(f"No ComfyUI in {options.comfyui}: set COMFYUI_DIR to a checkout.")
    with tempfile.TemporaryDirectory() as base:
        seconds = measured(options, Path(base))
    ratio = sum(seconds.values()) / seconds["KSampler"]
    if options.json:
        print(json.dumps({"seconds": seconds, "with_the_start": ratio}))
        return
    for node, median in seconds.items():
        print(f"{node}: {1000 * median:.0f} ms")
    print(f"With the start {ratio:.3f} times the sampling alone; at most {TARGET} is wanted.")


if __name__ == "__main__":
    main()
