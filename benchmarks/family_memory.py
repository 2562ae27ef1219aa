"""How much of a graphics card's memory a training step takes for large flow models, reckoned without a card.

    COMFYUI_DIR=~/ComfyUI python benchmarks/family_memory.py
    COMFYUI_DIR=~/ComfyUI python benchmarks/family_memory.py --families z_image --sides 512 --weights fp8

The networks are ComfyUI's own classes at their true size, as a checkpoint would make them, without numbers; the steps
are those of Train LoRA with the family's usual settings, one image at a time. What is counted and what is not is told
in train_memory.py: add half a gigabyte for CUDA, and the text encoders where they stay on the card.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.init_latent import pack  # noqa: E402
from benchmarks.train_memory import Ledger, _with_fake_tensors, flash_attention  # noqa: E402

FLUX = {
    "image_model": "flux", "guidance_embed": True, "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10_000, "patch_size": 2, "qkv_bias": True,
    "txt_ids_dims": [],
}  # fmt: skip
Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2,
    "n_heads": 30, "n_kv_heads": 30, "qk_norm": True, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], tuple[int, int]]] = {
    "flux1": ("Flux", FLUX, (16,), (256, 4096)),
    "z_image": ("ZImage", Z_IMAGE, (16,), (64, 2560)),
    "qwen_image": ("QwenImage", QWEN, (16, 1), (64, 3584)),
    "krea2": ("Krea2", {"image_model": "krea2"}, (16, 1), (64, 12 * 2560)),
}
"""ComfyUI's class, its sizes as it reads them from a checkpoint, the latent's shape without its sides, a caption's."""
WEIGHTS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


class Sizes:
    """The time ids of samples, as the numbers that they have to be: fake tensors have none."""

    def __init__(self, side: int) -> None:
        self.side = float(side)

    def __getitem__(self, samples: Any) -> Sizes:
        return self

    def tolist(self) -> list[list[float]]:
        return [[self.side, self.side, 0.0, 0.0, self.side, self.side]]


def reckon(load: Any, family: str, side: int, weights: str, how: str) -> tuple[float, float]:
    """The bytes at the peak of a step on one image, and those of the frozen weights among them."""
    models, sampling = importlib.import_module("comfy.supported_models"), load("nodes.denoiser.noise")
    patcher = importlib.import_module("comfy.model_patcher").ModelPatcher
    step, parts = load("mudi_core.train.step"), load("mudi_core.train.config")
    kind, sizes, channels, text = FAMILIES[family]
    config = getattr(models, kind)(dict(sizes))
    config.set_inference_dtype(WEIGHTS[weights], torch.bfloat16)
    cpu = torch.device("cpu")
    settings = parts.TrainConfig.usual(load("mudi_core.bases.families").usual("", family), precision="bf16")
    settings = settings.but(accumulation=1, steps=2, gradient_checkpointing=how)
    ledger = Ledger()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        model = config.get_model({}, "", device=torch.device("meta"))
        denoiser = load("nodes.denoiser").ComfyDenoiser(patcher(model, cpu, cpu))
        level = sampling.level_of(denoiser._sampling, torch.tensor([0.6]), cpu)
        stack.enter_context(mock.patch.object(denoiser, "_load", lambda dtype: None))
        stack.enter_context(mock.patch.object(denoiser, "draw_level", lambda generator: torch.zeros(1)))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        _with_fake_tensors(model.diffusion_model)
        fake = type(level)(*(torch.empty(1) for _ in range(6)))
        stack.enter_context(mock.patch.object(denoiser, "level", lambda drawn: fake))
        stack.enter_context(mock.patch.object(step, "batch_of", lambda *of: [0]))
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", flash_attention))
        learning = settings.learning
        adapter = load("mudi_core.lora.adapter").Adapter.new(
            denoiser, learning.rank, learning.lora_alpha, learning.target_modules
        )
        plan = load("mudi_core.train.plan").Plan(
            latents=(torch.empty(*channels, side // 8, side // 8),), masks=(torch.empty(1, side // 8, side // 8),),
            names=("one",), time_ids=Sizes(side), captions=("one",), caption_of=(0,),
            conditions=({"cross_attn": torch.empty(text), "pooled_output": torch.empty(768)},),
            steps=torch.zeros(2, 1, dtype=torch.long), priors=torch.empty(2, 0, dtype=torch.long), plan_hash="made up",
        )  # fmt: skip
        stack.enter_context(denoiser.ready(bf16=True))
        stack.enter_context(adapter)
        stack.enter_context(load("mudi_core.train.recompute").checkpointing(denoiser, how))
        for tensor in (*model.diffusion_model.parameters(), *model.diffusion_model.buffers()):
            ledger.enter(tensor)
        frozen = ledger.now
        for tensor in adapter.parameters():
            ledger.enter(tensor)
        trainee = step.Trainee(denoiser, adapter, plan, settings)
        optimizer = load("mudi_core.train.optimizer").make_optimizer(learning, adapter.matrices())
        for group in optimizer.param_groups:
            group["foreach"] = True  # AdamW's own choice on a card

        def one_step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss, _ = step.batch_loss(trainee, 0)
            loss.backward()
            optimizer.step()

        return max(ledger.peak_of(one_step) for _ in range(2)), frozen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--sides", nargs="+", type=int, default=[512, 1024], metavar="PX")
    parser.add_argument("--weights", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--checkpointing", nargs="+", default=["off", "selective", "full"])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    comfyui = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI").expanduser()
    with tempfile.TemporaryDirectory() as base:
        load = pack(comfyui, Path(base), cpu=True)
        supported = importlib.import_module("comfy.supported_models")
        rows = []
        for family in options.families:
            if not hasattr(supported, FAMILIES[family][0]):
                print(f"{family}: this ComfyUI does not know it", file=sys.stderr)
                continue
            for side in options.sides:
                for weights in options.weights:
                    found = {how: reckon(load, family, side, weights, how) for how in options.checkpointing}
                    rows.append({"family": family, "side": side, "weights": weights, **found})
                    if not options.json:
                        peaks = ", ".join(f"{how} {peak / 2**30:.1f}" for how, (peak, _) in found.items())
                        frozen = next(iter(found.values()))[1] / 2**30
                        print(f"{family:12} {side:5} px {weights:5} weights {frozen:5.1f} GiB, peak: {peaks} GiB")
        if options.json:
            print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
