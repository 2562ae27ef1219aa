"""How long a fusion of LoRAs takes at SDXL's true size, and how much memory: the sums over inputs and all solutions.

    python benchmarks/fuse.py                # two LoRAs of rank 16 on all 560 attention layers, 20 steps
    python benchmarks/fuse.py --loras 3 --rank 32

Layers, LoRAs and inputs have SDXL's real sizes and random values; the network itself does not compute, since its 20
steps per LoRA take a card some seconds and a CPU hours, whatever is fused. The job is the one of `python -m mudi_core
fuse`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mudi_core.bases import sdxl  # noqa: E402
from mudi_core.jobs.fuse import fuse  # noqa: E402
from mudi_core.jobs.fusion import FuseConfig  # noqa: E402
from mudi_core.lora.concepts import Concept  # noqa: E402
from mudi_core.lora.reading import lora_of  # noqa: E402
from mudi_core.lora.wear import Worn, sizes_of  # noqa: E402

ATTENTION = ("_to_q", "_to_k", "_to_v", "_to_out_0")
CONTEXT = 2048


class SizesOfSdxl:
    """A `fusion.FusionBase` whose layers only hear inputs of the right sizes."""

    name, family = "SDXL's sizes", "sdxl_base_v1-0"

    def __init__(self) -> None:
        from diffusers import UNet2DConditionModel

        config = json.loads((Path(sdxl.__file__).parent / "unet" / "config.json").read_text())
        with torch.device("meta"):
            self._sizes = {
                name: size
                for name, size in sizes_of(UNet2DConditionModel.from_config(config)).items()
                if name.endswith(ATTENTION)
            }
        self._layers: dict[str, nn.Module] = {name: nn.Identity() for name in self._sizes}
        self._generator = torch.Generator().manual_seed(0)

    def sizes(self) -> dict[str, tuple[int, int]]:
        return self._sizes

    def linear_layers(self) -> dict[str, nn.Module]:
        return self._layers

    def weight(self, layer: str) -> Tensor:
        return torch.zeros(1).expand(self._sizes[layer])

    def wearing(self, *loras: Worn) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, captions: Sequence[str]) -> None: ...

    def words(self, captions: Sequence[str], names: Sequence[str]) -> Tensor:
        return torch.randn(8, CONTEXT, generator=self._generator)

    def paint(self, caption: str, steps: int, seed: int, number: int, on_step: Callable[[int, int], None]) -> None:
        generator = torch.Generator().manual_seed(Random(f"{caption}/{seed}/{number}").getrandbits(31))
        for step in range(steps):
            read: dict[str, Tensor] = {}
            for name, layer in self._layers.items():
                if name.endswith(("attn2_to_k", "attn2_to_v")):
                    continue
                shared = name.rpartition("_to_")[0] + ("_out" if name.endswith("_to_out_0") else "")
                width = self._sizes[name][1]
                if shared not in read:  # layer-normed features: few directions hold most of what there is
                    strengths = torch.arange(1, width + 1) ** -0.5
                    read = {shared: torch.randn(1024, width, generator=generator) * strengths}
                layer(read[shared])
            on_step(step + 1, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loras", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base, concepts = SizesOfSdxl(), []
    for i in range(args.loras):
        generator, tensors = torch.Generator().manual_seed(i + 1), {}
        for name, (out, wide) in base.sizes().items():
            tensors[f"{name}.lora_down.weight"] = torch.randn(args.rank, wide, generator=generator) / args.rank
            tensors[f"{name}.lora_up.weight"] = 0.01 * torch.randn(out, args.rank, generator=generator)
        concepts.append(Concept(lora_of(tensors, {}, f"{i}.safetensors"), ((f"token{i}", "dog"),)))
    begun, used = time.perf_counter(), time.process_time()
    fused = fuse(concepts, base, FuseConfig(steps=args.steps, rows=args.rows))
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    plain, ours = fused.relative() or ((), ())
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(fused.changes)} layers, {args.loras} LoRAs of rank {args.rank}, {args.threads} threads")
    print(f"{wall:.0f} s by the clock, {cpu:.0f} s of CPU time, {gigabytes:.1f} GiB at most")
    print("error added up", ", ".join(f"{one:.3f}" for one in plain), "fused", ", ".join(f"{one:.3f}" for one in ours))


if __name__ == "__main__":
    main()
