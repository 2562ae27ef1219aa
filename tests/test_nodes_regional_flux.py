"""Regional Prompts on FLUX, FLUX.2 and Chroma: what it is equal to, by tiny members with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from test_nodes_attention import flipped
from tiny_models import TINY, known, tiny

from mudi_core.bases import embedded
from mudi_core.types import MudiError

UNFINISHED = Path(__file__).parent.parent / "workshop" / "weights"
"""Where the mini FLUX is kept until its training is finished."""
PROMPT, ONE, OTHER = "a cat and a dog", "a red cat", "a blue dog"
NOISE = 3e-5
"""What order of sums alone may change."""


class Words:
    """A CLIP of random words."""

    def __init__(self, channels: int = 24) -> None:
        self.channels, self.cond_stage_model = channels, None

    def tokenize(self, words: str) -> str:
        return words

    def encode_from_tokens(self, words: str, return_pooled: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(sum(map(ord, words)))
        return torch.randn(1, 12, self.channels, generator=generator), torch.randn(1, 16, generator=generator)


@pytest.fixture(scope="module", params=["flux1", "chroma", "flux2"])
def family(request: pytest.FixtureRequest, comfy: Comfy) -> str:
    name: str = request.param
    if not known(comfy, name):
        pytest.skip(f"this ComfyUI has no {TINY[name].kind}")
    return name


@pytest.fixture(scope="module")
def model(comfy: Comfy, family: str) -> Any:
    return tiny(comfy, family)


@pytest.fixture(scope="module", params=["flux1", "chroma"])
def small(request: pytest.FixtureRequest, comfy: Comfy) -> Any:
    """One whose prompts are not made 512 tokens long."""
    return tiny(comfy, request.param)


@pytest.fixture
def flux(comfy: Comfy) -> Any:
    return tiny(comfy, "flux1")


def text(words: str, whole: str = PROMPT, **more: Any) -> Any:
    """CONDITIONING of some words, with the pooled vector of others."""
    return [[Words().encode_from_tokens(words)[0], {"pooled_output": Words().encode_from_tokens(whole)[1], **more}]]


def sampled(comfy: Comfy, model: Any, positive: Any = None, count: int = 1, **more: Any) -> torch.Tensor:
    """What a stock sampler makes of noise in a step."""
    config, settings = model.model.model_config, {"steps": 1, "cfg": 4.0, "size": (8, 12), **more}
    scale = 2 // model.model.diffusion_model.patch_size  # FLUX.2 has one token for each cell
    latent = torch.zeros(count, config.latent_format.latent_channels, *(side * 2 // scale for side in settings["size"]))
    sample = comfy.core("comfy.sample")
    with torch.inference_mode():
        made: torch.Tensor = sample.sample(
            model, sample.prepare_noise(latent, 1), settings["steps"], settings["cfg"], "euler", "simple",
            positive or text(PROMPT), text("sticker", "sticker"), latent, denoise=1.0, disable_pbar=True, seed=1,
        )  # fmt: skip
    return made


def halves(height: int = 16, width: int = 24) -> torch.Tensor:
    masks = torch.zeros(2, height, width)
    masks[0, :, : width // 2] = 1
    masks[1, :, width // 2 :] = 1
    return masks


def regional(comfy: Comfy, model: Any, prompts: str = f"{ONE}\n{OTHER}", **more: Any) -> Any:
    settings = {"strength": 1.0, "masks": halves(), "clip": Words(), **more}
    return comfy.run("MudiRegionalPrompts", model=model, prompts=prompts, **settings).result[0]


def unlike(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_no_strength_no_place_and_no_time_are_the_base(comfy: Comfy, model: Any) -> None:
    base = sampled(comfy, model)
    for nothing in ({"strength": 0.0}, {"masks": 0 * halves()}, {"end": 0.0}, {"start": 1.0}):
        assert torch.equal(sampled(comfy, regional(comfy, model, **nothing)), base), nothing
    assert unlike(sampled(comfy, regional(comfy, model)), base) > 0.02
    assert torch.equal(sampled(comfy, model), base)


@pytest.mark.parametrize("size", [(8, 12), (9, 5)])
def test_one_region_everywhere_is_its_prompt(comfy: Comfy, model: Any, size: tuple[int, int]) -> None:
    """With the picture's own pooled vector; and with regions of one prompt on both sides it is the same."""
    base, wanted = (sampled(comfy, model, text(words), size=size) for words in (PROMPT, ONE))
    ones = torch.ones(1, *size)
    got = sampled(comfy, regional(comfy, model, ONE, masks=ones), size=size)
    both = sampled(comfy, regional(comfy, model, ONE, masks=halves(*size)), size=size)
    assert unlike(got, wanted) < NOISE < 0.02 < unlike(base, wanted)
    assert unlike(both, wanted) > NOISE  # each side's text sees its own side
    some = sampled(comfy, regional(comfy, model, ONE, masks=ones, strength=0.5), size=size)
    assert min(unlike(some, wanted), unlike(some, base)) > 0.005


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_pictures_own_prompt_everywhere_is_the_base(comfy: Comfy, model: Any, strength: float) -> None:
    own = regional(comfy, model, PROMPT, masks=torch.ones(1, 16, 24), strength=strength)
    assert unlike(sampled(comfy, own), sampled(comfy, model)) < NOISE


def test_the_order_of_regions_says_nothing_and_their_places_do(comfy: Comfy, model: Any) -> None:
    one = sampled(comfy, regional(comfy, model, f"{ONE}\n{OTHER}"))
    alike = sampled(comfy, regional(comfy, model, f"{OTHER}\n{ONE}", masks=halves().flip(0)))
    turned = sampled(comfy, regional(comfy, model, f"{OTHER}\n{ONE}"))
    assert unlike(alike, one) < NOISE < 0.02 < unlike(turned, one)


def answers(comfy: Comfy, model: Any) -> list[torch.Tensor]:
    """What the network says to the positive and to the negative prompt in the first step."""
    found: list[torch.Tensor] = []

    def mixed(given: dict[str, Any]) -> torch.Tensor:
        found.extend([given["cond"].clone(), given["uncond"].clone()])
        return given["cond"]

    changed = model.clone()
    changed.set_model_sampler_cfg_function(mixed)
    sampled(comfy, changed)
    return found[:2]


def test_only_the_positive_prompt_has_regions(comfy: Comfy, model: Any) -> None:
    positive, negative = answers(comfy, model)
    changed, kept = answers(comfy, regional(comfy, model))
    assert unlike(kept, negative) < NOISE < 0.02 < unlike(changed, positive)


@pytest.mark.parametrize("way", ["other order", "apart"])
@pytest.mark.parametrize("count", [1, 2])
def test_prompts_are_told_apart_in_every_order_batched_or_apart(
    comfy: Comfy, small: Any, way: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    worn = regional(comfy, small)
    wanted = sampled(comfy, worn, count=count)
    calls, needed = [], small.model.memory_required

    def asked(apply: Callable[..., torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
        calls.append(given["cond_or_uncond"])
        return flipped(apply, given) if way == "other order" else apply(given["input"], given["timestep"], **given["c"])

    if way == "apart":
        monkeypatch.setattr(
            small.model, "memory_required", lambda shape, **more: 1e18 if shape[0] > count else needed(shape)
        )
    worn.set_model_unet_function_wrapper(asked)
    assert unlike(sampled(comfy, worn, count=count), wanted) < NOISE
    assert [len(kinds) for kinds in calls] == ([1, 1] if way == "apart" else [2])


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_each_picture_of_a_batch_may_have_its_own_places(comfy: Comfy, model: Any, cfg: float) -> None:
    from mudi_core.attention.prompts import RegionalPrompts
    from mudi_core.attention.regions import Regions

    texts = [Words().encode_from_tokens(words)[0] for words in (ONE, OTHER)]
    wear = comfy.module("attention").with_prompts

    def made(*places: torch.Tensor) -> torch.Tensor:
        part = RegionalPrompts(texts, Regions(torch.stack(places)))
        return sampled(comfy, wear(model, part), count=2, cfg=cfg)

    both, first, second = made(halves(), halves().flip(0)), made(halves()), made(halves().flip(0))
    assert unlike(both[0], first[0]) < NOISE and unlike(both[1], second[1]) < NOISE
    assert unlike(first[1], second[1]) > 0.005


def test_two_nodes_add_up(comfy: Comfy, model: Any) -> None:
    """In the place of the second stands what the first made of the picture's prompt: shares of shares."""
    left, right = halves()[:1], halves()[1:]
    apart = regional(comfy, regional(comfy, model, ONE, masks=left), OTHER, masks=right)
    assert unlike(sampled(comfy, apart), sampled(comfy, regional(comfy, model))) < NOISE
    whole = torch.ones(1, 16, 24)
    over = regional(comfy, regional(comfy, model, ONE, masks=whole), OTHER, masks=whole)
    assert unlike(sampled(comfy, over), sampled(comfy, model, text(OTHER))) < NOISE
    part = regional(comfy, model, OTHER, masks=right, strength=0.5)
    before = sampled(comfy, part)
    regional(comfy, part, ONE, masks=left)
    assert torch.equal(sampled(comfy, part), before)


def test_start_and_end_are_shares_of_the_steps(comfy: Comfy, small: Any) -> None:
    calls: list[int] = []
    for start, end, steps in ((0.0, 1.0, 4), (0.0, 0.5, 2), (0.5, 1.0, 2), (0.0, 0.0, 0), (1.0, 1.0, 0)):
        calls.clear()
        worn = regional(comfy, small, start=start, end=end)
        part = worn.get_wrappers("apply_model", "mudi_regions")[0].parts[0].part
        check = part.check
        part.check = lambda size, check=check: (calls.append(1), check(size))
        sampled(comfy, worn, steps=4)
        assert abs(len(calls) - steps) <= (steps == 2), (start, end)  # a flow's steps are not even in noise


@pytest.mark.parametrize("kind", ["flux1", "flux2"])
def test_references_have_the_prompts_too(comfy: Comfy, kind: str) -> None:
    """FLUX Kontext: a region everywhere is its prompt and the own prompt the base, also beside pictures to edit."""
    if not known(comfy, kind):
        pytest.skip(f"this ComfyUI has no {TINY[kind].kind}")
    flux = tiny(comfy, kind)
    latents = [torch.randn(1, TINY[kind].latent[0], 6, 9, generator=torch.Generator().manual_seed(3))]
    base, wanted = (sampled(comfy, flux, text(words, reference_latents=latents)) for words in (PROMPT, ONE))
    assert unlike(base, sampled(comfy, flux)) > 0.002
    positive, ones = text(PROMPT, reference_latents=latents), torch.ones(1, 16, 24)
    assert unlike(sampled(comfy, regional(comfy, flux, ONE, masks=ones), positive), wanted) < NOISE
    assert unlike(sampled(comfy, regional(comfy, flux, PROMPT, masks=ones, strength=0.4), positive), base) < NOISE
    assert unlike(sampled(comfy, regional(comfy, flux), positive), base) > 0.01


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_a_mask_of_the_conditioning_is_kept(comfy: Comfy, flux: Any, kind: torch.dtype) -> None:
    """As a style model makes one: here it hides the last four tokens of the prompt."""
    sees = torch.ones(1, 13, 13, dtype=torch.bool)
    sees[:, :, 8:12] = False
    sees[:, 8:12, 8:12] = True
    given = sees if kind == torch.bool else torch.zeros(sees.shape).masked_fill(~sees, -1e4)
    size = (8, 12)
    if kind == torch.bool:  # ComfyUI enlarges no such mask
        rows = torch.cat([torch.arange(12), torch.full((size[0] * size[1],), 12)])
        given = sees[:, rows][:, :, rows]
    sizes = size if kind == torch.bool else (1, 1)
    masked = text(PROMPT, attention_mask=given, attention_mask_img_shape=sizes)
    short = [[masked[0][0][:, :8], text(PROMPT)[0][1]]]
    for strength in (1.0, 0.5):
        worn = regional(comfy, flux, strength=strength)
        assert unlike(sampled(comfy, worn, masked, cfg=1.0), sampled(comfy, worn, short, cfg=1.0)) < NOISE
    assert unlike(sampled(comfy, worn, masked, cfg=1.0), sampled(comfy, worn, cfg=1.0)) > 0.001


def test_what_does_not_fit_is_refused(comfy: Comfy, flux: Any) -> None:
    with pytest.raises(MudiError, match="have 16 channels, this model reads 24. Connect the CLIP"):
        sampled(comfy, regional(comfy, flux, clip=Words(16)))
    with pytest.raises(MudiError, match="The regions are of a picture 3.00 : 1"):
        sampled(comfy, regional(comfy, flux, masks=halves(8, 24)))

    class Masked:
        """Another node gives a mask of its own."""

        def __call__(self, executor: Any, *given: Any, **named: Any) -> Any:
            return executor(*given, **named, attention_mask=torch.zeros(1, 7, 7))

    other = flux.clone()
    other.add_wrapper("apply_model", Masked())
    with pytest.raises(MudiError, match="an attention mask of 7x7 for 108 tokens of prompt and picture"):
        sampled(comfy, regional(comfy, other))

    def more(given: dict[str, Any]) -> dict[str, Any]:
        front = {name: torch.cat([given[name][:, :2], given[name]], 1) for name in ("txt", "txt_ids")}
        return {**given, **front}

    other = flux.clone()
    other.set_model_patch(more, "post_input")
    with pytest.raises(
        MudiError, match=r"changed the tokens of this model \(38 of text and 96 of pictures for 36 and 96"
    ):
        sampled(comfy, regional(comfy, other))


@pytest.mark.parametrize("kind", ["sd3", "qwen_image", "lumina2", "z_image", "krea2", "anima"])
def test_families_without_such_a_mask_are_refused_by_what_works(comfy: Comfy, kind: str) -> None:
    if not known(comfy, kind):
        pytest.skip(f"this ComfyUI has no {TINY[kind].kind}")
    with pytest.raises(
        MudiError, match=rf"This MODEL \({TINY[kind].kind}\) has no attention that could be told .* Init"
    ):
        regional(comfy, tiny(comfy, kind))


def test_where_the_prompts_length_moves_the_picture_it_is_refused(comfy: Comfy, flux: Any) -> None:
    """LongCat-Image has FLUX's network, and places the picture behind the prompt."""
    if not hasattr(comfy.core("comfy.model_base"), "LongCatImage"):
        pytest.skip("this ComfyUI has no LongCatImage")
    flux.model.__class__ = comfy.core("comfy.model_base").LongCatImage
    with pytest.raises(MudiError, match="has no attention that could be told"):
        regional(comfy, flux)


def test_the_others_are_for_sdxl_and_sd_alone(comfy: Comfy, model: Any) -> None:
    given = {"model": regional(comfy, model), "clip": Words(), "masks": halves()}
    with pytest.raises(MudiError, match="has no cross-attention as SD and SDXL have"):
        comfy.run("MudiLayoutGuidance", prompt=PROMPT, words="cat\ndog", strength=0.1, pull=1.0, push=1.0, **given)


@pytest.fixture
def mini_flux(comfy: Comfy, mini_weights: None, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the mini FLUX, as far as it is trained."""
    if not (UNFINISHED / "flux.safetensors").is_file():
        pytest.skip("the mini FLUX is not part of this checkout")
    models, load = comfy.module("mini_models"), embedded.load_flux
    monkeypatch.setattr(models.family, "load_flux", lambda: load(UNFINISHED))
    return models.load_flux(), models.load_clip(), models.load_vae()


def test_the_mini_flux_draws_each_where_its_region_is(comfy: Comfy, mini_flux: tuple[Any, Any, Any]) -> None:
    """Of all red pixels most are on the side of the red cat."""
    model, clip, vae = mini_flux
    place, sample = ", simple background", comfy.core("comfy.sample")
    both, nothing = (
        comfy.run_stock("CLIPTextEncode", clip=clip, text=words)[0] for words in (f"a photo of {PROMPT}{place}", "")
    )
    latent = torch.zeros(1, 4, 24, 24)
    shares = []
    for lines in ((ONE, OTHER), (OTHER, ONE)):
        prompts = "\n".join(f"a photo of {line}{place}" for line in lines)
        worn = regional(comfy, model, prompts, masks=halves(24, 24), clip=clip)
        with torch.inference_mode():
            made = sample.sample(
                worn, sample.prepare_noise(latent, 1), 8, 4.0, "euler", "simple", both, nothing, latent, denoise=1.0,
                disable_pbar=True, seed=1,
            )  # fmt: skip
        picture = comfy.run_stock("VAEDecode", vae=vae, samples={"samples": made})[0][0]
        red = (picture[..., 0] - picture[..., 1:].amax(-1) > 0.25).float()
        assert red.mean() > 0.05
        shares.append(float(red[:, :96].sum() / red.sum()))
    assert shares[0] > 0.8 and shares[1] < 0.2, shares
