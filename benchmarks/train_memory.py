"""How much of a graphics card's memory a training step of SDXL takes in every preset, reckoned without a card.

    python benchmarks/train_memory.py               # every preset at 1024 px
    python benchmarks/train_memory.py --check 512 --presets 12    # a real training on this CPU against what is reckoned

The steps run as they are but for the arithmetic: torch's fake tensors have sizes, types and lives, and no numbers. A
ledger enters the answer of every operator when it is made and strikes it out when it is let go. Where a card computes
otherwise than a CPU its way is taken: CUDA's autocast normalizes in float32, and attention is flash attention. What a
card needs beside tensors is not counted: CUDA itself (about half a gigabyte), workspaces, and holes between tensors.

The check trains with true numbers on the CPU, enters that in a ledger too, and looks at how much the process grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.train_step import filled  # noqa: E402
from mudi_core.bases import sdxl  # noqa: E402
from mudi_core.bases.quantize import BASE_WEIGHTS, quantize  # noqa: E402
from mudi_core.bases.unet import UNetDenoiser  # noqa: E402
from mudi_core.lora.adapter import Adapter  # noqa: E402
from mudi_core.train import step  # noqa: E402
from mudi_core.train.config import TrainConfig  # noqa: E402
from mudi_core.train.loop import train
from mudi_core.train.memory import MEMORY, estimate, memory_settings  # noqa: E402
from mudi_core.train.optimizer import make_optimizer  # noqa: E402
from mudi_core.train.plan import Plan  # noqa: E402
from mudi_core.train.recompute import checkpointing  # noqa: E402
from mudi_core.train.run import Events

ABAR = torch.linspace(0.999, 0.005, 1000)
PIECE = 512
"""CUDA's allocator gives memory in pieces of so many bytes."""


class Ledger(TorchDispatchMode):  # type: ignore[misc]
    """The bytes of all tensors that were made, or shown to it, and are still there. A `memory.Meter` without limit.

    torch's own MemTracker asks that every parameter is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, torch.Tensor):
                self.enter(tensor)
        return answer

    def enter(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = None
            size = -(-storage.nbytes() // PIECE) * PIECE
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._strike_out, size)

    def _strike_out(self, size: int) -> None:
        self.now -= size

    def peak_of(self, work: Callable[[], None]) -> int:
        gc.collect()
        self.peak = self.now
        with self:
            work()
        return self.peak

    def room(self) -> int:
        return sys.maxsize


def some_plan(config: TrainConfig, side: int) -> Plan:
    """Two samples of ``side`` x ``side`` latents, one caption."""
    return Plan(
        latents=tuple(torch.randn(2, 4, side, side)),
        masks=tuple(torch.ones(2, 1, side, side)),
        names=("one", "two"),
        time_ids=torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side]] * 2),
        captions=("a photo of olis corgi",),
        caption_of=(0, 0),
        conditions=({"context": torch.randn(77, 2048), "pooled": torch.randn(1280)},),
        steps=torch.arange(config.samples.samples_per_step).repeat(config.samples.steps, 1) % 2,
        priors=torch.empty(config.samples.steps, 0, dtype=torch.long),
        plan_hash="made up",
    )


def sdxl_unet(config: TrainConfig) -> Any:
    """SDXL's own without numbers, in bfloat16, frozen, its weights kept as the settings say."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(sdxl.CONFIGS / "unet"))
        nn.Module.to(unet, torch.bfloat16).requires_grad_(False)  # diffusers' own warns of nothing
        quantize(unet, config.learning.base_weights)
    return unet


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """CPU autocast takes CUDA's part: normalization in float32."""

    def in_float32(norm: Callable[..., Any]) -> Callable[..., Any]:
        def normalized(*args: Any, **kwargs: Any) -> Any:
            if torch.is_autocast_enabled("cpu"):
                args, kwargs = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
            return norm(*args, **kwargs)

        return normalized

    functional = torch.nn.functional
    with (
        mock.patch.object(functional, "group_norm", in_float32(functional.group_norm)),
        mock.patch.object(functional, "layer_norm", in_float32(functional.layer_norm)),
    ):
        yield


def flash_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    """What a card would take; fake tensors would take the one that keeps a number for each pair of pixels."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


def reckon(config: TrainConfig, card: bool = True, counts: bool = False) -> dict[str, float]:
    """The bytes that are there at a step's peak, and what `memory.estimate` expected.

    ``card``: on a CUDA card rather than a CPU; ``counts``: the step's operations too.
    """
    side = config.samples.size[0] // 8
    unet, plan = sdxl_unet(config), some_plan(config, side)
    samples = [step.batch_of(plan, config, number) for number in range(config.accumulation)]
    ledger = Ledger()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        _with_fake_tensors(unet)
        denoiser = UNetDenoiser(unet, ABAR, "epsilon", 0.13025)
        adapter = Adapter.new(
            denoiser, config.learning.rank, config.learning.lora_alpha, config.learning.target_modules
        )
        stack.enter_context(denoiser.ready(config.learning.precision == "bf16"))
        stack.enter_context(adapter)
        stack.enter_context(checkpointing(denoiser, config.fit.gradient_checkpointing))
        trainee = step.Trainee(denoiser, adapter, plan, config)
        if card:
            stack.enter_context(as_on_a_card())
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", flash_attention))
        # Which samples a batch has is the one thing that has to be a number.
        stack.enter_context(mock.patch.object(step, "batch_of", lambda *of: samples[of[-1] % len(samples)]))
        for tensor in (*unet.parameters(), *unet.buffers(), *adapter.parameters()):
            ledger.enter(tensor)
        expected = estimate(trainee, ledger)
        optimizer = make_optimizer(config.learning, adapter.matrices())
        for group in optimizer.param_groups:
            group["foreach"] = card  # AdamW's own choice on a card

        def one_step() -> None:
            optimizer.zero_grad(set_to_none=True)
            for part in range(config.accumulation):
                loss, _ = step.batch_loss(trainee, part)
                (loss / config.accumulation).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        found = {"peak": max(ledger.peak_of(one_step) for _ in range(2)), "expected": expected or 0}
        if counts:
            with FlopCounterMode(display=False) as operations:
                one_step()
            found["operations"] = operations.get_total_flops()
    return found


def _with_fake_tensors(unet: nn.Module) -> None:
    for module in unet.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty_like(parameter, device="cpu")
                module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def really(config: TrainConfig) -> dict[str, float]:
    """The ledger of a true training on the CPU and by how much the process grew, in bytes; seconds of its last step."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unet = filled(sdxl_unet(config.but(base_weights="full")), torch.bfloat16, torch.device("cpu"))
    quantize(unet, config.learning.base_weights)
    ledger = Ledger()
    for tensor in (*unet.parameters(), *unet.buffers()):
        ledger.enter(tensor)
    plan = some_plan(config, config.samples.size[0] // 8)
    ends: list[float] = []
    events = Events(lambda *_: ends.append(time.process_time()))
    peak = ledger.peak_of(lambda: train(UNetDenoiser(unet, ABAR, "epsilon", 0.13025), plan, config, events))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {"peak": peak, "process": grown, "seconds": ends[-1] - ends[-2]}


def in_words(name: str, value: float) -> str:
    if name == "operations":
        return f"{value / 1e12:.1f} TFLOP a step"
    return f"{value:.0f} s of a core a step" if name == "seconds" else f"{name} {value / 2**30:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", type=int, nargs="+", choices=list(MEMORY), default=list(MEMORY), metavar="GB")
    ways = ("off", "selective", "full")
    parser.add_argument("--checkpointing", choices=ways, help="instead of the presets' own")
    parser.add_argument("--weights", choices=BASE_WEIGHTS, help="the frozen U-Net's bits, instead of the presets' own")
    parser.add_argument("--resolution", type=int, default=1024, metavar="PX", help="(default: %(default)s)")
    parser.add_argument("--check", type=int, metavar="PX", help="train at this size on the CPU instead")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.check and len(options.presets) > 1:
        parser.error("a process remembers only the most it ever had: check one preset at a time, --presets 12, say")
    results: dict[int, dict[str, float]] = {}
    for gigabytes in options.presets:
        config = TrainConfig.of(**memory_settings(gigabytes), steps=2, resolution=options.check or options.resolution)
        if options.checkpointing:
            config = config.but(gradient_checkpointing=options.checkpointing)
        if options.weights:
            config = config.but(base_weights=options.weights)
        if options.check:
            reckoned = reckon(config, card=False)
            results[gigabytes] = {**really(config), "reckoned": reckoned["peak"], "expected": reckoned["expected"]}
        else:
            results[gigabytes] = reckon(config, counts=True)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for gigabytes, found in results.items():
        print(f"{gigabytes:2} GB preset: {', '.join(in_words(name, value) for name, value in found.items())}")


if __name__ == "__main__":
    main()
