"""A LoRA file on a MODEL and its CLIP: ComfyUI's patches for what it changes, and what of it does nothing there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
from torch import Tensor

from ..mudi_core.lora.change import BadLora
from ..mudi_core.lora.metadata import UnknownLora, read_about
from ..mudi_core.lora.names import our_name, split
from ..mudi_core.lora.reading import (
    PEFTS,
    RUN_PREFIX,
    Lora,
    NoLora,
    kind_of,
    lora_of,
    with_settings,
)
from ..mudi_core.lora.told import told_changed, told_left
from .denoiser.patches import PREFIX

_READ_THE_LATENT = ("_conv_in", "_img_in", "_x_embedder", "_x_embedder_proj", "_patch_embedding")
"""How our names of layers end that models of one base have in several sizes: for inpainting they read more channels."""


@dataclass(frozen=True, eq=False)
class LoraPatches:
    """What of a LoRA file acts on a MODEL and its CLIP."""

    name: str
    """Of the file."""
    kind: str
    """The kind of base model that it was trained on, as far as it tells."""
    network: Mapping[Any, Any]
    """ComfyUI's patches by the weight, or the part of it, that each is for."""
    text: Mapping[Any, Any]
    """Those of the text encoders."""
    left: tuple[str, ...]
    """In words what does nothing; () for nothing."""

    def told(self) -> str:
        """Return in a sentence what is changed, and what does nothing."""
        changed = told_changed(_count(self.network), _count(self.text))
        return "; ".join([f"{self.name}: {changed}", *self.left]) + "."


def patches_of(model: Any, clip: Any, path: Path) -> LoraPatches:
    """Read a LoRA file of any kind and names that ComfyUI or the library reads.

    Raise `BadLora` for a file that cannot be read or is damaged, and for a LoRA whose layers have other sizes than the
    model's.
    """
    try:
        state = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
    except Exception as error:  # each format has its own
        raise BadLora(f"{path.name} cannot be read: {error}. Get the file anew, or choose another.") from error
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    targets = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, targets)
    about, theirs = _about(path), _Heard(state)
    try:
        lora, unknown = lora_of(state, about, path.name), None
    except NoLora as error:  # ComfyUI may still know it
        lora, unknown = None, error
    ours = _Heard({} if lora is None else lora.tensors())  # names of which ComfyUI knows none or only some
    less, more = comfy.lora.load_lora(ours, targets, log_missing=False), comfy.lora.load_lora(theirs, targets, False)
    if len(less) > len(more) or (len(less) == len(more) and PEFTS in about):  # ComfyUI reads no alphas of metadata
        less, more = more, less
    found = {**less, **more}
    if unknown is not None and not found:
        raise unknown
    wrong = {} if lora is None else _of_another_size(lora, found, targets, model, clip)
    found = {key: patch for key, patch in found.items() if key not in wrong.values()}
    used = {key for key in state if key in theirs.heard or ".".join(_in_ours(key)) in ours.heard}
    left = told_left(*_left(state, used, lora))
    if wrong:
        left.append(f"of another size here, so left out: {', '.join(wrong)}")
    network = {key: patch for key, patch in found.items() if _weight(key).startswith(PREFIX)}
    text = {key: patch for key, patch in found.items() if key not in network}
    kind = "another kind of model" if lora is None else kind_of(lora)
    return LoraPatches(path.name, kind, network, text, tuple(left))


class _Heard(dict[str, "Tensor"]):
    """Tensors, and which of them somebody took: ComfyUI's reader says of those that it leaves only in its log."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.heard: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.heard.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default


def _about(path: Path) -> Mapping[str, str]:
    """Return the metadata of a file, and those that peft writes beside it; none for a file without any."""
    try:
        about = read_about(path)
    except UnknownLora:
        about = {}
    return with_settings(about, path)


def _in_ours(key: str) -> tuple[str, str]:
    """Return what the library calls the layer and the part of a tensor of a file; "" where it does not know it."""
    parts = split(key)
    return ("", "") if parts is None else (our_name(parts[0]), parts[1])


def _left(state: Mapping[str, Tensor], used: set[str], lora: Lora | None) -> tuple[list[str], list[str]]:
    """Return the layers of a file that nothing here has, and the tensors that nobody understands."""
    acting = {_in_ours(key)[0] for key in used}
    missing, unread = set(), []
    for key in state:
        if key not in used and not key.startswith(RUN_PREFIX):
            layer, _ = _in_ours(key)
            if layer and (lora is None or layer in lora.changes):
                missing.add(layer)
            else:
                unread.append(key)
    return sorted(missing - acting), sorted(unread)


def _of_another_size(
    lora: Lora, found: Mapping[Any, Any], targets: Mapping[Any, Any], model: Any, clip: Any
) -> dict[str, Any]:
    """Return what patches of other sizes than their layers are for, by our names of the layers.

    Raise `BadLora` where they are others than those that differ between models of one base, or where all are.
    """
    places = {our_name(name): place for name, place in targets.items() if isinstance(name, str) and place in found}
    sizes = {name: _size(model, clip, place) for name, place in places.items() if name in lora.changes}
    known = {name: size for name, size in sizes.items() if size and not _reshapes(found[places[name]])}
    wrong = lora.misfits(known)
    for name in wrong:
        if not name.endswith(_READ_THE_LATENT) or len(wrong) == len(found):
            raise lora.misfit(name, known[name])
    return {name: places[name] for name in wrong}


def _reshapes(patch: Any) -> bool:
    """Return whether a patch gives its weight another shape first, as those of FLUX' control LoRAs do."""
    return getattr(patch, "name", None) == "lora" and any(one is not None for one in patch.weights[5:6])


def _count(patches: Mapping[Any, Any]) -> int:
    return len({_weight(key).rpartition(".")[0] for key in patches})


def _weight(target: Any) -> str:
    """Return the name of the weight that a patch is for, or for a part of which it is."""
    return str(target if isinstance(target, str) else target[0])


def _size(model: Any, clip: Any, target: Any) -> tuple[int, int] | None:
    """Return rows and values in each of the weight, or of the part of it, that a patch is for; None: nobody knows."""
    path, _, leaf = _weight(target).rpartition(".")
    network = model.model if path.startswith(PREFIX) else clip.cond_stage_model
    try:
        layer = network.get_submodule(path)
    except AttributeError:
        return None
    if hasattr(layer, "in_features") and hasattr(layer, "out_features"):  # loaders keep weights in other shapes
        size = [int(layer.out_features), int(layer.in_features)]
    elif isinstance(weight := getattr(layer, leaf, None), Tensor) and weight.ndim:
        size = [weight.shape[0], weight.shape[1:].numel()]
    else:
        return None
    if not isinstance(target, str) and len(target) > 1 and target[1] is not None:
        dim, _, length = target[1]
        size[min(dim, 1)] = length
    return size[0], size[1]
