"""A LoRA on a U-Net, and the file that ComfyUI, diffusers and the web UIs read.

The file has kohya's names: ``lora_unet_<path of the linear layer with _ for .>.lora_down.weight``, ``.lora_up.weight``
and an explicit ``.alpha`` for every layer. Without the alphas some programs take another scale, silently.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..types import MudiError, SubjectSet
from .config import TrainConfig
from .tensor_file import read_tensors, write_tensors
from .tokens import TokenVectors

log = logging.getLogger(__name__)

LoraState = dict[str, Tensor]
"""A LoRA file's tensors by kohya name."""

RUN_PREFIX = "run."
"""Begins the names of what a stopped run's file holds beside the LoRA."""
_PREFIX = "lora_unet_"
_PARTS = (".lora_down.weight", ".lora_up.weight", ".alpha")
_ADAPTER = "mudi"
_WAYS = {"input": "down", "output": "up"}


class BadLora(MudiError):
    """A LoRA file that cannot be written or read, or that does not fit the model."""


class Adapter:
    """A LoRA on a U-Net. `remove`, or the end of a ``with`` block, leaves the U-Net as it was before."""

    def __init__(
        self, unet: Any, rank: int, alpha: float, modules: Sequence[str], vectors: TokenVectors | None = None
    ) -> None:
        """Puts a LoRA that does nothing yet on every linear layer whose name ends in one of ``modules``.

        ``vectors``: those of tokens, to be trained with it; without modules they are all that is trained.
        """
        from peft import LoraConfig
        from peft.tuners.lora import LoraLayer

        _check_bare(unet)
        if not any(_ends(name, modules) for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)):
            if modules or vectors is None:
                raise BadLora(f"The U-Net has no layer named {', '.join(modules)}. Check target_modules.")
        self.unet = unet
        self.alpha = alpha
        self.vectors = vectors
        self._trained_before = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
        unet.requires_grad_(False)
        if modules:
            # peft draws a start from the global generator; the caller's other draws shall not notice.
            with torch.random.fork_rng(devices=[]):
                unet.add_adapter(
                    LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules), init_lora_weights="gaussian"),  # type: ignore[arg-type]
                    _ADAPTER,
                )
        self.layers: dict[str, Any] = {
            name: layer for name, layer in unet.named_modules() if isinstance(layer, LoraLayer)
        }

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def start(self, seed: int, lora: Mapping[str, Tensor] | None = None) -> None:
        """Down matrices from a normal distribution of standard deviation 1 / rank, up matrices 0; all in float32.

        With a ``lora`` of the same layers and of this rank or less, the start has its effect instead. Raises `BadLora`.
        """
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            down, up = layer.lora_A[_ADAPTER].float().weight, layer.lora_B[_ADAPTER].float().weight
            with torch.no_grad():
                down.copy_(torch.randn(down.shape, generator=generator) / down.shape[0])
                up.zero_()
        if lora is not None:
            self._go_on_from(lora)
        if self.vectors is not None:
            self.vectors.start()

    def _go_on_from(self, lora: Mapping[str, Tensor]) -> None:
        names = {key.rsplit(".", 1)[0] for key in lora if key.endswith(_PARTS[2])}
        ours = {kohya_name(name): layer for name, layer in self.layers.items()}
        if names != ours.keys():
            example = min(names ^ ours.keys())
            raise BadLora(
                f"The LoRA to start from has other layers than this training: {len(names & ours.keys())} of its "
                f"{len(names)} are among the {len(ours)} here, and {example} is not in both. Use one of the same base "
                "model and target modules."
            )
        for name, layer in ours.items():
            down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            given_down, given_up, alpha = (lora[name + part].to(down) for part in _PARTS)
            rank = given_down.shape[0]
            if rank > down.shape[0] or given_down.shape[1] != down.shape[1] or given_up.shape[0] != up.shape[0]:
                raise BadLora(
                    f"The LoRA to start from does not fit into this training: {name} has rank {rank} and is "
                    f"{given_up.shape[0]} x {given_down.shape[1]}, here rank {down.shape[0]} and {up.shape[0]} x "
                    f"{down.shape[1]}. Use one of the same base model, and at least its rank."
                )
            with torch.no_grad():
                down[:rank] = given_down
                up[:, :rank] = given_up * (alpha / rank) / (self.alpha / down.shape[0])

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained, in an order that depends on the U-Net and the tokens alone."""
        return [*self.matrices(), *(self.vectors.parameters() if self.vectors is not None else ())]

    def matrices(self) -> list[nn.Parameter]:
        """The LoRA's own parameters."""
        return [
            matrices[_ADAPTER].weight for layer in self.layers.values() for matrices in (layer.lora_A, layer.lora_B)
        ]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the U-Net predicts as if it wore no LoRA."""
        # The flag alone: peft's own switch also sets every parameter's, 20 ms for SDXL, twice in every batch.
        for layer in self.layers.values():
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer._disable_adapters = False

    def state(self) -> LoraState:
        """A copy of the LoRA on the CPU, float32, by kohya name."""
        state: LoraState = {}
        for name, layer in self.layers.items():
            values = (
                layer.lora_A[_ADAPTER].weight.detach(),
                layer.lora_B[_ADAPTER].weight.detach(),
                torch.tensor(self.alpha),
            )
            for part, value in zip(_PARTS, values, strict=True):
                state[kohya_name(name) + part] = value.to("cpu", torch.float32, copy=True).contiguous()
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the values of a state of the same layers and rank."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.lora_A[_ADAPTER].weight.copy_(state[kohya_name(name) + _PARTS[0]])
                layer.lora_B[_ADAPTER].weight.copy_(state[kohya_name(name) + _PARTS[1]])

    def remove(self) -> None:
        """Takes the LoRA off. Calling it again does nothing."""
        if getattr(self.unet, "peft_config", None):
            self.unet.unload_lora()
            self.unet._hf_peft_config_loaded = False  # diffusers 0.30 leaves it, and then trips over the next LoRA
        for parameter, trained in self._trained_before:
            parameter.requires_grad_(trained)


def kohya_name(module: str) -> str:
    """``down_blocks.1.attentions.0...to_q`` -> ``lora_unet_down_blocks_1_attentions_0_..._to_q``."""
    return _PREFIX + module.replace(".", "_")


_STABILITY_BLOCK = re.compile(r"lora_unet_(input|middle|output)_blocks?_(?:(\d+)_)?(\d)_")
"""Begins a layer's name where kohya's SDXL tools write it: ``lora_unet_input_blocks_4_1_...``."""


def _our_name(key: str) -> str:
    """Stability's names of SDXL's blocks, as kohya's SDXL tools write them, in diffusers' words; others as they are.

    SDXL (and SD) counts through two residual blocks and a downsampler (three residual blocks on the way up) per level,
    in each the attention at place 1. The way down starts with a convolution that has no level.
    """
    match = _STABILITY_BLOCK.match(key)
    if match is None or match[3] != "1":
        return key
    way, number = match[1], int(match[2] or 0)
    level, place = divmod(number - 1 if way == "input" else number, 3)
    block = "mid_block_attentions_0" if way == "middle" else f"{_WAYS[way]}_blocks_{level}_attentions_{place}"
    return f"{_PREFIX}{block}_{key[match.end() :]}"


def apply_lora(unet: Any, lora: Path | Mapping[str, Tensor], scale: float = 1.0) -> Adapter:
    """Puts a trained LoRA on a diffusers U-Net for sampling; every layer in the file must find its place.

    ``lora``: a file or a state; ``scale`` multiplies its effect. Raises `BadLora` with what does not fit.
    """
    _check_bare(unet)
    what = "The LoRA" if isinstance(lora, Mapping) else Path(lora).name
    state = lora if isinstance(lora, Mapping) else load_lora(lora)[0]
    names = {key.rsplit(".", 1)[0] for key in state if key.endswith(_PARTS[2])}
    modules = [
        name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and kohya_name(name) in names
    ]
    if len(modules) < len(names):
        missing = min(names - {kohya_name(name) for name in modules})
        raise BadLora(
            f"{what} was trained on another kind of model: {len(names) - len(modules)} of its {len(names)} layers do "
            f"not exist here, for example {missing}. Use it with the base model it was trained on."
        )
    kinds = {(state[name + _PARTS[0]].shape[0], state[name + _PARTS[2]].item()) for name in names}
    if len(kinds) > 1:
        raise BadLora(f"{what} mixes {len(kinds)} ranks or alphas; only files with a single rank and alpha are read.")
    for module in modules:
        layer = unet.get_submodule(module)
        got = state[kohya_name(module) + _PARTS[1]].shape[0], state[kohya_name(module) + _PARTS[0]].shape[1]
        if got != (layer.out_features, layer.in_features):
            raise BadLora(
                f"{what} was trained on a model of another size: {module} is {layer.out_features} x "
                f"{layer.in_features} here, {got[0]} x {got[1]} in the file. Use it with its own base model."
            )
    rank, alpha = kinds.pop()
    adapter = Adapter(unet, rank, alpha * scale, modules)
    adapter.load(state)
    return adapter


def lora_metadata(
    config: TrainConfig, subjects: SubjectSet, *, base: str, plan_hash: str, family: str = "sdxl_base_v1-0"
) -> dict[str, str]:
    """What the file says of itself: kohya's ``ss_*`` keys that other programs show, and our own ``mudi_*``.

    ``family``: kohya's name for the architecture of the base model.
    """
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.lora_alpha),
        "ss_base_model_version": family,
        "ss_sd_model_name": base,
        "ss_learning_rate": str(config.learning_rate),
        "ss_unet_lr": str(config.learning_rate),
        "ss_optimizer": config.optimizer,
        "ss_lr_scheduler": config.lr_schedule,
        "ss_lr_warmup_steps": str(config.lr_warmup),
        "ss_steps": str(config.steps),
        "ss_max_train_steps": str(config.steps),
        "ss_total_batch_size": str(config.samples_per_step),
        "ss_gradient_accumulation_steps": str(config.accumulation),
        "ss_resolution": f"({config.size[0]}, {config.size[1]})",
        "ss_min_snr_gamma": str(config.min_snr_gamma),
        "ss_noise_offset": str(config.noise_offset),
        "ss_mixed_precision": "bf16" if config.precision == "bf16" else "no",
        "ss_seed": str(config.seed),
        "mudi_tokens": json.dumps(list(subjects.tokens)),
        "mudi_class_nouns": json.dumps([subject.class_noun for subject in subjects]),
        "mudi_base": base,
        "mudi_config": config.to_json(),
        "mudi_plan_hash": plan_hash,
        "mudi_version": __version__,
    }


def save_lora(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Writes the file, reads it back, compares every key and value, and only then gives it its name.

    Raises `BadLora` when a value does not fit ``dtype`` and `BadTensorFile` when it cannot be written.
    """
    stored = {key: value.float() if key.endswith(_PARTS[2]) else value.to(dtype) for key, value in state.items()}
    for key, value in stored.items():
        if not value.isfinite().all():
            raise BadLora(
                f"{key} has values that {dtype} cannot hold. The training has diverged: lower the learning rate."
            )
    write_tensors(path, stored, metadata)
    log.info("wrote %s: %d layers", path, len(stored) // len(_PARTS))


def load_lora(path: Path) -> tuple[LoraState, dict[str, str]]:
    """The tensors (float32) and metadata of a LoRA file with kohya's names, or of a stopped run the LoRA so far.

    Raises `BadLora`, `BadTensorFile`.
    """
    tensors, metadata = read_tensors(path)
    state = {_our_name(key): value.float() for key, value in tensors.items() if not key.startswith(RUN_PREFIX)}
    names = {key[: -len(part)] for key in state for part in _PARTS if key.endswith(part)}
    strange = [key for key in state if not key.startswith(_PREFIX) or not key.endswith(_PARTS)]
    missing = [name + part for name in sorted(names) for part in _PARTS if name + part not in state]
    if strange or missing or not state:
        example = f"it has '{strange[0]}'" if strange else f"'{missing[0]}' is missing" if missing else "it is empty"
        raise BadLora(
            f"{Path(path).name} is not a LoRA of a U-Net with kohya's names: {example}. "
            "Use a file that this project's train command wrote."
        )
    for name in names:
        down, up, alpha = (state[name + part] for part in _PARTS)
        if down.ndim != 2 or up.ndim != 2 or alpha.numel() != 1 or down.shape[0] != up.shape[1] or not down.numel():
            raise BadLora(
                f"{Path(path).name} is damaged or no LoRA of linear layers: the matrices of {name} are "
                f"{list(down.shape)} and {list(up.shape)}. Use a file that this project's train command wrote."
            )
    return state, metadata


def _check_bare(unet: Any) -> None:
    if getattr(unet, "peft_config", None):
        raise BadLora("The U-Net already wears a LoRA. Give the model as it was before any LoRA was loaded.")


def _ends(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.endswith("." + module) for module in modules)
