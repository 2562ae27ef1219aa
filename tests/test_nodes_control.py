"""A ControlNet in the same graph: what acts in attention and Init Latent stack with it (the paper's Mix-of-Show*)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from comfyui import Comfy
from test_nodes_attention import differ, guided, halves, regional, text, unlike

from mudi_core.types import SubjectSet

SHAPES = [(1, 4, 24, 24), (2, 4, 20, 12)]


@pytest.fixture(scope="module")
def mini(comfy: Comfy, mini_weights: None) -> Any:
    return comfy.run("MudiMiniCheckpoint").result


@pytest.fixture(scope="module")
def control(comfy: Comfy) -> Any:
    with torch.inference_mode():
        return import_module("tiny_control_node").TinyControl().load()[0]


def sampled(comfy: Comfy, model: Any, latent: Any, prompts: tuple[Any, Any]) -> torch.Tensor:
    made: torch.Tensor = comfy.run_stock(
        "KSampler", model=model, seed=1, steps=2, cfg=4.0, sampler_name="euler", scheduler="normal",
        positive=prompts[0], negative=prompts[1], latent_image=latent, denoise=1.0,
    )[0]["samples"]  # fmt: skip
    return made


def controlled(comfy: Comfy, control: Any, prompts: tuple[Any, Any], image: torch.Tensor, **more: Any) -> Any:
    given = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **more}
    found = comfy.run_stock(
        "ControlNetApplyAdvanced", positive=prompts[0], negative=prompts[1], control_net=control, image=image, **given
    )
    return found[0], found[1]


def empty(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(shape)}


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_and_control_act_together_and_each_at_strength_0_is_without(
    comfy: Comfy, mini: Any, control: Any, shape: tuple[int, ...]
) -> None:
    height, width = shape[-2:]
    prompts = text(comfy, mini, "a red cat and a blue dog"), text(comfy, mini, "sticker")
    image = torch.rand(1, height * 8, width * 8, 3, generator=torch.Generator().manual_seed(0))
    masks, lines = halves(height, width), "a red cat\na blue dog"
    model = guided(comfy, mini, masks, regional(comfy, mini, lines, masks))
    none = guided(comfy, mini, masks, regional(comfy, mini, lines, masks, strength=0.0), strength=0.0)
    on, off = (controlled(comfy, control, prompts, image, strength=strength) for strength in (1.0, 0.0))
    plain, alone = sampled(comfy, mini[0], empty(shape), prompts), sampled(comfy, mini[0], empty(shape), on)
    patched, both = sampled(comfy, model, empty(shape), prompts), sampled(comfy, model, empty(shape), on)
    assert both.shape == shape and both.isfinite().all()
    assert torch.equal(sampled(comfy, model, empty(shape), off), patched)
    assert unlike(sampled(comfy, none, empty(shape), on), alone) < 1e-4
    least = 0.02 * differ(alone, plain)
    assert least > 0 and min(differ(both, one) for one in (plain, alone, patched)) > least
    never = controlled(comfy, control, prompts, image, start_percent=1.0)
    assert torch.equal(sampled(comfy, model, empty(shape), never), patched), "outside of its share of the steps"


def test_one_layout_feeds_control_regions_and_the_start(
    comfy: Comfy, mini: Any, control: Any, drawn_subjects: SubjectSet
) -> None:
    layout = comfy.run(
        "MudiLayout", subjects=drawn_subjects, width=128, height=96, mode="row", seed=0, relative_sizes="", overlap=0.2
    ).result[0]
    canvas = comfy.run("MudiLayoutParts", layout=layout, shape="figure", grow=0).result[3]
    assert canvas.shape == (1, 96, 128, 3)
    prompts = text(comfy, mini, "a photo of a cat and a cat"), text(comfy, mini, "")
    on = controlled(comfy, control, prompts, canvas)
    start = comfy.run("MudiInitLatent", layout=layout, vae=mini[2], gamma=1.0, batch_size=2, seed=0).result[0]
    model = comfy.run(
        "MudiRegionalPrompts", model=mini[0], clip=mini[1], prompts="a photo of {}", strength=1.0, layout=layout,
        latent=start,
    ).result[0]  # fmt: skip
    made = sampled(comfy, model, start, on)
    assert made.shape == (2, 4, 12, 16) and made.isfinite().all()
    others = {
        "no control": sampled(comfy, model, start, prompts),
        "no regions": sampled(comfy, mini[0], start, on),
        "no start": sampled(comfy, model, empty((2, 4, 12, 16)), on),
    }
    for what, other in others.items():
        assert differ(made, other) > 0.02, what
