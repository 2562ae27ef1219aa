"""ComfyUI's MODEL as a `promise.Denoiser`: a LoRA is trained on the very network that samplers use.

Its conditions are made by the model's own ``extra_conds``, its noise law is its ``model_sampling``, and nothing of it
is copied or replaced.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_sampling
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor, nn

from ..mudi_core.bases.promise import Conditions, NoiseLevel
from ..mudi_core.bases.unet import KOHYA, weights_fingerprint
from . import frozen
from .convert import BadModel

if TYPE_CHECKING:
    from ..mudi_core.bases.quantize import BaseWeights

log = logging.getLogger(__name__)

_PREFIX = "diffusion_model."
_APART: dict[str, float] = {"full": 0.05, "fp8": 0.3, "int8": 0.3, "nf4": 0.6}
"""How far the network's answer in training may be from that in sampling, as a share of it."""
_ROUNDED = 0.4
"""The same where either is in half precision, which hundreds of layers add up."""


class ComfyDenoiser:
    """A MODEL, with the LoRAs on it, to be trained upon."""

    def __init__(self, model: Any, base_weights: BaseWeights = "full") -> None:
        """``base_weights``: how the linear layers of its blocks are kept on the card. Raises `BadModel`."""
        _check_bare(model)
        self.patcher, self.stored_as = model, base_weights
        self._model = model.model
        self._sampling = _training_sampling(model)
        self._names = _diffusers_names(model)
        self._copies: frozen.Copies | None = None

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self._model.diffusion_model
        return network

    @property
    def device(self) -> torch.device:
        return torch.device(self.patcher.load_device)

    @contextmanager
    def ready(self, bf16: bool) -> Iterator[None]:
        """Within the block the MODEL is loaded, and what its network says has a gradient."""
        dtype = torch.bfloat16 if bf16 else torch.float32
        with ExitStack() as stack:
            self._load(dtype)
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_attribute(self._model, "model_sampling", _answering(self._model.model_sampling)))
            stack.enter_context(_attribute(self._model, "manual_cast_dtype", dtype))
            if hasattr(comfy.model_management, "in_training"):
                stack.enter_context(_attribute(comfy.model_management, "in_training", True))
            stack.enter_context(frozen.frozen(self._model))
            if self._copies is not None:
                stack.enter_context(frozen.in_place_of(self.network, self._copies))
            stack.enter_context(frozen.cast_to(self.network, dtype))
            stack.enter_context(frozen.differentiable_kernels())
            stack.enter_context(frozen.weights_asked_again(self.network))
            yield

    def _load(self, dtype: torch.dtype) -> None:
        """Bring the MODEL to its device; where it is to be in few bits, only copies of its weights."""
        with torch.inference_mode():
            if self.stored_as == "full":
                comfy.model_management.load_models_gpu([self.patcher])
            elif self._copies is None:
                self._copies = frozen.copies_in(self.stored_as, self.patcher, self._block_layers(), dtype, self.device)

    def _block_layers(self) -> list[str]:
        """The linear layers that may be in few bits: those of the transformers."""
        inside = {id(module) for block in self.blocks(selective=True) for module in block.modules()}
        names = [name for name, layer in self.layers().items() if id(layer) in inside]
        return [name for name in names if ".transformer_blocks." in name] if self._names else names

    def draw_level(self, generator: torch.Generator) -> Tensor:
        """Return one of the model's sigmas, ``[1]``: of a table any, of a flow by a logistic normal (SD 3, eq. 19)."""
        if _is_table(self._sampling):
            sigmas = self._sampling.sigmas
            return _floats(sigmas)[torch.randint(0, len(sigmas), (1,), generator=generator)]
        share = torch.sigmoid(torch.randn(1, generator=generator)).item()
        return torch.tensor([float(self._sampling.percent_to_sigma(1 - share))])

    def level(self, drawn: Tensor) -> NoiseLevel:
        """``drawn``: sigmas. What the network sees and should say follows from its ``model_sampling``."""
        rows = torch.tensor([_law(self._sampling, sigma) for sigma in drawn.tolist()], dtype=torch.float32)
        return NoiseLevel(drawn.to(self.device), *rows.to(self.device).unbind(1))

    def latents(self, encoded: Tensor) -> Tensor:
        with torch.no_grad():
            latents: Tensor = self._model.process_latent_in(encoded)
        return latents

    def predict(self, x: Tensor, level: NoiseLevel, conditions: Sequence[Conditions], sizes: Tensor) -> Tensor:
        """``conditions``: of `convert.encode_text`. Samples with conditions of other shapes go one by one."""
        told = [self._told(one, size, x[:1]) for one, size in zip(conditions, sizes.tolist(), strict=True)]
        if all(_together(told[0], other) for other in told[1:]):
            return self._answer(x, level.at, told)
        each = [self._answer(x[i : i + 1], level.at[i : i + 1], told[i : i + 1]) for i in range(len(x))]
        return torch.cat(each)

    def _told(self, conditions: Conditions, size: Sequence[float], like: Tensor) -> dict[str, Any]:
        """What the network reads beside the noise, as ComfyUI's samplers make it of a CONDITIONING."""
        height, width, top, left, target_height, target_width = (int(number) for number in size)
        with torch.no_grad():
            found = self._model.extra_conds(
                **{name: value[None] for name, value in conditions.items()},
                noise=like,
                latent_image=torch.zeros_like(like),
                device=self.device,
                prompt_type="positive",
                height=height,
                width=width,
                crop_h=top,
                crop_w=left,
                target_height=target_height,
                target_width=target_width,
            )
            return {n: one.process_cond(batch_size=1, device=self.device, area=None) for n, one in found.items()}

    def _answer(self, x: Tensor, sigma: Tensor, told: Sequence[dict[str, Any]]) -> Tensor:
        batch = {
            name: _moved(first.concat([other[name] for other in told[1:]]), self.device)
            for name, first in told[0].items()
        }
        options = {"optimized_attention_override": _attention, "cond_or_uncond": [0], "sigmas": sigma}
        with frozen.NormsKeepCopies():
            answer: Tensor = self._model.apply_model(x, sigma, transformer_options=options, **batch)
        return answer

    def layers(self) -> dict[str, nn.Module]:
        """Return the linear layers; those of SD's and SDXL's U-Nets in the order of diffusers' names."""
        found = {name: module for name, module in self.network.named_modules() if frozen.is_linear(module)}
        if not self._names:
            return found
        return dict(sorted(found.items(), key=lambda layer: _place(self._names.get(layer[0], layer[0]))))

    def file_name(self, layer: str) -> str:
        """SD's and SDXL's layers have diffusers' names in files, all others ComfyUI's own."""
        return KOHYA + self._names.get(layer, layer).replace(".", "_")

    def blocks(self, selective: bool) -> list[nn.Module]:
        """Return the parts that repeat: the outermost, or the innermost for ``selective``, that stand in a list."""
        outer = _parts(self.network)
        if not selective:
            return outer
        return [inner for part in outer for inner in (_parts(part) or [part])]

    def repeatable(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        return frozen.on_copies(forward)

    def fingerprint(self) -> str:
        """Return what tells this MODEL, with the LoRAs on it, from any other, loaded or not."""
        digest = hashlib.sha256()
        for key, patches in sorted(self.patcher.patches.items()):
            digest.update(key.encode())
            for strength, patch, *_ in patches:
                digest.update(repr(strength).encode())
                for tensor in _tensors(patch):
                    digest.update(tensor.detach().reshape(-1)[:8].float().cpu().numpy().tobytes())
        beneath = {key.removeprefix(_PREFIX): kept.weight for key, kept in self.patcher.backup.items()}
        return f"model {weights_fingerprint(self.network, beneath)} {digest.hexdigest()}"

    def check(self, encoded: Tensor, conditions: Conditions, bf16: bool) -> None:
        """Raise `BadModel` where training would see another answer than ComfyUI's samplers do.

        ``encoded``: latents ``[c, ...]`` of the VAE; ``conditions``: of a caption; ``bf16``: as in `ready`.
        """
        drawn = self.draw_level(torch.Generator().manual_seed(0))
        try:
            with torch.inference_mode():
                comfy.model_management.load_models_gpu([self.patcher])
                z0, level = self.latents(encoded[None].to(self.device)), self.level(drawn)
                x = level.noisy(z0, torch.ones_like(z0))
                height, width = (8 * side for side in z0.shape[-2:])
                sizes = torch.tensor([[height, width, 0, 0, height, width]])
                clean = self._answer(x, level.at, [self._told(conditions, sizes[0].tolist(), x)])
            if self.stored_as != "full":
                comfy.model_management.unload_all_models()
            with self.ready(bf16), torch.no_grad():
                answer = self.predict(x.clone(), level, [conditions], sizes)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            if isinstance(error, comfy.model_management.OOM_EXCEPTION):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadModel(
                f"This MODEL ({name_of(self.patcher)}) cannot read what this CLIP and this VAE make of captions and "
                f"pictures ({reason}). Connect CLIP and VAE of the same checkpoint."
            ) from error
        a, b = _apply(self._sampling, drawn, 0.0, 1.0), _apply(self._sampling, drawn, 1.0, 0.0)
        wanted, found = clean.clone() - a * x.clone(), b * answer
        share = float((found - wanted).norm()) / max(float(wanted.norm()), 1e-6)
        own = self._model.manual_cast_dtype or self._model.get_dtype()
        if own != torch.float32 or bf16:  # hundreds of layers add up what half precision rounds
            if not share <= _ROUNDED:
                log.warning("In training the MODEL's answer is %.0f %% from that in sampling.", 100 * share)
        elif not share <= _APART[self.stored_as]:
            raise BadModel(
                f"This MODEL ({name_of(self.patcher)}) would answer otherwise in training than in sampling, so it "
                "cannot be trained here. Connect it without nodes that change its sampling or its layers, or use "
                "another checkpoint."
            )


def name_of(model: Any) -> str:
    """What ComfyUI calls a MODEL's kind."""
    return type(model.model.model_config).__name__


def kohya_family(model: Any) -> str:
    """Kohya's name for a MODEL's kind, as LoRA files say it. Raises `BadModel` for one that cannot be trained yet."""
    kind, unet = model.model.model_config, model.model.model_config.unet_config
    reads_pictures = getattr(kind, "noise_aug_config", None) or unet.get("in_channels", 4) != 4  # unCLIP, inpainting
    if not reads_pictures and "transformer_depth" in unet:
        if isinstance(kind, comfy.supported_models.SDXL) and model.model.adm_channels:
            return "sdxl_base_v1-0"
        if isinstance(kind, comfy.supported_models.SD20):
            predicts_v = isinstance(_training_sampling(model), comfy.model_sampling.V_PREDICTION)
            return "sd_v2" + ("_v" if predicts_v else "")
        if isinstance(kind, comfy.supported_models.SD15):
            return "sd_v1" + ("_v" if isinstance(_training_sampling(model), comfy.model_sampling.V_PREDICTION) else "")
    raise BadModel(
        f"This MODEL ({name_of(model)}) is not of the architecture of SD 1.5, SD 2 or SDXL, and only such can be "
        "trained here: these themselves, their finetunes (Pony, Illustrious, ...), and the embedded mini model."
    )


def foreign_patches(model: Any) -> list[str]:
    """What other nodes have put on a MODEL that training does not see, by the name in its options."""
    options = model.model_options
    found = [name for name in options if name not in ("transformer_options", "sampler_cfg_function")]
    found += [name for name in options.get("transformer_options", {}) if name.startswith(("patches", "wrappers"))]
    found += [name for name in getattr(model, "object_patches", {}) if name != "model_sampling"]
    return sorted(set(found))


def _check_bare(model: Any) -> None:
    if getattr(model, "injections", None):
        raise BadModel(
            f"This MODEL wears something that training cannot see ({', '.join(model.injections)}), such as a LoRA in "
            "bypass mode. Load the LoRA without bypass, or take it off."
        )


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the block an attribute is another."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _Answering:
    """A model_sampling that hands out what the network said."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_output


def _answering(sampling: Any) -> Any:
    kind = type(sampling)
    answering: Any = object.__new__(type(f"Answering{kind.__name__}", (_Answering, kind), {}))
    answering.__dict__.update(sampling.__dict__)
    return answering


def _attention(_chosen: Any, *args: Any, **kwargs: Any) -> Any:
    """torch's own attention: others have no derivative, or compute otherwise when memory is short."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def _together(first: dict[str, Any], other: dict[str, Any]) -> bool:
    return first.keys() == other.keys() and all(first[name].can_concat(other[name]) for name in first)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_moved(one, device) for one in value] if isinstance(value, list) else value


def _tensors(patch: Any) -> Iterator[Tensor]:
    """All tensors of a patch of ComfyUI: a tuple, a list, or an adapter with weights."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, tuple | list):
        for part in patch:
            yield from _tensors(part)
    elif hasattr(patch, "weights"):
        yield from _tensors(patch.weights)


def _parts(module: nn.Module) -> list[nn.Module]:
    """The outermost modules in a module's lists that are no lists themselves and have parts of their own."""
    found: list[nn.Module] = []

    def walk(place: nn.Module, in_list: bool) -> None:
        for child in place.children():
            if isinstance(child, nn.ModuleList | nn.Sequential | nn.ModuleDict):
                walk(child, in_list or isinstance(child, nn.ModuleList))
            elif not in_list:
                walk(child, False)
            elif any(True for _ in child.children()):
                found.append(child)

    walk(module, False)
    return found


# The noise law.


def _floats(sigmas: Tensor) -> Tensor:
    return sigmas.detach().to("cpu", torch.float32).clone()


def _is_table(sampling: Any) -> bool:
    """Whether a model_sampling is of discrete timesteps, each with a sigma."""
    return isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete)


def _apply(sampling: Any, sigma: Tensor, output: float, x: float) -> float:
    """The clean latent, as a number, where the network says ``output`` to ``x``; in float64."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return float(sampling.calculate_denoised(sigma.cpu().double(), output * one, x * one))


def _law(sampling: Any, sigma: float) -> tuple[float, float, float, float, float]:
    """Signal, noise, and what the answer has of the latent and of the noise, and moves (`NoiseLevel`).

    ``calculate_denoised`` is ``a x + b F`` of the network's answer F, ``noise_scaling`` is ``s z0 + n eps``; so F
    should be ``(1 - a s) / b z0 - a n / b eps``.
    """
    at = torch.tensor([sigma], dtype=torch.float64)
    one, none = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    a, b = _apply(sampling, at, 0.0, 1.0), _apply(sampling, at, 1.0, 0.0)
    signal = float(sampling.noise_scaling(at, none.clone(), one.clone(), False))
    noise = float(sampling.noise_scaling(at, one.clone(), none.clone(), False))
    return signal, noise, (1 - a * signal) / b, -a * noise / b, abs(b)


def _training_sampling(model: Any) -> Any:
    """The model_sampling by which a MODEL was taught noise. Raises `BadModel` where there is none such.

    A patch that only picks some of the checkpoint's timesteps for the sampler (ModelSamplingDiscrete "lcm") leaves the
    checkpoint's own, all of which are trained.
    """
    sampling, own = model.get_model_object("model_sampling"), _own_sampling(model)
    if _is_table(sampling) and not _is_whole(sampling):
        sampling = own if _picks_from(sampling, own) else None
    if not _is_known(sampling) or (_is_flow(sampling) and not _is_flow(own)):
        raise BadModel(
            f"This MODEL ({name_of(model)}) was not taught noise in a way that is known here (epsilon or v-prediction "
            "in discrete timesteps, or a flow), or a node before says so (such as ModelSamplingDiscrete), and cannot "
            "be trained here. Use a checkpoint of the usual kind, and connect it without such a node."
        )
    return sampling


def _is_flow(sampling: Any) -> bool:
    return isinstance(sampling, comfy.model_sampling.CONST)


def _is_known(sampling: Any) -> bool:
    law = comfy.model_sampling
    if isinstance(sampling, law.X0 | law.EDM):
        return False
    return _is_flow(sampling) or (_is_table(sampling) and isinstance(sampling, law.EPS | law.V_PREDICTION))


def _timesteps(sampling: Any) -> Tensor:
    """What the network is told of each of a model_sampling's sigmas."""
    told: Tensor = sampling.timestep(_floats(sampling.sigmas))
    return told.to("cpu", torch.long)


def _is_whole(sampling: Any) -> bool:
    """Whether its sigmas are those of timesteps 0, 1, 2, ...: of all that the network knows."""
    told = _timesteps(sampling)
    return torch.equal(told, torch.arange(len(told)))


def _picks_from(sampling: Any, own: Any) -> bool:
    """Whether a model_sampling is some of the timesteps of another one, with the same noise and the same answer."""
    if not _is_table(own) or _answers(sampling) is not _answers(own) or not _is_whole(own):
        return False
    told = _timesteps(sampling)
    if int(told.max()) >= len(own.sigmas):
        return False
    return torch.allclose(_floats(own.sigmas)[told], _floats(sampling.sigmas), rtol=1e-3)


def _answers(sampling: Any) -> Any:
    """What a network answers with, as ComfyUI's own class of it: the noise or a velocity."""
    kinds = (comfy.model_sampling.V_PREDICTION, comfy.model_sampling.EPS)
    return next((kind for kind in type(sampling).__mro__ if kind in kinds), None)


def _own_sampling(model: Any) -> Any:
    """The model_sampling of the checkpoint itself, beneath every patch on the MODEL."""
    bare = model.clone()
    bare.object_patches.pop("model_sampling", None)
    return bare.get_model_object("model_sampling")


# Names of layers.

_ORDER = (
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "proj_in", "transformer_blocks", "attn1", "attn2",
    "ff", "to_q", "to_k", "to_v", "to_out", "proj_out",
)  # fmt: skip
"""Parts of diffusers' names of a U-Net's layers in the order of its modules: a LoRA's start is drawn in it."""


def _place(name: str) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdigit() else (_ORDER.index(part), "") if part in _ORDER else (len(_ORDER), part)
        for part in name.split(".")
    ]


def _diffusers_names(model: Any) -> dict[str, str]:
    """ComfyUI's names of a U-Net's layers -> diffusers'; nothing for other networks."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for theirs, ours in names.items()
        if theirs.endswith(".weight")
    }
