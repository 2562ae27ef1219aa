"""How much more of a graphics card's memory SDXL needs with our nodes in its attention, reckoned without a card.

    COMFYUI_DIR=~/ComfyUI python benchmarks/attention_memory.py
    COMFYUI_DIR=~/ComfyUI python benchmarks/attention_memory.py --side 1536 --subjects 4

ComfyUI's own SDXL at its true size, fp16 and without numbers, is called once for a positive and a negative prompt:
plain, with each of Separate LoRAs, Regional Prompts, Layout Guidance and Reference Adapter over all its 70
cross-attentions, as the nodes put them there, and with all four. The LoRAs are of all attention layers, the adapter has
MS-Diffusion's sizes, the prompts 77 tokens. What LoRAs take of the card while a run lasts is part of it; the adapter's
own weights are told apart: each is on the card while its keys or values are projected, once for a run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
TOKENS = 16
"""MS-Diffusion's resampler gives so many of a picture."""
PROMPT, CONTEXT = 77, 2048
MIB = 2**20
KINDS = ("Separate LoRAs", "Regional Prompts", "Layout Guidance", "Reference Adapter")


def reckon(load: Callable[[str], Any], side: int, subjects: int, channels: int, rank: int) -> dict[str, Any]:
    """Bytes at the peak of a call beyond the network's weights, plain and with each of `KINDS`; how many
    cross-attentions each was called in; the bytes of the LoRAs and of the adapter's layers."""
    models = importlib.import_module("comfy.supported_models")
    patcher = importlib.import_module("comfy.model_patcher").ModelPatcher
    config, cpu, half = models.SDXL(SDXL | {"model_channels": channels}), torch.device("cpu"), torch.float16
    config.set_inference_dtype(half, None)
    with torch.inference_mode(False):
        model = patcher(config.get_model({}, "", device=torch.device("meta")), cpu, cpu)
    widths = load("nodes.attention.references").cross_layers(model)
    latent = side // 8
    places = _places(load, latent, subjects)
    peaks: dict[str, float] = {}
    called: dict[str, int] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        _with_fake_tensors(model.model.diffusion_model)
        attention, ours = importlib.import_module("comfy.ldm.modules.attention"), load("mudi_core.attention.attend")
        stack.enter_context(mock.patch.object(attention, "optimized_attention", attention.attention_pytorch))
        for where in (torch.nn.functional, ours):
            stack.enter_context(mock.patch.object(where, "scaled_dot_product_attention", flash_attention))
        ledger = Ledger()
        for tensor in (*model.model.diffusion_model.parameters(), *model.model.diffusion_model.buffers()):
            ledger.enter(tensor)
        changes, adapter = _changes(load, model, subjects, rank), _adapter(load, widths, half)
        own = [*adapter.keys, *adapter.values]
        for weight in own:
            ledger.enter(weight)
        weights = ledger.now

        def worn(kind: str) -> Any:
            if kind == "Separate LoRAs":
                return load("mudi_core.attention.lora").SeparateLoras(changes, places)
            if kind == "Regional Prompts":
                prompts = [torch.empty(1, PROMPT, CONTEXT) for _ in range(subjects)]
                return load("mudi_core.attention.prompts").RegionalPrompts(prompts, places)
            if kind == "Layout Guidance":
                return load("mudi_core.attention.guidance").LayoutGuidance([torch.zeros(PROMPT)] * subjects, places)
            tokens = torch.empty(1, subjects, TOKENS, CONTEXT, dtype=half)
            return load("mudi_core.attention.references.worn").References(adapter, tokens, widths[0], places, 0.6)

        for name, kinds in {"plain": (), **{kind: (kind,) for kind in KINDS}, "all four": KINDS}.items():
            parts = [worn(kind) for kind in kinds]
            with _counted(load) as layers:
                peaks[name] = ledger.peak_of(lambda parts=parts: _call(load, model, parts, latent)) - weights
            called[name] = len(layers)
            for part in parts:
                part.release()
        ranks = sum(one.down.numel() + one.up.numel() for some in changes for one in some.values())
        return {
            "peaks": peaks,
            "layers called": called,
            "of the LoRAs": ranks * half.itemsize,
            "of the adapter's layers": sum(weight.numel() * weight.element_size() for weight in own),
        }


def _places(load: Callable[[str], Any], latent: int, subjects: int) -> Any:
    """Regions side by side. What they say of themselves is said before tensors have no numbers."""
    masks = torch.zeros(1, subjects, latent, latent)
    for index in range(subjects):
        masks[0, index, :, index * latent // subjects : (index + 1) * latent // subjects] = 1

    class Known(load("mudi_core.attention.regions").Regions):  # type: ignore[misc]
        def empty(self, index: int) -> bool:
            return False

        def everywhere(self, index: int) -> bool:
            return subjects == 1

    return Known(masks)


def _changes(load: Callable[[str], Any], model: Any, subjects: int, rank: int) -> list[dict[str, Any]]:
    """A LoRA of every attention layer for each subject, in memory of the CPU: fp32, so that what is used is a copy."""
    change, network = load("mudi_core.attention.lora").Change, model.model.diffusion_model
    found: dict[str, Any] = {}
    for block in load("nodes.attention.blocks").blocks_of(model).values():
        for layer in (f"{block}{which}.{part}" for which in ("attn1", "attn2") for part in LAYERS):
            wide, narrow = network.get_submodule(layer).weight.shape
            found[layer] = change(torch.empty(rank, narrow), torch.empty(wide, rank))
    return [found] * subjects


def _adapter(load: Callable[[str], Any], widths: Any, kind: torch.dtype) -> Any:
    layers = [tuple(torch.empty(wide, widths[2], dtype=kind) for wide in widths[1]) for _ in "kv"]
    return load("mudi_core.attention.references.adapter").Adapter("MS-Diffusion", None, *layers)


@contextmanager
def _counted(load: Callable[[str], Any]) -> Iterator[set[str]]:
    """Inside the block, the names of the cross-attentions in which something of ours is called are noted."""
    layer, names = load("mudi_core.attention.layer").Layer, set[str]()
    attention = layer.attention

    def noted(self: Any, *given: Any) -> torch.Tensor:
        names.update([self.name] if self.cross else [])
        answer: torch.Tensor = attention(self, *given)
        return answer

    with mock.patch.object(layer, "attention", noted):
        yield names


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
        torch.empty(2, PROMPT, CONTEXT, dtype=half),
        y=torch.empty(2, 2816, dtype=half),
        transformer_options=options,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, metavar="PX")
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--rank", type=int, default=32, help="of the LoRAs (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=SDXL["model_channels"], help="SDXL's; fewer for a quick try")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    comfyui = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI").expanduser()
    with tempfile.TemporaryDirectory() as base:
        load = pack(comfyui, Path(base), cpu=True)
        found = reckon(load, options.side, options.subjects, options.channels, options.rank)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{options.side} px, {options.subjects} subjects: MiB at the peak, more than plain, cross-attentions called")
    for name, peak in found["peaks"].items():
        more = peak - found["peaks"]["plain"]
        print(f"{name:24}{peak / MIB:10.1f}{more / MIB:10.1f}{found['layers called'][name]:6}")
    for name in ("of the LoRAs", "of the adapter's layers"):
        print(f"{name:24}{found[name] / MIB:10.1f}")


if __name__ == "__main__":
    main()
