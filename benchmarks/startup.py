"""What the pack adds to ComfyUI's start, against an empty pack in the same process: python benchmarks/startup.py

Each time is one process: ComfyUI's own modules are imported as main.py does, then its loader of custom nodes loads an
empty pack, this one, and the empty one again. CPU time is told beside the clock's, which a busy machine stretches, and
beside that of ComfyUI's own modules.
`COMFYUI_DIR` names the checkout (default: ~/ComfyUI).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "transformers diffusers peft cv2 segment_anything torchvision kornia scipy.optimize matplotlib tensorboard pandas "
    "torch._dynamo torch._inductor torch.distributed.fsdp torch.onnx torch.utils.tensorboard"
).split()
"""What a pack should import when it is used, not when ComfyUI starts."""
LOAD = """
import asyncio, json, sys, time
checkout, folder, *heavy = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, checkout)
import utils.extra_config
import comfy.options
comfy.options.enable_args_parsing(False)
from comfy.cli_args import args
args.cpu, args.base_directory = True, folder
import comfy.sd, comfy.samplers, execution, nodes, server
import comfy_api.latest
before = set(sys.modules)
times = {"comfyui": [0.0, time.process_time()]}
for name in ("empty", "mudi", "empty_again"):
    clock, cpu = time.perf_counter(), time.process_time()
    assert asyncio.run(nodes.load_custom_node(f"{folder}/custom_nodes/{name}")), f"{name} did not load"
    times[name] = [time.perf_counter() - clock, time.process_time() - cpu]
new = set(sys.modules) - before
found = sorted(name for name in heavy if name in new)
nodes_of_ours = sum(name.startswith("Mudi") for name in nodes.NODE_CLASS_MAPPINGS)
print(json.dumps({"times": times, "heavy": found, "modules": len(new), "nodes": nodes_of_ours}))
"""


def start(checkout: Path, folder: Path) -> dict[str, Any]:
    """Start once; return seconds by the clock and of CPU of each pack, heavy modules, modules and nodes."""
    packs = folder / "custom_nodes"
    for name in ("empty", "empty_again"):
        (packs / name).mkdir(parents=True, exist_ok=True)
        (packs / name / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    if not (packs / "mudi").exists():
        (packs / "mudi").symlink_to(ROOT, target_is_directory=True)
    for place in ("input", "output", "temp", "user", "models/loras"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", LOAD, str(checkout), str(folder), *HEAVY]
    # Every start but the first after an update finds the modules compiled.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, **compiled}, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def measure(checkout: Path, repeats: int) -> dict[str, Any]:
    """Return the least of several starts: what the pack adds, in seconds by the clock and of CPU, and ComfyUI's own."""
    with tempfile.TemporaryDirectory() as folder:
        starts = [start(checkout, Path(folder)) for _ in range(repeats)]
    added = {}
    for index, unit in enumerate(("clock", "cpu")):
        ours, empty = (min(one["times"][name][index] for one in starts) for name in ("mudi", "empty_again"))
        added[unit] = round(ours - empty, 4)
    own = min(one["times"]["comfyui"][1] for one in starts)
    return {
        "added": added,
        "comfyui_cpu": round(own, 4),
        **{key: starts[-1][key] for key in ("heavy", "modules", "nodes")},
        "starts": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    checkout = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI")
    print(json.dumps(measure(checkout, options.repeats), indent=1))


if __name__ == "__main__":
    main()
