"""One reader for the LoRA files of all programs: what each layer is changed by, and what was not understood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..tensor_file import read_tensors
from .change import BadLora, Change
from .names import TEXT, our_name, split
from .told import shown, told_changed, told_left

PEFTS = "lora_adapter_metadata"
"""The metadata with peft's settings, of which the alphas are no tensors."""
RUN_PREFIX = "run."
"""The prefix of everything but the LoRA in the file of a stopped run."""
_LONGEST_SETTINGS = 2**20
_KEEPS_ITS_TYPE = (torch.float16, torch.bfloat16, torch.float32)


class NoLora(BadLora):
    """A file in which no layer of any LoRA is known; `BadLora` itself is one that is damaged or does not fit."""


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA as it is in its file."""

    name: str
    """The name of its file."""
    changes: Mapping[str, Change]
    """By our name of the layer (`names.our_name`)."""
    about: Mapping[str, str]
    """Its metadata; they may come from anybody."""
    written: Mapping[str, str]
    """The file's own name of each layer, by ours."""
    unread: tuple[str, ...] = ()
    """The keys that belong to no kind of change known here, such as changes of biases and norms."""

    def kinds(self) -> dict[str, int]:
        """Return how many layers are changed in each way: "LoRA", "LoHa", "DoRA"."""
        found: dict[str, int] = {}
        for change in self.changes.values():
            kind = change.kind if change.magnitude is None else "DoRA"
            found[kind] = found.get(kind, 0) + 1
        return found

    def fingerprint(self) -> str:
        """Return a text that differs for every other LoRA, whatever its file says of it."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.tensors().items()):
            digest.update(key.encode() + tensor.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def on(self, sizes: Mapping[str, tuple[int, int]], model: str = "the model") -> Matched:
        """Return what of it fits a model.

        ``sizes``: rows of the weight and values in each, by our name of each layer of the model; ``model``: its name
        for errors. Raise `BadLora` where nothing fits, or where a layer has another size.
        """
        found = {name: change for name, change in self.changes.items() if name in sizes}
        if not found:
            example = next(iter(self.written.values()))
            raise BadLora(
                f"None of the {len(self.changes)} layers that {self.name} changes is in {model}: {kind_of(self)} calls "
                f"them '{shown(example)}' and the like. Use it with the kind of base model that it was "
                "trained on."
            )
        for name in self.misfits(sizes):
            raise self.misfit(name, sizes[name])
        return Matched(found, tuple(sorted(self.changes.keys() - found.keys())), self.unread)

    def misfits(self, sizes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
        """Return its layers that have another size in a model; ``sizes`` as in `on`."""
        return tuple(name for name, change in self.changes.items() if change.size != sizes.get(name, change.size))

    def misfit(self, name: str, size: tuple[int, int]) -> BadLora:
        """Return the error of a layer that has another size in the model: these rows and values in each."""
        (out, wide), (rows, values) = self.changes[name].size, size
        return BadLora(
            f"{self.name} was trained on a model of another size ({kind_of(self)}): {name} is {rows} x {values} here, "
            f"{out} x {wide} in the file. Use it with its own base model."
        )

    def without(self, names: Iterable[str]) -> Lora:
        """Return it without the changes of some layers."""
        gone = set(names)
        return replace(self, changes={name: change for name, change in self.changes.items() if name not in gone})

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by our names of the layers, as ComfyUI reads them."""
        return {key: value for name, change in self.changes.items() for key, value in change.tensors(name).items()}


@dataclass(frozen=True, eq=False)
class Matched:
    """The changes of a LoRA that a model has the layers for."""

    changes: Mapping[str, Change]
    missing: tuple[str, ...]
    """Layers that the model does not have."""
    unread: tuple[str, ...]

    def told(self) -> str:
        """Return what was found in a sentence."""
        text = sum(name.startswith(TEXT) for name in self.changes)
        changed = told_changed(len(self.changes) - text, text)
        return "; ".join([changed, *told_left(self.missing, self.unread)]) + "."


def read_lora(path: Path) -> Lora:
    """Read a LoRA file of any program; of a stopped run's file, the LoRA so far.

    Raise `BadLora` for a file that is no LoRA and `BadTensorFile` for one that cannot be read.
    """
    path = Path(path)
    tensors, about = read_tensors(path)
    return lora_of(tensors, with_settings(about, path), path.name)


def with_settings(about: Mapping[str, str], path: Path) -> Mapping[str, str]:
    """Return the metadata of a LoRA file, with peft's settings from beside it where the file has none."""
    beside = path.with_name("adapter_config.json")
    if PEFTS in about or not beside.is_file():
        return about
    return {**about, PEFTS: _settings_beside(beside)}


def lora_of(tensors: Mapping[str, Tensor], about: Mapping[str, str], name: str) -> Lora:
    """Return the LoRA that the tensors of a file are, as `read_lora` does."""
    layers: dict[str, dict[str, Tensor]] = {}
    written: dict[str, str] = {}
    unread = []
    for key, tensor in tensors.items():
        if key.startswith(RUN_PREFIX):
            continue
        found = split(key)
        if found is None or not (tensor.is_floating_point() or found[1] == "alpha"):
            unread.append(key)
            continue
        ours = our_name(found[0])
        written.setdefault(ours, found[0])
        # fp8 has no arithmetic of its own
        value = tensor if tensor.dtype in _KEEPS_ITS_TYPE else tensor.float()
        if layers.setdefault(ours, {}).setdefault(found[1], value) is not value:
            raise BadLora(f"{name} has {shown(found[0])} twice under two names. Make the file again.")
    changes = {}
    for ours, parts in layers.items():
        change = Change.of(parts, f"{name}: {shown(written[ours])}")
        if change is not None:
            changes[ours] = change
        else:
            unread += [f"{written[ours]}.{part}" for part in parts]
    if not changes:
        what = f"it has '{shown(next(iter(tensors)))}'" if tensors else "it is empty"
        raise NoLora(
            f"{name} is no LoRA that can be read here: {what}. Use a LoRA file of kohya's scripts, diffusers, peft, "
            "LyCORIS, or of this project."
        )
    scales = _scales(about)
    for ours, change in changes.items():
        rank = change.rank
        if change.alpha is None and rank is not None and (scale := _scale_of(scales, written[ours], rank)):
            changes[ours] = replace(change, alpha=scale * rank)
    return Lora(name, changes, dict(about), {ours: written[ours] for ours in changes}, tuple(sorted(unread)))


_HINTS = (
    ("double_blocks_", "FLUX"), ("single_transformer_blocks_", "FLUX"), ("joint_blocks_", "SD 3"),
    ("img_mod", "Qwen-Image"), ("noise_refiner", "Lumina or Z-Image"), ("llm_adapter", "Anima"),
)  # fmt: skip
_PEFT_PARTS = ("unet.", "text_encoder.", "text_encoder_2.", "transformer.")
_CONTEXTS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}


def kind_of(lora: Lora) -> str:
    """Return the kind of base model that a LoRA was trained on, as far as its layers and metadata tell."""
    for name, change in lora.changes.items():
        for hint, kind in _HINTS:
            if hint in name:
                return kind
        if name.endswith(("attn2_to_k", "attn2_to_v")) and (kind_found := _CONTEXTS.get(change.size[1])):
            return kind_found
    version = lora.about.get("ss_base_model_version") or lora.about.get("modelspec.architecture")
    return shown(version) if version else "another kind of model"


def _settings_beside(path: Path) -> str:
    """Return peft's settings, which it writes beside the tensors; nothing where they cannot be read."""
    try:
        if path.stat().st_size <= _LONGEST_SETTINGS:
            return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    return ""


def _scales(about: Mapping[str, str]) -> dict[str, object]:
    """Return peft's settings of a LoRA, which hold its alphas: files of peft and diffusers have none of their own."""
    text = about.get(PEFTS, "")
    if not 0 < len(text) <= _LONGEST_SETTINGS:
        return {}
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _scale_of(settings: Mapping[str, object], layer: str, rank: int) -> float | None:
    """Return what peft multiplies the change of a layer by: alpha / rank, or alpha / sqrt(rank) (rsLoRA)."""
    part = next((one for one in _PEFT_PARTS if layer.startswith(one)), "")
    alpha, pattern = settings.get(f"{part}lora_alpha"), settings.get(f"{part}alpha_pattern")
    if isinstance(pattern, dict):  # by the end of a layer's path; looked up, for a stranger's may be long
        path = layer.removeprefix(part).split(".")
        ends = (".".join(path[place:]) for place in range(len(path)))
        alpha = next((pattern[end] for end in ends if end in pattern), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        return None
    return float(alpha / rank**0.5 if settings.get(f"{part}use_rslora") is True else alpha / rank)
