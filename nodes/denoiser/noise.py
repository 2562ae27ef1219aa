"""The noise that a MODEL was taught, read from its ``model_sampling``: of discrete timesteps, or of a flow."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ...mudi_core.bases.promise import NoiseLevel
from ..convert import BadModel
from .patches import name_of


def training_sampling(model: Any) -> Any:
    """Return the model_sampling by which a MODEL was taught noise. Raise `BadModel` where there is none.

    A patch that only picks some of the checkpoint's timesteps for the sampler (ModelSamplingDiscrete "lcm") is left
    out: the checkpoint was taught them all.
    """
    sampling, own = model.get_model_object("model_sampling"), _own_sampling(model)
    if _is_table(sampling) and not _is_whole(sampling):
        sampling = own if _picks_from(sampling, own) else None
    if not _is_known(sampling) or (is_flow(sampling) and not is_flow(own)) or not _is_affine(sampling):
        raise BadModel(
            f"This MODEL ({name_of(model)}) was not taught noise in a way that is known here (epsilon or v-prediction "
            "in discrete timesteps, or a flow), or a node before says so (such as ModelSamplingDiscrete), and cannot "
            "be trained here. Use a checkpoint of the usual kind, and connect it without such a node."
        )
    return sampling


def predicts_v(model: Any) -> bool:
    """Return whether a MODEL answers with a velocity. Raise `BadModel` as `training_sampling` does."""
    return isinstance(training_sampling(model), comfy.model_sampling.V_PREDICTION)


def draw_sigma(sampling: Any, generator: torch.Generator, shift: float | None = None) -> Tensor:
    """Return a random sigma, float ``[1]``: any of a table, or of a flow by a logistic normal (SD 3, equation 19).

    ``shift`` moves those of a flow towards noise (SD 3, equation 23); None: as its own sampling does.
    """
    if _is_table(sampling):
        sigmas = sampling.sigmas
        return _floats(sigmas)[torch.randint(0, len(sigmas), (1,), generator=generator)]
    share = torch.sigmoid(torch.randn(1, generator=generator)).item()
    if isinstance(sampling, comfy.model_sampling.COSMOS_RFLOW):  # its sigma is noise / signal
        return torch.tensor([(shift or 1.0) * share / (1 - share)])
    if shift is not None:
        return torch.tensor([shift * share / (1 + (shift - 1) * share)])
    return torch.tensor([float(sampling.percent_to_sigma(1 - share))])


def level_of(sampling: Any, sigmas: Tensor, device: torch.device) -> NoiseLevel:
    """Return what sigmas ``[b]`` mean: what the network sees, and what it should answer."""
    rows = torch.tensor([_law(sampling, sigma) for sigma in sigmas.tolist()], dtype=torch.float32)
    return NoiseLevel(sigmas.to(device), *rows.to(device).unbind(1))


def parts_of_clean(sampling: Any, sigma: Tensor) -> tuple[float, float]:
    """Return the shares ``a`` of the network's input and ``b`` of its answer in the clean latent, at a sigma ``[1]``.

    ``calculate_denoised`` is ``a x + b F`` in every law that is known here.
    """
    return _clean(sampling, sigma, 0.0, 1.0), _clean(sampling, sigma, 1.0, 0.0)


def answering(sampling: Any) -> Any:
    """Return a copy of a model_sampling whose ``calculate_denoised`` is the network's bare answer."""
    kind = type(sampling)
    bare: Any = object.__new__(type(f"Answering{kind.__name__}", (_Answering, kind), {}))
    bare.__dict__.update(sampling.__dict__)
    return bare


class _Answering:
    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return model_output


def _clean(sampling: Any, sigma: Tensor, answer: float, x: float) -> float:
    """The clean latent, as a number, where the network answers ``answer`` to ``x``; in float64."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return float(sampling.calculate_denoised(sigma.cpu().double(), answer * one, x * one))


def _law(sampling: Any, sigma: float) -> tuple[float, float, float, float, float]:
    """Signal, noise, and what the answer has of the latent and of the noise, and moves (`NoiseLevel`).

    ``calculate_denoised`` is ``a x + b F`` of the network's answer F, ``noise_scaling`` is ``s z0 + n eps``; so F
    should be ``(1 - a s) / b z0 - a n / b eps``.
    """
    at = torch.tensor([sigma], dtype=torch.float64)
    one, none = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    a, b = parts_of_clean(sampling, at)
    signal = float(sampling.noise_scaling(at, none.clone(), one.clone(), False))
    noise = float(sampling.noise_scaling(at, one.clone(), none.clone(), False))
    return signal, noise, (1 - a * signal) / b, -a * noise / b, abs(b)


def _is_affine(sampling: Any) -> bool:
    """Whether the clean latent is ``a x + b F`` at a low, a middle and a high level, as `_law` takes it to be."""
    for share in (0.05, 0.5, 0.95):
        sigma = torch.tensor([float(sampling.percent_to_sigma(share))], dtype=torch.float64)
        a, b = parts_of_clean(sampling, sigma)
        for answer, x in ((0.0, 0.0), (2.0, -1.5), (-3.0, 0.5)):
            if not abs(_clean(sampling, sigma, answer, x) - (a * x + b * answer)) <= 1e-4 * (abs(a) + abs(b)):
                return False
    return True


def _floats(sigmas: Tensor) -> Tensor:
    return sigmas.detach().to("cpu", torch.float32).clone()


def _is_table(sampling: Any) -> bool:
    """Whether a model_sampling is of discrete timesteps, each with a sigma."""
    return isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete)


def is_flow(sampling: Any) -> bool:
    """Return whether a model_sampling is of a flow."""
    return isinstance(sampling, comfy.model_sampling.CONST | comfy.model_sampling.COSMOS_RFLOW)


def _is_known(sampling: Any) -> bool:
    law = comfy.model_sampling
    if isinstance(sampling, law.X0 | law.EDM):
        return False
    return is_flow(sampling) or (_is_table(sampling) and isinstance(sampling, law.EPS | law.V_PREDICTION))


def _timesteps(sampling: Any) -> Tensor:
    """The timestep that the network reads at each of a model_sampling's sigmas."""
    timesteps: Tensor = sampling.timestep(_floats(sampling.sigmas))
    return timesteps.to("cpu", torch.long)


def _is_whole(sampling: Any) -> bool:
    """Whether its sigmas are those of timesteps 0, 1, 2, ...: of all that the network knows."""
    timesteps = _timesteps(sampling)
    return torch.equal(timesteps, torch.arange(len(timesteps)))


def _picks_from(sampling: Any, own: Any) -> bool:
    """Whether a model_sampling is some of the timesteps of another one, with the same noise and the same answer."""
    if not _is_table(own) or _kind_of_answer(sampling) is not _kind_of_answer(own) or not _is_whole(own):
        return False
    timesteps = _timesteps(sampling)
    if int(timesteps.max()) >= len(own.sigmas):
        return False
    return torch.allclose(_floats(own.sigmas)[timesteps], _floats(sampling.sigmas), rtol=1e-3)


def _kind_of_answer(sampling: Any) -> Any:
    """What a network answers with, as ComfyUI's own class of it: the noise or a velocity."""
    kinds = (comfy.model_sampling.V_PREDICTION, comfy.model_sampling.EPS)
    return next((kind for kind in type(sampling).__mro__ if kind in kinds), None)


def _own_sampling(model: Any) -> Any:
    """The model_sampling of the checkpoint itself, beneath every patch on the MODEL."""
    bare = model.clone()
    bare.object_patches.pop("model_sampling", None)
    return bare.get_model_object("model_sampling")
