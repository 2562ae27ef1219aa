"""How fast a training step is: this project's loop, the bare step of the same U-Net, and a naive loop.

    python benchmarks/train_step.py            # the embedded model, on a CPU or a GPU
    python benchmarks/train_step.py --full     # SDXL's true size at 1024 px with random weights, in every memory preset
    python benchmarks/train_step.py --official DIR    # the official code's script too, from a checkout of it

The bare step is the floor: forward pass, backward pass and optimizer of one U-Net and LoRA on one batch that never
changes. The naive loop encodes its photos and captions in every step, as most training scripts do. All take turns in
one process, so a busy machine changes the numbers and hardly the ratios. Times are CPU time on a CPU, else the clock's.
DCO is off in all of them: it would double the U-Net's work alike. The official script runs in a process of its own,
with the same photos, weights and settings, and on photos alone below 1024 px, where its Seg-Mix does not work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from mudi_core.bases.quantize import quantize  # noqa: E402
from mudi_core.lora.adapter import Adapter  # noqa: E402
from mudi_core.subjects.storage import write_subjects  # noqa: E402
from mudi_core.toy.world import PAIRS, photo  # noqa: E402
from mudi_core.train.config import TrainConfig  # noqa: E402
from mudi_core.train.loop import train
from mudi_core.train.memory import MEMORY, memory_settings  # noqa: E402
from mudi_core.train.optimizer import make_optimizer  # noqa: E402
from mudi_core.train.plan import Plan, make_plan  # noqa: E402
from mudi_core.train.recompute import checkpointing  # noqa: E402
from mudi_core.train.run import Events
from mudi_core.types import Photo, Subject, SubjectSet  # noqa: E402

OFFICIAL = "train_segmix_lora_sdxl.py"
DRIVER = """
import json, runpy, sys, time, torch
from torch.optim.optimizer import register_optimizer_step_post_hook
ends, cuda = [], torch.cuda.is_available()
torch.set_num_threads(int(sys.argv[1]))
def ended(*_):
    if cuda:
        torch.cuda.synchronize()
    ends.append(time.perf_counter() if cuda else time.process_time())
register_optimizer_step_post_hook(ended)
out, sys.argv = sys.argv[2], sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
peak = torch.cuda.max_memory_allocated() if cuda else 0
open(out, "w").write(json.dumps({"ends": ends, "peak": peak}))
"""
"""Runs a script as it is and notes when each optimizer step has ended."""


class DoesNotRun(Exception):
    """The official script does not run here, with the reason."""


class Bench:
    """A base model, photos of two subjects, and the settings that all ways share."""

    def __init__(self, checkpoint: Checkpoint, config: TrainConfig, side: int, encoders: tuple[Any, ...] = ()) -> None:
        """``side``: of the drawn photos, in pixels; ``encoders``: models to keep off the card where they rest."""
        self.checkpoint, self.config, self.encoders = checkpoint, config, encoders
        self.device = torch.device(checkpoint.unet.device)
        self.denoiser = checkpoint.denoiser()
        self.subjects = SubjectSet(tuple(drawn(spec, side) for spec in PAIRS[0]))

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def plan(self) -> Plan:
        encoders = self.checkpoint.encode_image, self.checkpoint.condition
        return make_plan(self.subjects, self.config.samples, *encoders)

    def ours(self, plan: Plan, steps: int) -> list[float]:
        """Seconds of each step but the first, which warms up."""
        ends: list[float] = []
        config = self.config.but(steps=steps)
        part = replace(plan, steps=plan.steps[:steps], priors=plan.priors[:steps])
        train(self.denoiser, part, config, Events(lambda *_: ends.append(self.clock())))
        return [after - before for before, after in pairwise(ends)]

    def floor(self, plan: Plan, steps: int) -> list[float]:
        chosen = plan.steps[0, : self.config.fit.batch_size]
        inputs = self._inputs(
            torch.stack([plan.latents[i] for i in chosen.tolist()]),
            *(
                torch.stack([plan.conditions[plan.caption_of[i]][part] for i in chosen])
                for part in ("context", "pooled")
            ),
            plan.time_ids[chosen],
        )
        return self._timed(lambda: inputs, steps)

    def naive(self, steps: int) -> list[float]:
        """Crops, VAE and text encoders in every step; the captions are re-read as they are written."""
        width, height = self.config.samples.size
        photos = [(subject, one) for subject in self.subjects for one in subject.photos]
        rng = random.Random(0)

        def inputs() -> dict[str, Any]:
            images, captions, time_ids = [], [], []
            for subject, one in rng.choices(photos, k=self.config.fit.batch_size):
                scale = max(width / one.size[0], height / one.size[1])
                full = torch.nn.functional.interpolate(
                    one.image.movedim(2, 0)[None], scale_factor=scale * 1.0001, mode="bicubic", antialias=True
                )[0]
                top = rng.randint(0, full.shape[1] - height)
                left = rng.randint(0, full.shape[2] - width)
                images.append(full[:, top : top + height, left : left + width].movedim(0, 2).clamp(0, 1))
                captions.append(f"a photo of {subject.name}")
                time_ids.append([*reversed(one.size), top, left, height, width])
            latents = self.checkpoint.encode_image(torch.stack(images))
            contexts, pooled = self.checkpoint.encode_text(captions)
            return self._inputs(latents, contexts, pooled, torch.tensor(time_ids, dtype=torch.float32))

        return self._timed(inputs, steps)

    def official(self, folder: Path, steps: int) -> tuple[list[float], int]:
        """Seconds of each of the official script's steps but the first, and its peak of the card's memory in bytes."""
        config = self.config
        if config.learning.base_weights != "full":
            raise DoesNotRun(f"it knows no weights in {config.learning.base_weights}")
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "times.json"
            write_subjects(self.subjects, Path(place) / "dataset")
            self.checkpoint.pipeline().save_pretrained(f"{place}/model")
            settings = {
                "instance_data_dir": f"{place}/dataset",
                "pretrained_model_name_or_path": f"{place}/model",
                "output_dir": f"{place}/out",
                "repeats": config.fit.batch_size,  # or its batches would be no larger than the dataset
                "resolution": config.samples.size[0],
                "train_batch_size": config.fit.batch_size,
                "gradient_accumulation_steps": config.accumulation,
                "max_train_steps": steps,
                "learning_rate": config.learning.learning_rate,
                "lr_warmup_steps": 0,
                "rank": config.learning.rank,
                "segmix_prob": config.samples.segmix_prob if config.samples.size[0] == 1024 else 0.0,
                "dco_beta": 0,
                "mixed_precision": "bf16" if config.learning.precision == "bf16" else "no",
            }
            options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
            options += ["--gradient_checkpointing"] if config.fit.gradient_checkpointing != "off" else []
            command = [sys.executable, "-c", DRIVER, str(torch.get_num_threads()), str(out), str(folder / OFFICIAL)]
            environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
            if self.device.type == "cpu":
                environment["CUDA_VISIBLE_DEVICES"] = ""
            done = subprocess.run(
                [*command, *options], cwd=place, env=environment, capture_output=True, text=True, check=False
            )
            if not out.is_file():
                raise DoesNotRun((done.stderr.strip() or "it wrote nothing").splitlines()[-1])
            found = json.loads(out.read_text())
        return [after - before for before, after in pairwise(found["ends"])], found["peak"]

    def _inputs(self, latents: Any, contexts: Any, pooled: Any, time_ids: Any) -> dict[str, Any]:
        z0 = self.denoiser.latents(latents.float().to(self.device))
        eps, generator = torch.randn_like(z0), torch.default_generator
        level = self.denoiser.level(torch.cat([self.denoiser.draw_level(generator) for _ in z0]))
        added = {"text_embeds": pooled.to(self.device), "time_ids": time_ids.to(self.device)}
        return {
            "wanted": eps,
            "sample": level.noisy(z0, eps),
            "timestep": level.at,
            "encoder_hidden_states": contexts.to(self.device),
            "added_cond_kwargs": added,
        }

    def _timed(self, inputs: Callable[[], dict[str, Any]], steps: int) -> list[float]:
        """Seconds of each bare step but the first."""
        config, unet = self.config, self.checkpoint.unet
        ends = []
        with (
            self.denoiser.ready(config.learning.precision == "bf16"),
            Adapter.new(
                self.denoiser, config.learning.rank, config.learning.lora_alpha, config.learning.target_modules
            ) as adapter,
            checkpointing(self.denoiser, config.fit.gradient_checkpointing),
        ):
            adapter.start(0)
            optimizer = make_optimizer(config.learning, adapter.parameters())
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                for _ in range(config.accumulation):
                    given = dict(inputs())
                    wanted = given.pop("wanted")
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=config.learning.precision == "bf16"):
                        answer = unet(**given).sample
                    (torch.nn.functional.mse_loss(answer.float(), wanted) / config.accumulation).backward()
                optimizer.step()
                ends.append(self.clock())
        return [after - before for before, after in pairwise(ends)]


def drawn(spec: Any, side: int) -> Subject:
    """Return a character of the toy world on two square photos."""
    photos, masks = [], []
    for number in range(2):
        one = photo(spec.character, random.Random(f"{spec.token}/{number}"), side)
        photos.append(Photo(f"{spec.token}_{number}.png", torch.from_numpy(one.image.copy()).float() / 255))
        masks.append(torch.from_numpy(one.masks[0]).float())
    return Subject(spec.token, spec.class_noun, tuple(photos), tuple(masks))


def measure(bench: Bench, rounds: int, steps: int, official: Path | None) -> dict[str, Any]:
    """Medians over rounds of alternating turns; on a GPU also the most memory that each way took.

    ``official``: a folder with the official script, whose turn comes last and all at once.
    """
    begun = bench.clock()
    plan = bench.plan()
    once = bench.clock() - begun
    ways: dict[str, Callable[[], list[float]]] = {
        "floor": lambda: bench.floor(plan, steps + 1),
        "ours": lambda: bench.ours(plan, steps + 1),
        "naive": lambda: bench.naive(steps + 1),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0)
    for _ in range(rounds):
        for name, way in ways.items():
            for encoder in bench.encoders:
                encoder.to(bench.device if name == "naive" else "cpu")
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(bench.device)
            times[name] += way()
            if bench.device.type == "cuda":
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(bench.device))
    reason = ""
    if official is not None:
        for encoder in bench.encoders:
            encoder.to("cpu")
        try:
            times["official"], peaks["official"] = bench.official(official, rounds * steps + 1)
        except DoesNotRun as error:
            reason = str(error)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {f"{name}_takes_times": medians[name] / medians["ours"] for name in ("naive", "official") if name in times}
    return {
        "encode_once_s": once,
        "samples": len(plan.latents),
        "step_ms": {name: 1000 * value for name, value in medians.items()},
        "peak_gb": {name: value / 2**30 for name, value in peaks.items() if value},
        "of_the_floor": medians["floor"] / medians["ours"],
        **ratios,
        **({"official_does_not_run": reason} if reason else {}),
    }


def filled(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Give a model without values random ones."""
    model = torch.nn.Module.to(model, dtype).to_empty(device=device)  # diffusers' own warns of nothing
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(float(name.endswith("weight")))
    return model


def full_size(device: torch.device) -> tuple[Checkpoint, tuple[Any, ...]]:
    """SDXL's true configuration with random weights in bfloat16, the VAE in float32; and all but the U-Net."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from mudi_core.bases import sdxl
    from mudi_core.vocabulary import tokenizer

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(sdxl.CONFIGS / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(sdxl.CONFIGS / "vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(sdxl.CONFIGS / "text_encoder"))
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(sdxl.CONFIGS / "text_encoder_2"))
    encoders = filled(text, torch.bfloat16, device), filled(text_2, torch.bfloat16, device)
    for encoder in encoders:  # position numbers are a buffer, which meta tensors do not bring along
        for module in encoder.modules():
            if hasattr(module, "position_ids"):
                module.position_ids = torch.arange(77, device=device)[None]
    scheduler = EulerDiscreteScheduler.from_config(EulerDiscreteScheduler.load_config(sdxl.CONFIGS / "scheduler"))
    models = filled(unet, torch.bfloat16, device), filled(vae, torch.float32, device)
    checkpoint = Checkpoint("SDXL, random weights", *models, (tokenizer(), tokenizer("!")), encoders, scheduler)
    return checkpoint, (models[1], *encoders)


def benches(presets: Sequence[int], side: int, device: torch.device) -> Iterator[tuple[str, Bench]]:
    """What to measure, one by one: each lets the last one's weights go. Without presets it is the embedded model."""
    config = TrainConfig.of(steps=64, dco_beta=0.0, crops_per_photo=4, max_composites=16, gradient_checkpointing="off")
    if not presets:
        settings = config.but(resolution=192, rank=16, batch_size=8)
        yield "embedded model, 192 px", Bench(open_checkpoint("mini", device), settings, 320)
        return
    for gigabytes in presets:
        settings = config.but(**(memory_settings(gigabytes) | {"resolution": side}))
        checkpoint, encoders = full_size(device)
        quantize(checkpoint.unet, settings.learning.base_weights)
        yield f"SDXL, {side} px, {gigabytes} GB preset", Bench(checkpoint, settings, side * 11 // 8, encoders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="SDXL's true size; wants a GPU")
    parser.add_argument("--presets", type=int, nargs="+", choices=list(MEMORY), default=list(MEMORY), metavar="GB")
    parser.add_argument("--resolution", type=int, default=1024, metavar="PX", help="with --full (default: %(default)s)")
    parser.add_argument("--official", type=Path, metavar="DIR", help=f"a checkout of the official code: {OFFICIAL}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn, 60 at most (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    presets = options.presets if options.full else ()
    for name, bench in benches(presets, options.resolution, torch.device(options.device)):
        results[name] = measure(bench, options.rounds, min(options.steps, 60), options.official)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, found in results.items():
        print(f"{name} (encoded once: {found['samples']} samples in {found['encode_once_s']:.1f} s)")
        for way, milliseconds in found["step_ms"].items():
            peak = f"{found['peak_gb'][way]:8.1f} GB" if way in found["peak_gb"] else ""
            print(f"  {way:8}{milliseconds:10.1f} ms a step{peak}")
        print(
            f"  ours is {found['of_the_floor']:.3f} of the floor's speed, {found['naive_takes_times']:.2f} the naive's"
        )
        if "official_takes_times" in found:
            print(f"  and {found['official_takes_times']:.2f} the official script's")
        if "official_does_not_run" in found:
            print(f"  the official script does not run: {found['official_does_not_run']}")


if __name__ == "__main__":
    main()
