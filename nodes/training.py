"""One run of Train LoRA: it goes on where Cancel left it, shows what it does, and keeps the best beside the last."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.sd
import comfy.utils
import folder_paths
import torch

from ..mudi_core.types import MudiError
from . import convert, drawing, host
from .preview import sampled
from .sockets import TrainPreview

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.train.config import TrainConfig
    from ..mudi_core.train.loop import OnSave, TrainResult
    from ..mudi_core.train.lora import LoraState
    from ..mudi_core.train.loss import NoiseSchedule
    from ..mudi_core.train.plan import Plan

log = logging.getLogger(__name__)


class LoraNotApplied(MudiError):
    """ComfyUI's LoRA loader did not find a place for every layer of a LoRA that was just trained."""


class Run:
    """A training, and what there is to see of it."""

    def __init__(
        self,
        model: Any,
        vae: Any,
        plan: Plan,
        config: TrainConfig,
        name: str,
        start: LoraState | None,
        about: Mapping[str, str],
        preview: TrainPreview | None,
    ) -> None:
        """``name``: of the LoRA, ``about``: its metadata. The same run finds what an earlier one left of it."""
        from ..mudi_core.train.best import BestLora
        from ..mudi_core.train.resume import fingerprint, lora_fingerprint, losses_so_far

        self.model, self.vae, self.plan, self.config = model, vae, plan, config
        self.start, self.preview = start, preview
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.unet = convert.unet(model, host.device(), dtype, config.base_weights)
        origin = f"{plan.plan_hash} {fingerprint(self.unet)} {lora_fingerprint(start)} {config.run_json()}"
        self.key = hashlib.sha256(origin.encode()).hexdigest()[:12]
        self.folder = Path(folder_paths.get_output_directory()) / "mudi" / name
        """Where cancelled trainings are kept until one of this name is done, and previews for good."""
        self.stopped = self.folder / f"stopped_{self.key}.safetensors"
        self.goes_on = self.stopped.is_file()
        self.losses = losses_so_far(self.stopped) if self.goes_on else []
        self.sheets: list[Tensor] = []
        """The previews so far."""
        self.best = BestLora(host.loras_folder() / f"{name}-best-{self.key}.safetensors", about, self.goes_on)

    def train(self, schedule: NoiseSchedule, on_save: OnSave) -> TrainResult:
        from ..mudi_core.train import loop
        from ..mudi_core.train.pace import Pace

        pace = Pace()
        if self.goes_on:
            log.info("going on from %s", self.stopped)
        with host.progress(self._shown)("training") as update:

            def stepped(done: int, total: int, loss: float) -> None:
                self.losses.append(loss)
                update(done, total, pace.words(done, total, loss))

            return loop.train(
                self.unet,
                self.plan,
                self.config,
                schedule,
                stepped,
                resume=self.stopped if self.goes_on else None,
                checkpoint=self.stopped,
                start=self.start,
                on_save=on_save,
                on_preview=self._look,
            )

    def finish(self, lora: Path) -> None:
        """Once the LoRA is written: the best one gets a name like it, and what cancelled trainings left goes."""
        if self.best.step:
            best = lora.with_stem(f"{lora.stem}-best")
            os.replace(self.best.path, best)
            self.best.path = best
        for stopped in self.folder.glob("stopped_*.safetensors"):
            stopped.unlink()
        with suppress(OSError):  # not there, or there are previews in it, or somebody's own files
            self.folder.rmdir()

    def _shown(self) -> Tensor:
        return drawing.column([drawing.loss_curve(self.losses, self.config.steps), *self.sheets[-1:]])

    def _look(self, step: int, state: LoraState) -> None:
        assert self.preview is not None
        seen = sampled(self.preview, with_lora(self.model, state, "The LoRA"), self.vae)
        self.best.offer(step, state, seen.score)
        self.sheets.append(drawing.preview_sheet(seen, f"step {step}"))
        self.folder.mkdir(parents=True, exist_ok=True)
        drawing.pil(self.sheets[-1]).save(self.folder / f"preview_{self.key}_{step:06d}.png")


def with_lora(model: Any, state: Mapping[str, Tensor], name: str) -> Any:
    """A clone of the MODEL that wears the LoRA as any loader node would put it on. Raises `LoraNotApplied`."""
    wearing, _ = comfy.sd.load_lora_for_models(model, None, state, 1.0, 0.0)
    layers = sum(key.endswith(".alpha") for key in state)
    patched = sum(len(wearing.patches[key]) - len(model.patches.get(key, [])) for key in wearing.patches)
    if patched != layers:
        raise LoraNotApplied(
            f"{name} was trained, but ComfyUI found a place in the model for {patched} of its {layers} layers only. "
            "Please report this with the name of the base model."
        )
    return wearing


def read_lora(path: Path) -> dict[str, Tensor]:
    """A LoRA file as ComfyUI's loaders read it."""
    state: dict[str, Tensor] = comfy.utils.load_torch_file(str(path), safe_load=True)
    return state
