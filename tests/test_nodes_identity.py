"""Identity: the same content gives the same hash in every process, any other content another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy
from test_nodes_attention import guided, halves, regional, sampled, text


@pytest.fixture(scope="module")
def mini(comfy: Comfy, mini_weights: None) -> Any:
    return comfy.run("MudiMiniCheckpoint").result


def identity(comfy: Comfy, *values: Any) -> str:
    found: str = comfy.module("identity").identity(*values)
    return found


def test_a_model_is_known_by_all_that_nodes_have_put_on_it(comfy: Comfy, mini: Any) -> None:
    model, _, vae = mini
    weight = "diffusion_model.out.2.weight"
    other = torch.ones_like(model.model.diffusion_model.out[2].weight)

    def patched(strength: float) -> Any:
        changed = model.clone()
        changed.add_patches({weight: ("diff", (other,))}, strength)
        return changed

    def hooked(factor: float) -> Any:
        changed = model.clone()
        changed.set_model_attn2_output_patch(lambda n, extra: n * factor)
        return changed

    def every() -> list[Any]:
        regions = (regional(comfy, mini, "red cat\nblue dog", halves(), strength=one) for one in (1.0, 0.5))
        return [
            model,
            patched(0.5),
            patched(1.0),
            hooked(0.5),
            hooked(1.0),
            *regions,
            guided(comfy, mini, halves()),
            vae,
        ]

    first, again = every(), every()
    found = [identity(comfy, one) for one in first]
    assert found == [identity(comfy, one) for one in again] and len(set(found)) == len(found)
    for one in (first[2], first[5], first[7]):
        sampled(comfy, mini, one)
    assert found == [identity(comfy, one) for one in first], "sampling changes nothing"


def test_values_are_known_by_their_content(comfy: Comfy, mini: Any) -> None:
    said = [text(comfy, mini, words) for words in ("a cat", "a dog", "a cat")]
    found = [identity(comfy, one) for one in said]
    assert found[0] == found[2] != found[1]
    loop: list[Any] = [1]
    loop.append(loop)
    values = [
        1,
        1.0,
        True,
        "1",
        None,
        [1],
        (1,),
        {"a": 1},
        {"a": 2},
        {1},
        [[1], 1],
        [[1, 1]],
        torch.ones(1),
        torch.ones(1, 1),
    ]
    values += [torch.ones(1, dtype=torch.bfloat16), loop, print, comfy, int, float]
    every = [identity(comfy, one) for one in values]
    assert len(set(every)) == len(every)
    assert identity(comfy, {"a": 1, "b": [torch.ones(2)]}) == identity(comfy, {"b": [torch.ones(2)], "a": 1})
