"""Separate LoRAs, Regional Prompts and Layout Guidance in ComfyUI's own sampling: what they are equal to, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfyui import Comfy
from kinds import NEEDED, lora_of_kind
from models import other_model
from safetensors.torch import save_file
from tiny_models import tiny

from mudi_core.attention.beside import layers_beside
from mudi_core.types import MudiError, SubjectSet

PROMPT = "a red cat and a blue dog"
SHAPES = [(1, 4, 24, 24), (2, 4, 24, 32), (3, 4, 20, 12)]


@pytest.fixture(scope="module")
def mini(comfy: Comfy, mini_weights: None) -> Any:
    return comfy.run("MudiMiniCheckpoint").result


def text(comfy: Comfy, mini: Any, words: str) -> Any:
    return comfy.run_stock("CLIPTextEncode", clip=mini[1], text=words)[0]


def sampled(
    comfy: Comfy, mini: Any, model: Any, shape: tuple[int, ...] = SHAPES[0], prompt: Any = PROMPT, **more: Any
) -> torch.Tensor:
    """What a stock sampler makes of noise in two steps."""
    latent, sample = torch.zeros(shape), comfy.core("comfy.sample")
    positive = text(comfy, mini, prompt) if isinstance(prompt, str) else prompt
    settings = {"steps": 2, "cfg": 4.0, **more}
    with torch.inference_mode():
        made: torch.Tensor = sample.sample(
            model, sample.prepare_noise(latent, 1), settings["steps"], settings["cfg"], "euler", "normal", positive,
            text(comfy, mini, "sticker"), latent, denoise=1.0, disable_pbar=True, seed=1,
        )  # fmt: skip
    return made


def halves(height: int = 24, width: int = 24) -> torch.Tensor:
    """A MASK of two places, side by side."""
    masks = torch.zeros(2, height, width)
    masks[0, :, : width // 2] = 1
    masks[1, :, width // 2 :] = 1
    return masks


def layers(comfy: Comfy, model: Any) -> list[str]:
    """The layers of a MODEL's transformer blocks, and those around them, by their names in the network."""
    blocks = comfy.module("attention.blocks").blocks_of(model)
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    found = [
        f"{block}{attention}.{part}" for block in blocks.values() for attention in ("attn1", "attn2") for part in parts
    ]
    return [*found, *dict.fromkeys(layer for block in blocks.values() for layer in layers_beside(block))]


def random_lora(comfy: Comfy, model: Any, seed: int, more: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """A LoRA of every layer of a MODEL's transformer blocks, by names that ComfyUI knows."""
    generator, weights = torch.Generator().manual_seed(seed), model.model.diffusion_model.state_dict()
    state: dict[str, Any] = dict(more or {})
    for layer in layers(comfy, model):
        rows, columns = weights[f"{layer}.weight"].shape[:2]
        state[f"diffusion_model.{layer}.lora_up.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
        state[f"diffusion_model.{layer}.lora_down.weight"] = torch.randn(4, columns, generator=generator) * 0.1
        state[f"diffusion_model.{layer}.alpha"] = torch.tensor(2.0)
    return state


def stacked(comfy: Comfy, model: Any, *states: dict[str, Any], strength: float = 1.0) -> Any:
    for state in states:
        model, _ = comfy.core("comfy.sd").load_lora_for_models(model, None, dict(state), strength, 0)
    return model


@pytest.fixture(scope="module")
def loras(comfy: Comfy, mini: Any) -> Any:
    """Two random LoRAs as files and as MUDI_LORAS."""
    given: tuple[Any, ...] = ()
    for number in (1, 2):
        path = comfy.base / "models" / "loras" / f"random{number}.safetensors"
        save_file(random_lora(comfy, mini[0], number), path)
        more = {"loras": given} if given else {}
        given = comfy.run(
            "MudiLoraSubject", lora_name=path.name, subject="", strength=1.0, text_strength=1.0, **more
        ).result[0]
    return given


def separate(comfy: Comfy, mini: Any, loras: Any, masks: torch.Tensor, model: Any = None, **more: Any) -> Any:
    settings = {"strength": 1.0, "rest": 0.0, "masks": masks, **more}
    return comfy.run("MudiSeparateLoras", model=model or mini[0], clip=mini[1], loras=loras, **settings).result[0]


def regional(comfy: Comfy, mini: Any, prompts: str, masks: torch.Tensor, model: Any = None, **more: Any) -> Any:
    settings = {"strength": 1.0, "masks": masks, **more}
    return comfy.run("MudiRegionalPrompts", model=model or mini[0], clip=mini[1], prompts=prompts, **settings).result[0]


def guided(comfy: Comfy, mini: Any, masks: torch.Tensor, model: Any = None, **more: Any) -> Any:
    settings = {"prompt": PROMPT, "strength": 0.08, "pull": 2.5, "push": 1e8, "words": "red cat\nblue dog", **more}
    return comfy.run("MudiLayoutGuidance", model=model or mini[0], clip=mini[1], masks=masks, **settings).result[0]


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def unlike(a: torch.Tensor, b: torch.Tensor) -> float:
    """The same as a share of the largest value, where that is more than 1: adapters of random weights make latents of
    hundreds, and the last bit of those is no difference."""
    return differ(a, b) / max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_loras_everywhere_are_stacked_loaders_and_nowhere_the_base(
    comfy: Comfy, mini: Any, loras: Any, shape: tuple[int, ...]
) -> None:
    base = sampled(comfy, mini, mini[0], shape)
    both = stacked(comfy, mini[0], *(random_lora(comfy, mini[0], number) for number in (1, 2)))
    wanted = sampled(comfy, mini, both, shape)
    ones = torch.ones(2, *shape[-2:])
    effect = differ(wanted, base)
    got = sampled(comfy, mini, separate(comfy, mini, loras, ones), shape)
    assert effect > 1 and differ(got, wanted) < 1e-3 * effect
    nowhere = separate(comfy, mini, loras, 0 * ones)
    assert torch.equal(sampled(comfy, mini, nowhere, shape), base)
    single = sampled(comfy, mini, stacked(comfy, mini[0], random_lora(comfy, mini[0], 1)), shape)
    only = torch.stack([ones[0], 0 * ones[0]])
    assert unlike(sampled(comfy, mini, separate(comfy, mini, loras, only), shape), single) < 1e-3 * effect
    apart = sampled(comfy, mini, separate(comfy, mini, loras, halves(*shape[-2:])), shape)
    assert min(differ(apart, wanted), differ(apart, base)) > 0.1 * effect


@pytest.mark.parametrize("shape", SHAPES)
def test_one_region_everywhere_is_its_prompt_and_none_the_base(comfy: Comfy, mini: Any, shape: tuple[int, ...]) -> None:
    plain, ones = sampled(comfy, mini, mini[0], shape), torch.ones(1, *shape[-2:])
    mixed = [[text(comfy, mini, "a red cat")[0][0], text(comfy, mini, PROMPT)[0][1]]]  # the picture's pooled vector
    wanted = sampled(comfy, mini, mini[0], shape, mixed)
    whole = sampled(comfy, mini, regional(comfy, mini, "a red cat", ones), shape)
    assert unlike(whole, wanted) < 1e-3 < 0.05 < differ(wanted, plain)
    assert torch.equal(sampled(comfy, mini, regional(comfy, mini, "a red cat", 0 * ones), shape), plain)
    assert torch.equal(sampled(comfy, mini, regional(comfy, mini, "a red cat", ones, strength=0.0), shape), plain)
    both = regional(comfy, mini, "a red cat", halves(*shape[-2:]))
    assert unlike(sampled(comfy, mini, both, shape), wanted) < 1e-3
    apart = sampled(comfy, mini, regional(comfy, mini, "a red cat\na blue dog", halves(*shape[-2:])), shape)
    assert min(differ(apart, wanted), differ(apart, plain)) > 0.05


def test_guidance_of_no_strength_is_the_base_and_any_other_is_not(comfy: Comfy, mini: Any) -> None:
    base = sampled(comfy, mini, mini[0])
    assert torch.equal(sampled(comfy, mini, guided(comfy, mini, halves(), strength=0.0)), base)
    assert torch.equal(sampled(comfy, mini, guided(comfy, mini, 0 * halves())), base)
    one, other = (sampled(comfy, mini, guided(comfy, mini, masks)) for masks in (halves(), halves().flip(0)))
    assert min(differ(one, base), differ(other, base), differ(one, other)) > 0.05


def worn(comfy: Comfy, mini: Any, loras: Any, model: Any, order: str) -> Any:
    for letter in order:
        if letter == "s":
            model = separate(comfy, mini, loras, halves(), model)
        elif letter == "r":
            model = regional(comfy, mini, "a red cat\na blue dog", halves(), model, strength=0.5)
        elif letter == "g":
            model = guided(comfy, mini, halves(), model)
        else:
            model = with_adapter(comfy, model, letter == "x")
    return model


def with_adapter(comfy: Comfy, model: Any, on_block: bool = False) -> Any:
    """The MODEL with another pack's patches: attention to tokens of its own is added in every cross-attention."""
    attention, changed = comfy.core("comfy.ldm.modules.attention"), model.clone()
    more = torch.randn(1, 4, 1, generator=torch.Generator().manual_seed(3))

    def patch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        heads, kinds = extra["n_heads"], extra["cond_or_uncond"]
        assert len(q) % len(kinds) == 0 and len(q) == len(k) == len(v)
        own = torch.cat([more * (0.5 if kind else 1.0) for kind in kinds for _ in range(len(q) // len(kinds))])
        own = own.expand(-1, -1, q.shape[-1]).to(q)
        plain: torch.Tensor = attention.optimized_attention(q, k, v, heads)
        return plain + attention.optimized_attention(q, own, own.flip(1), heads)

    for place, number, index in comfy.module("attention.blocks").blocks_of(model):
        where = (place, number) if on_block else (place, number, index)
        changed.set_model_attn2_replace(patch, *where)
    return changed


def test_all_of_them_stack_in_any_order_with_another_packs_patches(comfy: Comfy, mini: Any, loras: Any) -> None:
    """The order of nodes says nothing; another pack's patch may stand at a layer or at a block, before or after."""
    wanted = sampled(comfy, mini, worn(comfy, mini, loras, mini[0], "asrg"))
    for order in ("sgra", "rasg", "xgrs"):
        got = sampled(comfy, mini, worn(comfy, mini, loras, mini[0], order))
        assert unlike(got, wanted) < 1e-2, order
    for left_out in "asrg":
        fewer = sampled(comfy, mini, worn(comfy, mini, loras, mini[0], "asrg".replace(left_out, "")))
        assert differ(fewer, wanted) > 0.05, left_out


@pytest.mark.parametrize("first", [True, False])
def test_loras_everywhere_beside_another_packs_patch_are_stacked_loaders_beside_it(
    comfy: Comfy, mini: Any, loras: Any, first: bool
) -> None:
    both = stacked(comfy, mini[0], *(random_lora(comfy, mini[0], number) for number in (1, 2)))
    wanted, ones = sampled(comfy, mini, with_adapter(comfy, both)), torch.ones(2, 24, 24)
    assert differ(wanted, sampled(comfy, mini, both)) > 0.05
    if first:
        model = separate(comfy, mini, loras, ones, with_adapter(comfy, mini[0]))
    else:
        model = with_adapter(comfy, separate(comfy, mini, loras, ones))
    assert unlike(sampled(comfy, mini, model), wanted) < 1e-2


def test_models_in_a_graph_share_nothing(comfy: Comfy, mini: Any, loras: Any) -> None:
    base, plain = sampled(comfy, mini, mini[0]), mini[0].clone()
    one = regional(comfy, mini, "a red cat", torch.ones(1, 24, 24), plain)
    before = sampled(comfy, mini, one)
    separate(comfy, mini, loras, halves(), one)
    guided(comfy, mini, halves(), one)
    assert torch.equal(sampled(comfy, mini, one), before)
    assert torch.equal(sampled(comfy, mini, plain), base) and torch.equal(sampled(comfy, mini, mini[0]), base)


def flipped(apply: Callable[..., torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
    """Asks for the prompts in the other order."""
    options = given["c"]["transformer_options"]
    kinds = options["cond_or_uncond"]

    def turned(value: Any) -> Any:
        return torch.cat(value.chunk(len(kinds))[::-1]) if isinstance(value, torch.Tensor) else value

    c = {name: turned(value) for name, value in given["c"].items() if name != "transformer_options"}
    c["transformer_options"] = {**options, "cond_or_uncond": kinds[::-1]}
    made: torch.Tensor = turned(apply(turned(given["input"]), turned(given["timestep"]), **c))
    return made


@pytest.mark.parametrize("way", ["other order", "apart"])
@pytest.mark.parametrize("count", [1, 2])
def test_prompts_are_told_apart_in_every_order_batched_or_apart(
    comfy: Comfy, mini: Any, loras: Any, way: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = worn(comfy, mini, loras, mini[0], "srga")
    shape = (count, 4, 24, 24)
    wanted = sampled(comfy, mini, model, shape)
    calls = []
    needed = mini[0].model.memory_required

    def asked(apply: Callable[..., torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
        calls.append(given["cond_or_uncond"])
        if way == "other order":
            return flipped(apply, given)
        return apply(given["input"], given["timestep"], **given["c"])

    if way == "apart":
        much = 1e18
        monkeypatch.setattr(
            mini[0].model, "memory_required", lambda shape, **more: much if shape[0] > count else needed(shape)
        )
    model.set_model_unet_function_wrapper(asked)
    got = sampled(comfy, mini, model, shape)
    assert [len(kinds) for kinds in calls] == ([1, 1] * 2 if way == "apart" else [2, 2])
    assert unlike(got, wanted) < 1e-2


def test_without_guidance_of_a_negative_prompt_all_work(comfy: Comfy, mini: Any, loras: Any) -> None:
    base = sampled(comfy, mini, mini[0], cfg=1.0)
    for order in ("s", "r", "g", "srga"):
        assert differ(sampled(comfy, mini, worn(comfy, mini, loras, mini[0], order), cfg=1.0), base) > 0.05


def test_start_and_end_are_shares_of_the_steps(comfy: Comfy, mini: Any, loras: Any) -> None:
    base = sampled(comfy, mini, mini[0], steps=4)
    calls: list[str] = []

    def counted(start: float, end: float) -> tuple[int, torch.Tensor]:
        calls.clear()
        model = separate(comfy, mini, loras, halves(), start=start, end=end)
        part = model.get_wrappers("apply_model", "mudi_attention")[0].parts[0].part
        check = part.check
        part.check = lambda size: (calls.append("on"), check(size))
        return len(calls), sampled(comfy, mini, model, steps=4)

    for start, end, steps in ((0.0, 1.0, 4), (0.0, 0.5, 2), (0.5, 1.0, 2), (0.0, 0.0, 0), (1.0, 1.0, 0)):
        _, got = counted(start, end)
        assert len(calls) == steps, (start, end)
        assert torch.equal(got, base) == (steps == 0)


SDXL = {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10, "context_dim": 16,
    "use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 16, "num_head_channels": 32,
}  # fmt: skip
SD = {
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1, "context_dim": 16,
    "use_linear_in_transformer": False, "num_heads": 4, "num_head_channels": -1,
}  # fmt: skip
"""The true blocks in few channels."""


def true_blocks(comfy: Comfy, kind: str) -> Any:
    size = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32}
    way = {"use_spatial_transformer": True, "legacy": False}
    return other_model(comfy, kind, size | way | (SDXL if kind == "SDXL" else SD))


@pytest.mark.parametrize(("kind", "count"), [("SDXL", 70), ("SD15", 16), ("SD20", 16)])
def test_every_layer_of_the_true_blocks_is_called_and_each_part_acts_in_it(
    comfy: Comfy, kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mudi_core.attention.guidance import LayoutGuidance
    from mudi_core.attention.layer import Layer
    from mudi_core.attention.lora import Change, SeparateLoras
    from mudi_core.attention.prompts import RegionalPrompts
    from mudi_core.attention.references.adapter import Adapter
    from mudi_core.attention.references.worn import References
    from mudi_core.attention.regions import Regions

    model, blocks = true_blocks(comfy, kind), comfy.module("attention.blocks")
    found = blocks.blocks_of(model)
    assert len(found) == len(set(found.values())) == count
    assert ("middle", 0, 0) in found and ("middle", 1, 0) not in found
    weights = model.model.diffusion_model.state_dict()
    changes = {
        layer: Change(
            torch.randn(2, weights[f"{layer}.weight"].shape[1]), torch.randn(weights[f"{layer}.weight"].shape[0], 2)
        )
        for layer in layers(comfy, model)
    }
    regions = Regions(halves(2, 3)[None])
    with_part = comfy.module("attention").with_part
    model = with_part(model, SeparateLoras([changes, changes], regions))
    model = with_part(model, RegionalPrompts([torch.randn(1, 12, 16)] * 2, regions))
    words = torch.zeros(2, 12)
    words[0, 3] = words[1, 7] = 1
    model = with_part(model, LayoutGuidance(list(words), regions))
    numbers, widths, context = comfy.module("attention.references").cross_layers(model)
    keys, values = ([torch.randn(wide, context) for wide in widths] for _ in "kv")
    tokens = torch.randn(1, 2, 4, context)
    model = with_part(model, References(Adapter("MS-Diffusion", None, keys, values), tokens, numbers, regions, 1.0))
    called: list[str] = []
    acted: dict[str, list[str]] = {}

    def noted(part: type, method: str) -> None:
        """Note in which layer a part's answer is not nothing."""
        own = getattr(part, method)

        def asked(self: Any, *given: Any) -> Any:
            answer = own(self, *given)
            if answer is not None and len(answer if method == "limited" else [1]):
                acted.setdefault(part.__name__, []).append(called[-1])
            return answer

        monkeypatch.setattr(part, method, asked)

    for part, method in (
        (SeparateLoras, "limited"),
        (RegionalPrompts, "blend"),
        (LayoutGuidance, "bias"),
        (References, "seen"),
    ):
        noted(part, method)
    whole = Layer.attention

    def counted(self: Layer, *given: Any) -> torch.Tensor:
        called.append(self.name)
        answer = whole(self, *given)
        assert answer.shape[1] == self.size[0] * self.size[1]
        return answer

    monkeypatch.setattr(Layer, "attention", counted)
    prompt = [[torch.randn(1, 12, 16), {"pooled_output": torch.randn(1, 4)}]]
    if kind == "SDXL":
        monkeypatch.setattr(model.model, "encode_adm", lambda **given: torch.zeros(1, 16))
    latent = torch.zeros(1, 4, 16, 24)
    with torch.inference_mode():
        comfy.core("comfy.sample").sample(
            model, torch.randn_like(latent), 1, 4.0, "euler", "normal", prompt, prompt, latent, disable_pbar=True,
            seed=0,
        )  # fmt: skip
    assert len(called) == 2 * count and len(set(called)) == 2 * count
    cross = [name for name in called if name.endswith("attn2.")]
    assert acted == dict.fromkeys(("SeparateLoras", "RegionalPrompts", "LayoutGuidance", "References"), cross)
    assert len(cross) == count


def test_other_layers_are_merged_at_a_weight_or_left_out_and_told(comfy: Comfy, mini: Any) -> None:
    weight = mini[0].model.diffusion_model.state_dict()
    generator, more = torch.Generator().manual_seed(5), {}
    for layer in ("time_embed.0", "input_blocks.1.0.in_layers.2"):
        rows, columns = weight[f"{layer}.weight"].shape[:2]
        kernel = (3, 3) if weight[f"{layer}.weight"].ndim == 4 else ()
        more[f"diffusion_model.{layer}.lora_up.weight"] = torch.randn(rows, 2, *[1] * len(kernel), generator=generator)
        more[f"diffusion_model.{layer}.lora_down.weight"] = torch.randn(2, columns, *kernel, generator=generator) * 0.1
    state = random_lora(comfy, mini[0], 1, more)
    path = comfy.base / "models" / "loras" / "wide.safetensors"
    save_file(state, path)
    loras = comfy.run("MudiLoraSubject", lora_name=path.name, subject="", strength=1.0, text_strength=1.0).result[0]
    given = {"model": mini[0], "clip": mini[1], "loras": loras, "strength": 1.0, "masks": torch.ones(1, 24, 24)}
    count = len(layers(comfy, mini[0]))
    with_rest = comfy.run("MudiSeparateLoras", rest=1.0, **given)
    without = comfy.run("MudiSeparateLoras", rest=0.0, **given)
    assert with_rest.ui["text"] == (f"wide.safetensors: {count} layers where mask 1 stands, 2 others merged at 1",)
    assert without.ui["text"] == (f"wide.safetensors: {count} layers where mask 1 stands, 2 others left out",)
    whole = sampled(comfy, mini, stacked(comfy, mini[0], state))
    part = sampled(comfy, mini, stacked(comfy, mini[0], random_lora(comfy, mini[0], 1)))
    assert differ(whole, part) > 0.1
    assert unlike(sampled(comfy, mini, with_rest.result[0]), whole) < 1e-2
    assert unlike(sampled(comfy, mini, without.result[0]), part) < 1e-2


@pytest.mark.parametrize("kind", [kind for kind in NEEDED if kind not in ("LoRA", "more ranks", "LoKr", "LoHa")])
def test_kinds_that_depend_on_the_weight_are_exact_too(comfy: Comfy, mini: Any, kind: str) -> None:
    """GLoRA and DoRA, on a MODEL that has a LoRA already, and beside another of the plain kind."""
    names = [f"diffusion_model.{layer}" for layer in layers(comfy, mini[0])]
    model, ones = stacked(comfy, mini[0], random_lora(comfy, mini[0], 9)), torch.ones(2, 24, 24)
    weights = model.model.state_dict()
    state = lora_of_kind(kind, {name: weights[f"{name}.weight"] for name in names})
    plain, given = random_lora(comfy, mini[0], 2), ()
    for name, some in ((kind, state), ("plain", plain)):
        path = comfy.base / "models" / "loras" / f"beside {name}.safetensors"
        save_file(some, path)
        more = {"loras": given} if given else {}
        given = comfy.run(
            "MudiLoraSubject", lora_name=path.name, subject="", strength=0.7, text_strength=1.0, **more
        ).result[0]
    base, alone = sampled(comfy, mini, model), sampled(comfy, mini, stacked(comfy, model, plain, strength=0.7))
    wanted = sampled(comfy, mini, stacked(comfy, model, state, plain, strength=0.7))
    effect = differ(wanted, alone)
    assert effect > 0.1
    whole = comfy.run("MudiSeparateLoras", model=model, clip=mini[1], loras=given, strength=1.0, rest=0.0, masks=ones)
    assert f"{len(names)} layers where mask 1 stands" in whole.ui["text"][0] and "others" not in whole.ui["text"][0]
    assert unlike(sampled(comfy, mini, whole.result[0]), wanted) < 1e-3 * effect
    assert torch.equal(sampled(comfy, mini, separate(comfy, mini, given, 0 * ones, model)), base)
    second = separate(comfy, mini, given, torch.stack([0 * ones[0], ones[0]]), model)
    assert unlike(sampled(comfy, mini, second), alone) < 1e-3 * effect
    apart = sampled(comfy, mini, separate(comfy, mini, given, halves(), model))
    assert min(differ(apart, wanted), differ(apart, base), differ(apart, alone)) > 0.1 * effect


@pytest.mark.parametrize("kind", ["loha", "lokr", "diff"])
def test_other_kinds_of_loras_are_exact_too(comfy: Comfy, mini: Any, kind: str) -> None:
    weights, generator, state = mini[0].model.diffusion_model.state_dict(), torch.Generator().manual_seed(7), {}
    for layer in layers(comfy, mini[0]):
        rows, columns = weights[f"{layer}.weight"].shape
        shapes = {
            "loha": {
                "hada_w1_a": (rows, 2),
                "hada_w1_b": (2, columns),
                "hada_w2_a": (rows, 2),
                "hada_w2_b": (2, columns),
            },
            "lokr": {"lokr_w1": (4, 4), "lokr_w2_a": (rows // 4, 2), "lokr_w2_b": (2, columns // 4)},
            "diff": {"diff": (rows, columns)},
        }[kind]
        for name, shape in shapes.items():
            state[f"diffusion_model.{layer}.{name}"] = torch.randn(shape, generator=generator) * (
                0.02 if kind == "diff" else 0.2
            )
        if kind != "diff":
            state[f"diffusion_model.{layer}.alpha"] = torch.tensor(1.0)
    path = comfy.base / "models" / "loras" / f"{kind}.safetensors"
    save_file(state, path)
    loras = comfy.run("MudiLoraSubject", lora_name=path.name, subject="", strength=0.7, text_strength=1.0).result[0]
    base = sampled(comfy, mini, mini[0])
    wanted, _ = comfy.core("comfy.sd").load_lora_for_models(mini[0], None, dict(state), 0.7, 0)
    wanted = sampled(comfy, mini, wanted)
    assert differ(wanted, base) > 0.1
    assert unlike(sampled(comfy, mini, separate(comfy, mini, loras, torch.ones(1, 24, 24))), wanted) < 1e-3 * differ(
        wanted, base
    )


def test_a_lora_with_names_that_comfyui_does_not_know_is_read(comfy: Comfy, mini: Any) -> None:
    """As diffusers saves it: ComfyUI's own loader finds nothing in it."""
    known, ours = comfy.module("denoiser.names").diffusers_names(mini[0]), random_lora(comfy, mini[0], 1)
    path, state = comfy.base / "models" / "loras" / "diffusers.safetensors", {}
    for layer in layers(comfy, mini[0]):
        for theirs, name in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
            values = ours[f"diffusion_model.{layer}.{name}.weight"]
            state[f"unet.{known[layer]}.{theirs}.weight"] = values * (0.5 if theirs == "lora_B" else 1.0)
    save_file(state, path)
    blocks = comfy.module("attention.blocks").blocks_of(mini[0]).values()
    read = comfy.module("attention.loras").take_apart(mini[0], mini[1], path, 1.0, blocks)
    assert len(read.changes) == len(layers(comfy, mini[0])) and not read.rest and not read.text
    layer, x = layers(comfy, mini[0])[0], torch.randn(1, 2, state[next(iter(state))].shape[1])
    wanted = x @ ours[f"diffusion_model.{layer}.lora_down.weight"].T @ ours[f"diffusion_model.{layer}.lora_up.weight"].T
    assert torch.allclose(read.changes[layer](x), wanted * 0.5, atol=1e-5)


def test_the_text_part_is_on_the_clip(comfy: Comfy, mini: Any) -> None:
    name = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    rows, columns = mini[1].cond_stage_model.state_dict()[f"{name}.weight"].shape
    key = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    text_part = {f"{key}.lora_up.weight": torch.randn(rows, 2), f"{key}.lora_down.weight": torch.randn(2, columns)}
    path = comfy.base / "models" / "loras" / "words.safetensors"
    save_file(random_lora(comfy, mini[0], 1, text_part), path)
    loras = comfy.run("MudiLoraSubject", lora_name=path.name, subject="", strength=1.0, text_strength=0.5).result[0]
    output = comfy.run(
        "MudiSeparateLoras", model=mini[0], clip=mini[1], loras=loras, strength=1.0, rest=0.0, masks=torch.ones(1, 8, 8)
    )
    ((strength, *_),) = output.result[1].patcher.patches[f"{name}.weight"]
    assert strength == 0.5 and not mini[1].patcher.patches
    assert f"{len(layers(comfy, mini[0]))} layers where mask 1 stands, 1 of text" in output.ui["text"][0]


def test_with_the_prompt_a_lora_changes_its_own_words_alone(comfy: Comfy, mini: Any, loras: Any) -> None:
    masks = torch.ones(2, 24, 24)
    every = sampled(comfy, mini, separate(comfy, mini, loras, masks))
    named = tuple(type(one)(one.path, words, 1.0, 1.0) for one, words in zip(loras, ("red cat", "dog"), strict=True))
    some = sampled(comfy, mini, separate(comfy, mini, named, masks, prompt=PROMPT))
    assert differ(some, every) > 0.1
    tokens = comfy.module("attention").word_tokens(mini[1], PROMPT, ["red cat"])
    assert tokens.shape == (77,) and tokens.nonzero().flatten().tolist() == [2, 3]
    assert comfy.module("attention").word_tokens(mini[1], f"(({PROMPT}:1.2), dog)", ["x", "dog"]).sum() == 2


@pytest.fixture(scope="module")
def layout(comfy: Comfy, drawn_subjects: SubjectSet) -> Any:
    return comfy.run(
        "MudiLayout",
        subjects=drawn_subjects,
        width=192,
        height=192,
        mode="random",
        seed=3,
        relative_sizes="",
        overlap=0.0,
    ).result[0]


def test_a_layouts_figures_are_the_places_and_its_subjects_the_words(comfy: Comfy, mini: Any, layout: Any) -> None:
    output = comfy.run(
        "MudiRegionalPrompts", model=mini[0], clip=mini[1], prompts="a photo of {}", strength=1.0, layout=layout
    )
    assert output.ui["text"] == ("a photo of olis cat\na photo of hta cat",)
    masks = output.result[1]
    assert masks.shape == (2, 192, 192) and float(masks.sum(0).max()) <= 1 + 1e-6
    assert all(0.02 < float(mask.mean()) < 0.6 for mask in masks)
    given = {"model": mini[0], "clip": mini[1], "strength": 0.08, "pull": 2.5, "push": 1e8, "layout": layout}
    prompt = "a photo of olis cat and hta cat"
    guided = comfy.run("MudiLayoutGuidance", prompt=prompt, **given)
    assert guided.ui["text"][0].startswith("olis cat: ")
    with pytest.raises(MudiError, match="does not name 'hta cat' or 'hta' or"):
        comfy.run("MudiLayoutGuidance", prompt="a photo of olis", **given)


def test_each_picture_of_init_latents_batch_has_its_own_places(
    comfy: Comfy, mini: Any, loras: Any, layout: Any
) -> None:
    latent = comfy.run("MudiInitLatent", layout=layout, vae=mini[2], gamma=1.0, batch_size=2, seed=8).result[0]
    both = separate(comfy, mini, loras, None, layout=layout, latent=latent)
    first = separate(comfy, mini, loras, None, layout=layout)
    shape = (2, 4, 24, 24)
    got, alike = sampled(comfy, mini, both, shape), sampled(comfy, mini, first, shape)
    assert unlike(got[0], alike[0]) < 1e-2 and differ(got[1], alike[1]) > 0.1
    places = comfy.module("attention").places(layout, None, latent, "figures", 0.1).masks
    own = sampled(comfy, mini, separate(comfy, mini, loras, places[1]), shape)
    assert unlike(got[1], own[1]) < 1e-2


def test_a_lora_finds_its_subject_by_name_by_its_file_or_by_order(
    comfy: Comfy, mini: Any, loras: Any, layout: Any
) -> None:
    module, subject = comfy.module("separate_loras"), type(loras[0])
    found = comfy.module("attention").places(layout, None, None, "boxes", 0.0)
    first, second = (one.path for one in loras)
    assert module.subjects_of(
        (subject(first, "hta cat", 1.0, 1.0), subject(second, "olis", 1.0, 1.0)), found.names()
    ) == [1, 0]
    assert module.subjects_of(loras, found.names()) == [0, 1]
    told = comfy.base / "models" / "loras" / "told.safetensors"
    about = {
        "mudi_tokens": '["hta"]',
        "mudi_class_nouns": '["cat"]',
        "mudi_base": "mini",
        "mudi_config": '{"resolution": 192}',
    }
    save_file(random_lora(comfy, mini[0], 1), told, about)
    assert module.subjects_of((subject(told, "", 1.0, 1.0),), found.names()) == [1]
    (line,) = module._twice((subject(told, "", 1.0, 1.0), loras[1]), [1, 1])
    assert line.startswith("told.safetensors and random2.safetensors are of one subject. If each is of another, say in")
    assert module._twice((loras[0], loras[0]), [0, 0]) == ["random1.safetensors is there 2 times for one subject."]
    assert module._twice(loras, [0, 1]) == []
    with pytest.raises(MudiError, match="several subjects have this name. There are: olis cat, hta cat"):
        module.subjects_of((subject(first, "cat", 1.0, 1.0),), found.names())
    with pytest.raises(MudiError, match="'rex', and no subjects have this name"):
        module.subjects_of((subject(first, "rex", 1.0, 1.0),), found.names())
    with pytest.raises(MudiError, match="3 LoRAs for 2 subjects: random2.safetensors has none"):
        module.subjects_of((*loras, loras[1]), found.names())
    again = comfy.run(
        "MudiSeparateLoras", model=mini[0], clip=mini[1], loras=(subject(first, "hta", 1.0, 1.0),) * 2, strength=1.0,
        rest=0.0, layout=layout,
    )  # fmt: skip
    assert "random1.safetensors is there 2 times for one subject" in again.ui["text"][0]


def control_net(comfy: Comfy, mini: Any) -> Any:
    """ComfyUI's own ControlNet of random weights, of the embedded U-Net's blocks."""
    config = dict(mini[0].model.model_config.unet_config)
    for name in ("transformer_depth_output", "out_channels", "dtype", "device", "disable_unet_model_creation"):
        config.pop(name, None)
    operations = comfy.core("comfy.ops").disable_weight_init
    network = comfy.core("comfy.cldm.cldm").ControlNet(
        hint_channels=3, operations=operations, dtype=torch.float32, device=torch.device("cpu"), **config
    )
    generator = torch.Generator().manual_seed(11)
    state = network.state_dict()
    network.load_state_dict({name: torch.randn(one.shape, generator=generator) * 0.1 for name, one in state.items()})
    made = comfy.core("comfy.controlnet").ControlNet(network, load_device=torch.device("cpu"))
    return made.set_cond_hint(torch.rand(1, 3, 192, 192, generator=generator), 0.3)


@pytest.mark.parametrize("real", [True, False])
def test_places_work_beside_a_control(comfy: Comfy, mini: Any, loras: Any, real: bool) -> None:
    """A control model adds to the network's answers, and is not patched itself, though its layers have the same names.

    All parts of no strength leave its pictures as they are, and LoRAs everywhere are those of Load LoRA beside it.
    """

    class Shift(comfy.core("comfy.controlnet").ControlBase):  # type: ignore[misc]
        def get_control(self, x: torch.Tensor, *more: Any) -> Any:
            return {"input": [], "middle": [torch.full((1, 192, 1, 1), 3.0)], "output": []}

        def copy(self) -> Any:
            return self

    control = control_net(comfy, mini) if real else Shift()
    steered = [[words, {**more, "control": control}] for words, more in text(comfy, mini, PROMPT)]
    both = stacked(comfy, mini[0], *(random_lora(comfy, mini[0], number) for number in (1, 2)))
    wanted = sampled(comfy, mini, both, prompt=steered)
    assert wanted.isfinite().all() and differ(wanted, sampled(comfy, mini, both)) > 0.05
    got = sampled(comfy, mini, separate(comfy, mini, loras, torch.ones(2, 24, 24)), prompt=steered)
    assert unlike(got, wanted) < 1e-2
    plain = sampled(comfy, mini, mini[0], prompt=steered)
    nothing = regional(comfy, mini, "a red cat", halves(), strength=0.0)
    nothing = guided(comfy, mini, halves(), nothing, strength=0.0)
    assert unlike(sampled(comfy, mini, nothing, prompt=steered), plain) < 1e-4
    worn_all = sampled(comfy, mini, worn(comfy, mini, loras, mini[0], "srg"), prompt=steered)
    assert (
        min(differ(worn_all, plain), differ(worn_all, sampled(comfy, mini, worn(comfy, mini, loras, mini[0], "srg"))))
        > 0.05
    )


def test_what_has_no_places_is_refused(comfy: Comfy, mini: Any, loras: Any, layout: Any) -> None:
    flux = tiny(comfy, "flux1")
    for make in (
        lambda: separate(comfy, mini, loras, halves(), flux),
        lambda: guided(comfy, mini, halves(), flux),
    ):
        with pytest.raises(MudiError, match=r"This MODEL \(Flux\) has no cross-attention as SD and SDXL have"):
            make()
    with pytest.raises(MudiError, match="Nothing says where the subjects stand"):
        regional(comfy, mini, "a", None)
    with pytest.raises(MudiError, match="3 lines for 2 places"):
        regional(comfy, mini, "a\nb\nc", halves())
    with pytest.raises(MudiError, match="With masks alone nobody has a name"):
        regional(comfy, mini, "a {}", halves())
    with pytest.raises(MudiError, match="1 masks for 2 subjects"):
        regional(comfy, mini, "a", torch.ones(1, 8, 8), layout=layout)
    with pytest.raises(MudiError, match="not made by Init Latent"):
        regional(comfy, mini, "a", None, layout=layout, latent={"samples": torch.zeros(1, 4, 24, 24)})
    with pytest.raises(MudiError, match="2 places and words for 0"):
        guided(comfy, mini, halves(), words="")
    with pytest.raises(MudiError, match="With masks alone nobody knows which words"):
        separate(comfy, mini, loras, halves(), prompt=PROMPT)
    with pytest.raises(MudiError, match="No LoRA is chosen"):
        comfy.run("MudiLoraSubject", lora_name="none", subject="", strength=1.0, text_strength=1.0)


def test_a_lora_of_another_base_and_a_broken_one_are_told(comfy: Comfy, mini: Any, loras: Any) -> None:
    path = comfy.base / "models" / "loras" / "other.safetensors"
    half = {"transformer.x.lora_A.weight": torch.zeros(2, 2)}
    for state, words in (
        (
            half | {"transformer.x.lora_B.weight": torch.zeros(2, 2)},
            r"has nothing for this MODEL \(MiniSDXL\) and CLIP",
        ),
        (half, "file is incomplete"),
        ({"x": torch.zeros(1)}, "other.safetensors is no LoRA that can be read here"),
    ):
        save_file(state, path)
        with pytest.raises(MudiError, match=words):
            separate(comfy, mini, (type(loras[0])(path, "", 1.0, 1.0),), halves())
    path.write_bytes(b"no tensors")
    with pytest.raises(MudiError, match="other.safetensors cannot be read"):
        separate(comfy, mini, (type(loras[0])(path, "", 1.0, 1.0),), halves())
    path.unlink()


def test_strength_0_is_the_base_and_a_lora_of_other_layers_is_told(comfy: Comfy, mini: Any, loras: Any) -> None:
    base = sampled(comfy, mini, mini[0])
    kind = type(loras[0])
    none = tuple(kind(one.path, "", 0.0, 0.0) for one in loras)
    for made in (separate(comfy, mini, none, halves()), separate(comfy, mini, loras, halves(), strength=0.0)):
        assert made is mini[0] and torch.equal(sampled(comfy, mini, made), base)
    weights = mini[0].model.diffusion_model.state_dict()
    key = next(key for key in weights if key.endswith("emb_layers.1.weight")).removesuffix(".weight")
    rows, columns = weights[f"{key}.weight"].shape
    path = loras[0].path.with_name("emb.safetensors")
    state = {"lora_up.weight": torch.ones(rows, 1), "lora_down.weight": torch.ones(1, columns)}
    save_file({f"diffusion_model.{key}.{part}": value for part, value in state.items()}, path)
    made = comfy.run(
        "MudiSeparateLoras", model=mini[0], clip=mini[1], loras=(kind(path, "", 1.0, 1.0),), strength=1.0, rest=0.0,
        masks=halves(),
    )  # fmt: skip
    assert "emb.safetensors: 0 layers where mask 1 stands, 1 others left out" in made.ui["text"][0]
    assert torch.equal(sampled(comfy, mini, made.result[0]), base)


def with_places(comfy: Comfy, mini: Any, loras: Any, kind: str, masks: Any, **more: Any) -> Any:
    """The MODEL with the node of this name."""
    if kind == "Separate LoRAs":
        return separate(comfy, mini, loras, masks, **more)
    if kind == "Regional Prompts":
        return regional(comfy, mini, "a red cat\na blue dog", masks, **more)
    return guided(comfy, mini, masks, **more)


@pytest.mark.parametrize("kind", ["Separate LoRAs", "Regional Prompts", "Layout Guidance"])
def test_places_of_another_aspect_than_the_latent_are_told(
    comfy: Comfy, mini: Any, loras: Any, kind: str, layout: Any
) -> None:
    sentence = r"a picture {} : 1 \(width to height\), and a part of {} : 1 is sampled. Give Layout"
    wide = with_places(comfy, mini, loras, kind, halves(12, 24))
    with pytest.raises(MudiError, match=sentence.format("2.00", "1.00")):
        sampled(comfy, mini, wide)
    assert sampled(comfy, mini, wide, (1, 4, 12, 24)).isfinite().all()
    placed = with_places(comfy, mini, loras, kind, None, layout=layout)
    with pytest.raises(MudiError, match=sentence.format("1.00", "0.60")):
        sampled(comfy, mini, placed, SHAPES[2])
    assert sampled(comfy, mini, placed).isfinite().all()
    # Masks of another size and of nearly the latent's aspect are of the same picture; a part that is off asks nothing.
    near = with_places(comfy, mini, loras, kind, halves(100, 103))
    assert sampled(comfy, mini, near).isfinite().all()
    off = with_places(comfy, mini, loras, kind, halves(12, 24), start=1.0, end=1.0)
    assert torch.equal(sampled(comfy, mini, off), sampled(comfy, mini, mini[0]))


def test_a_subject_without_a_place_is_as_if_it_were_not_there(comfy: Comfy, mini: Any) -> None:
    first = halves()[:1]
    some = torch.cat([first, 0 * first])
    for alone, more in (
        (regional(comfy, mini, "a red cat", first), regional(comfy, mini, "a red cat\na blue dog", some)),
        (guided(comfy, mini, first, words="red cat"), guided(comfy, mini, some)),
    ):
        assert torch.equal(sampled(comfy, mini, more), sampled(comfy, mini, alone))


def test_moved_places_and_prompts_of_another_model_are_told(comfy: Comfy, mini: Any, loras: Any) -> None:
    merging = separate(comfy, mini, loras, halves())
    merging.set_model_attn1_patch(lambda n, context, value, extra: (n[:, ::2], context, value))
    with pytest.raises(MudiError, match="Another node has changed the places .*72 for 12x12.* ToMe and HyperTile"):
        sampled(comfy, mini, merging)
    with pytest.raises(MudiError, match="have 12 channels, this model reads 256"):
        prompts = comfy.core("mudi_core.attention.prompts").RegionalPrompts
        places = comfy.core("mudi_core.attention.regions").Regions(halves()[None])
        part = prompts([torch.zeros(1, 77, 12)] * 2, places)
        sampled(comfy, mini, comfy.module("attention").with_part(mini[0], part))
