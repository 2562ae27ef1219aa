"""One run of Train LoRA: it goes on where Cancel stopped it, shows its progress, and saves the best LoRA, too."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.sd
import comfy.utils
import folder_paths

from ..mudi_core.files import whole
from ..mudi_core.types import MudiError
from . import drawing, host
from .base import ComfyBase
from .denoiser.patches import delta_of
from .host.listing import entries
from .preview import sampled
from .sockets import TrainPreview

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.bases.families import Family
    from ..mudi_core.jobs.previews import Preview
    from ..mudi_core.jobs.train import Training
    from ..mudi_core.lora.file import LoraState
    from ..mudi_core.lora.start_from import StartLora
    from ..mudi_core.train.loop import TrainResult
    from ..mudi_core.train.plan import Plan

log = logging.getLogger(__name__)

_STOPPED = re.compile(r"stopped_((?P<number>\d{5,9})_)?(?P<key>[0-9a-f]{12})\.safetensors")
"""A stopped training's file: the number of its LoRA, and a key of the run. Earlier versions left the number out."""


_LOCK = re.compile(r"\.(mudi-[0-9a-f]{12}|.+_\d{5,9})\.lock", re.DOTALL)
"""Locks in the LoRA folder while a training lasts: one by the key of the run, one by the name of its LoRA."""


class LoraNotApplied(MudiError):
    """ComfyUI's LoRA loader did not find a place for every layer of a LoRA that was just trained."""


class AlreadyTrained(MudiError):
    """The same training runs in another ComfyUI on the same folders."""


class Run:
    """A training, and the pictures that show its progress."""

    def __init__(self, training: Training, plan: Plan, name: str, preview: TrainPreview | None) -> None:
        """``training``: of a `ComfyBase`; ``name``: of the LoRA. The same run finds what an earlier one left of it."""
        from ..mudi_core.train.best import BestLora
        from ..mudi_core.train.resume import losses_so_far, origin_of

        self.training, self.plan, self.preview = training, plan, preview
        self.config = training.config
        self.origin = origin_of(plan, training.base.denoiser(), training.start, self.config)
        words = " ".join(self.origin[part] for part in ("plan", "unet", "start", "config"))
        self.key = hashlib.sha256(words.encode()).hexdigest()[:12]
        self.folder = Path(folder_paths.get_output_directory()) / "mudi" / name
        """Holds stopped trainings until they are done, and all previews."""
        loras = host.loras_folder()
        left = {path: match for path in entries(self.folder) if (match := _STOPPED.fullmatch(path.name))}
        own = [path for path, match in left.items() if match["key"] == self.key]
        self.goes_on, self.others = bool(own), [path for path in left if path not in own]
        kept = [int(match["number"]) for match in left.values() if match["number"]]
        about = training.about(plan)
        self.path = host.numbered(loras, name, ".safetensors", kept)
        """Of the LoRA. A run that goes on keeps the number of its files, unless another training has taken it."""
        if own and (number := left[own[0]]["number"]):
            was = loras / f"{name}_{number}.safetensors"
            if not was.exists() or _says(was, about):  # killed between its last file and the end of the stopped run
                self.path = was
        self.stopped = (
            own[0] if own else self.folder / f"stopped_{self.path.stem.rpartition('_')[2]}_{self.key}.safetensors"
        )
        self.losses = losses_so_far(self.stopped) if self.goes_on else []
        self.begun_at = len(self.losses)
        self.begins = self._begins()
        self.sheets: list[Tensor] = []
        """The previews so far."""
        style = training.base.usual.file_names
        self.best = BestLora(loras / f"{name}-best-{self.key}.safetensors", about, self.goes_on, style)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the LoRA and the run for the length of the block, on this machine and others. Raise `AlreadyTrained`."""
        from ..mudi_core.lock import beginning, claimed

        loras = self.path.parent
        with ExitStack() as stack:
            with beginning(loras, _LOCK):
                if not stack.enter_context(claimed(loras / f".mudi-{self.key}.lock")):
                    raise AlreadyTrained(
                        "Another ComfyUI is doing the same training in the same folders. Wait until it is done, or "
                        "change the seed or a setting."
                    )
                # Two that begin at once see the same free number: the second takes the next.
                while not stack.enter_context(claimed(loras / f".{self.path.stem}.lock")):
                    name, _, number = self.path.stem.rpartition("_")
                    self.path = self.path.with_stem(f"{name}_{int(number) + 1:05d}")
            if not self.goes_on:
                self.stopped = self.stopped.with_name(
                    f"stopped_{self.path.stem.rpartition('_')[2]}_{self.key}.safetensors"
                )
            yield

    def train(self) -> TrainResult:
        from ..mudi_core.jobs.train import LoraFiles, Watch, train_lora

        steps = self.config.samples.steps
        if self.begins:
            log.info("%s: %s", self.path.stem, self.begins)
            host.say(f"training: {self.begun_at} / {steps}, {self.begins}")
        files = LoraFiles(self.path, self.stopped, best=self.path.with_stem(f"{self.path.stem}-best"))
        watch = Watch(lambda done, total, loss: self.losses.append(loss), self._look, self._show)
        progress = host.progress(self._shown)
        try:
            result = train_lora(self.training, self.plan, files, progress, watch, best=self.best, goes_on=self.goes_on)
        except BaseException:
            # Cancel and errors alike; what was kept may be older than the last step.
            if self.stopped.is_file():
                host.say(f"stopped at {len(self.losses)} / {steps}, kept: queue the same again to go on")
            raise
        with suppress(OSError):  # not there, or there are previews in it, or others' stopped trainings
            self.folder.rmdir()
        return result

    def for_diffusers(self, usual: Family) -> str:
        """Write the LoRAs for diffusers where that reads only a form of its own; return in a sentence what was done."""
        from ..mudi_core.lora.file import write_in_diffusers_form

        if usual.diffusers == "none":
            return "No file was written for diffusers, which is not known to read LoRAs of this kind."
        if usual.diffusers == "kohya":
            return "diffusers reads this file as it is."
        denoiser, made = self.training.base.denoiser(), []
        for path in (self.path, self.best.path) if self.best.step else (self.path,):
            made.append(path.with_stem(f"{path.stem}-diffusers"))
            write_in_diffusers_form(made[-1], path, {denoiser.file_name(name): name for name in denoiser.layers()})
        return f"For diffusers: {' and '.join(path.name for path in made)}."

    def _begins(self) -> str:
        """Return where the run goes on, or why it cannot although a training of this name was stopped; else nothing."""
        from ..mudi_core.train.resume import differences

        if self.goes_on:
            return f"going on from step {self.begun_at}"
        if not self.others:
            return ""
        latest = max(self.others, key=lambda path: path.stat().st_mtime)
        try:
            reasons = "; ".join(differences(latest, self.origin))
        except MudiError as error:
            reasons = str(error)
        return f"begun anew, since a stopped training of this name differs: {reasons}. It is kept in {latest}"

    def _shown(self) -> Tensor:
        return drawing.column([drawing.loss_curve(self.losses, self.config.samples.steps), *self.sheets[-1:]])

    def _look(self, state: LoraState) -> Preview:
        assert self.preview is not None
        base = self.training.base
        assert isinstance(base, ComfyBase)
        return sampled(self.preview, with_lora(base.model, state, "The LoRA"), base.vae)

    def _show(self, step: int, preview: Preview, is_best: bool) -> None:
        self.sheets.append(drawing.preview_sheet(preview, f"step {step}"))
        with whole(self.folder / f"preview_{self.key}_{step:06d}.png") as temporary:
            drawing.pil(self.sheets[-1]).save(temporary, "PNG")


def _says(path: Path, about: Mapping[str, str]) -> bool:
    """Whether a LoRA file says all this of itself, and so is the one that the same training wrote."""
    from ..mudi_core.lora.file import load_lora

    try:
        return about.items() <= load_lora(path)[1].items()
    except MudiError:
        return False


def started(path: Path | None, base: ComfyBase, rank: int) -> tuple[StartLora | None, str]:
    """Return the LoRA of a file as what a training of this rank starts from, and what it loses of it in a sentence.

    It begins with what ComfyUI's loaders make of the file. Raise `BadLora`.
    """
    from ..mudi_core.lora import reading
    from ..mudi_core.lora.start_from import start_of

    if path is None:
        return None, ""
    found = start_of(reading.read_lora(path), base.denoiser(), rank, delta_of, host.progress())
    return found, found.told(path.name)


def with_lora(model: Any, state: Mapping[str, Tensor], name: str) -> Any:
    """Return a clone of the MODEL with the LoRA on it, as loader nodes put it on. Raise `LoraNotApplied`."""
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
    """Return the tensors of a LoRA file as ComfyUI's loaders read it."""
    state: dict[str, Tensor] = comfy.utils.load_torch_file(str(path), safe_load=True)
    return state
