"""What the nodes in attention cost: KSampler of 30 steps with each, over it alone.

    COMFYUI_DIR=~/ComfyUI python benchmarks/attention.py
    COMFYUI_DIR=~/ComfyUI python benchmarks/attention.py --checkpoint sd_xl_base_1.0.safetensors --side 1024 --gpu

Separate LoRAs, Regional Prompts, Layout Guidance, and Reference Adapter by the embedded adapter, which fits the
embedded model alone. Two drawn characters at random places, a random LoRA for each. In every round each method samples
once, so that all see the same machine. Times are CPU time on a CPU, else the clock's; a ratio is the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from init_latent import clock, pack, subjects

TARGETS = {"Separate LoRAs": 1.1, "Regional Prompts": 1.3, "Layout Guidance": 1.15, "Reference Adapter": 1.1}
ALONE, TOGETHER = "KSampler alone", "all together"
PROMPT = "a photo of olis cat and hta cat"


def random_lora(load: Any, model: Any, path: Path, rank: int, seed: int) -> Path:
    """Write a LoRA of every layer of the MODEL's attention."""
    import torch
    from safetensors.torch import save_file

    generator, weights, state = torch.Generator().manual_seed(seed), model.model.diffusion_model.state_dict(), {}
    for block in load("nodes.attention.blocks").blocks_of(model).values():
        for layer in (f"{block}{attention}.{one}" for attention in ("attn1", "attn2") for one in LAYERS):
            rows, columns = weights[f"{layer}.weight"].shape
            state[f"diffusion_model.{layer}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) * 0.01
            state[f"diffusion_model.{layer}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) * 0.01
    save_file(state, path)
    return path


LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def worn(load: Any, options: argparse.Namespace, base: Path) -> tuple[dict[str, Any], Any, Any]:
    """Return the MODEL with each method, the words, and an empty latent."""
    stock = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    if options.checkpoint:
        model, clip, _ = importlib.import_module("comfy.sd").load_checkpoint_guess_config(str(options.checkpoint))[:3]
    else:
        model, clip, _ = load("nodes.mini").MiniCheckpoint.execute().result
    side = options.side
    layout = load("nodes.generate").MakeLayout.execute(subjects(load, 320), side, side, "random", 0, "", 0.4).result[0]
    given = load("nodes.sockets").SubjectLora
    loras = tuple(
        given(random_lora(load, model, base / f"{number}.safetensors", options.rank, number), "", 1.0, 1.0)
        for number in (1, 2)
    )
    separate = load("nodes.separate_loras").SeparateLoras.execute
    regional = load("nodes.regional_prompts").RegionalPrompts.execute
    guided = load("nodes.layout_guidance").LayoutGuidance.execute
    models = {
        ALONE: model,
        "Separate LoRAs": separate(model, clip, loras, 1.0, 0.0, layout).result[0],
        "Regional Prompts": regional(model, clip, "a photo of {}", 1.0, layout).result[0],
        "Layout Guidance": guided(model, clip, PROMPT, 0.08, 2.5, 1e8, "", layout).result[0],
    }
    if not options.checkpoint:
        models["Reference Adapter"] = _with_references(load, model, clip, layout)
    both = regional(models["Separate LoRAs"], clip, "a photo of {}", 1.0, layout).result[0]
    every = guided(both, clip, PROMPT, 0.08, 2.5, 1e8, "", layout).result[0]
    models[TOGETHER] = every if options.checkpoint else _with_references(load, every, clip, layout)
    (words,) = stock["CLIPTextEncode"]().encode(clip, PROMPT)
    (latent,) = stock["EmptyLatentImage"]().generate(side, side, options.batch)
    return models, words, latent


def _with_references(load: Any, model: Any, clip: Any, layout: Any) -> Any:
    embedded = load("nodes.host").MINI
    node = load("nodes.reference_adapter").ReferenceAdapter
    return node.execute(model, clip, embedded, 1.0, "places", 1, layout).result[0]


def measured(options: argparse.Namespace, base: Path) -> dict[str, list[float]]:
    """Return the seconds of each method in every round."""
    load = pack(options.comfyui, base, options.cpu)
    import torch

    seconds: dict[str, list[float]] = {}
    with torch.inference_mode():
        models, words, latent = worn(load, options, base)
        sampler = importlib.import_module("nodes").NODE_CLASS_MAPPINGS["KSampler"]()
        for seed in range(options.rounds + 1):
            for name, model in models.items():
                begun = clock(options.cpu)
                sampler.sample(model, seed, options.steps, 5.0, "euler", "normal", words, words, latent, denoise=1.0)
                seconds.setdefault(name, []).append(clock(options.cpu) - begun)
    return {name: times[1:] for name, times in seconds.items()}  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="an SDXL or SD file (default: the embedded model)")
    parser.add_argument("--side", type=int, default=192, help="of the picture, in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="pictures (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="of each LoRA (default: %(default)s)")
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
    alone = seconds[ALONE]
    ratios = {
        name: statistics.median(took / plain for took, plain in zip(times, alone, strict=True))
        for name, times in seconds.items()
        if name != ALONE
    }
    if options.json:
        print(json.dumps({"seconds": seconds, "ratios": ratios}))
        return
    print(f"{ALONE}: {1000 * statistics.median(alone):.0f} ms")
    for name, ratio in ratios.items():
        wanted = f"; at most {TARGETS[name]} is wanted" if name in TARGETS else ""
        print(f"{name}: {ratio:.3f} times that{wanted}.")


if __name__ == "__main__":
    main()
