"""How much more of a graphics card's memory SDXL needs with references in its attention, reckoned without a card.

    COMFYUI_DIR=~/ComfyUI python benchmarks/reference_memory.py
    COMFYUI_DIR=~/ComfyUI python benchmarks/reference_memory.py --side 1536 --subjects 4

ComfyUI's own SDXL at its true size, fp16 and without numbers, is called once for a positive and a negative prompt,
plain and with an adapter of MS-Diffusion's sizes over all its 70 cross-attentions, as Reference Adapter puts it there.
The adapter's own weights are told apart: each is on the card while its keys or values are projected, once for a run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.init_latent import pack  # noqa: E402
from benchmarks.train_memory import Ledger, _with_fake_tensors, flash_attention  # noqa: E402

SDXL = {
    "model_channels": 320, "use_linear_in_transformer": True, "transformer_depth": [0, 0, 2, 2, 10, 10],
    "context_dim": 2048, "adm_in_channels": 2816, "use_temporal_attention": False, "image_size": 32, "out_channels": 4,
    "in_channels": 4, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_head_channels": 64,
    "use_spatial_transformer": True, "legacy": False, "num_classes": "sequential",
}  # fmt: skip
TOKENS = 16
"""MS-Diffusion's resampler gives so many of a picture."""
MIB = 2**20


def reckon(load: Callable[[str], Any], side: int, subjects: int, channels: int) -> dict[str, float]:
    """Bytes at the peak of a call beyond the network's weights, plain and with references; the bytes of the adapter's
    layers; and how many of them were called."""
    models = importlib.import_module("comfy.supported_models")
    patcher = importlib.import_module("comfy.model_patcher").ModelPatcher
    config, cpu, half = models.SDXL(SDXL | {"model_channels": channels}), torch.device("cpu"), torch.float16
    config.set_inference_dtype(half, None)
    with torch.inference_mode(False):
        model = patcher(config.get_model({}, "", device=torch.device("meta")), cpu, cpu)
    widths = load("nodes.attention.references").cross_layers(model)
    latent = side // 8
    found: dict[str, float] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        _with_fake_tensors(model.model.diffusion_model)
        attention = importlib.import_module("comfy.ldm.modules.attention")
        stack.enter_context(mock.patch.object(attention, "optimized_attention", attention.attention_pytorch))
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", flash_attention))
        ledger = Ledger()
        for tensor in (*model.model.diffusion_model.parameters(), *model.model.diffusion_model.buffers()):
            ledger.enter(tensor)
        references = _references(load, widths, latent, subjects, half)
        for weight in (*references.adapter.keys, *references.adapter.values):
            ledger.enter(weight)
        weights = ledger.now
        for name, parts in (("plain", []), ("with references", [references])):
            found[name] = ledger.peak_of(lambda parts=parts: _call(load, model, parts, latent)) - weights
        found["layers called"] = len(references._ready)
        found["of the adapter's layers"] = sum(
            weight.numel() * weight.element_size() for weight in (*references.adapter.keys, *references.adapter.values)
        )
    return found


def _references(load: Callable[[str], Any], widths: Any, latent: int, subjects: int, kind: torch.dtype) -> Any:
    numbers, channels, context = widths
    adapters = load("mudi_core.attention.references.adapter")
    layers = [tuple(torch.empty(wide, context, dtype=kind) for wide in channels) for _ in "kv"]
    adapter = adapters.Adapter("MS-Diffusion", None, *layers)
    masks = torch.zeros(1, subjects, latent, latent)
    for index in range(subjects):
        masks[0, index, :, index * latent // subjects : (index + 1) * latent // subjects] = 1
    regions = load("mudi_core.attention.regions").Regions(masks)
    tokens = torch.empty(1, subjects, TOKENS, context, dtype=kind)
    return load("mudi_core.attention.references.worn").References(adapter, tokens, numbers, regions, 0.6)


def _call(load: Callable[[str], Any], model: Any, parts: list[Any], latent: int) -> None:
    """What KSampler does in a step; parts are put on as the MODEL's wrapper does it, which asks for a true sigma."""
    worn, call = load("nodes.attention.worn"), load("mudi_core.attention.call").Call((0,), (0, 0), torch.empty(2))
    options: dict[str, Any] = {"cond_or_uncond": [0, 1]}
    if parts:
        blocks = load("nodes.attention.blocks").blocks_of(model)
        options = worn._Composed(parts, blocks, call, options).options()
    network, half = model.model.diffusion_model, torch.float16
    network(
        torch.empty(2, 4, latent, latent, dtype=half),
        torch.empty(2),
        torch.empty(2, 77, 2048, dtype=half),
        y=torch.empty(2, 2816, dtype=half),
        transformer_options=options,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, metavar="PX")
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--channels", type=int, default=SDXL["model_channels"], help="SDXL's; fewer for a quick try")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    comfyui = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI").expanduser()
    with tempfile.TemporaryDirectory() as base:
        found = reckon(pack(comfyui, Path(base), cpu=True), options.side, options.subjects, options.channels)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{options.side} px, {options.subjects} references; {found.pop('layers called'):.0f} layers called")
    for name, value in found.items():
        print(f"{name:24}{value / MIB:10.1f} MiB")
    print(f"{'more at the peak':24}{(found['with references'] - found['plain']) / MIB:10.1f} MiB")


if __name__ == "__main__":
    main()
