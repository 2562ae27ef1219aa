"""Reference Adapter in ComfyUI's own sampling: what it is equal to, what it takes, and what it refuses."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from comfyui import Comfy
from safetensors.torch import save_file
from test_nodes_attention import (
    differ,
    flipped,
    guided,
    halves,
    layout,
    loras,
    mini,
    regional,
    sampled,
    separate,
    text,
    unlike,
    with_adapter,
)
from test_references import nested
from tiny_models import tiny
from torch import Tensor, nn

from mudi_core.attention.references.given import boxes_of, cut_out
from mudi_core.attention.references.projector import ImageProjector, Resampler, Sizes
from mudi_core.toy.draw import Rendered
from mudi_core.toy.world import DEV_PAIRS, photo
from mudi_core.types import MudiError, SubjectSet

__all__ = ["layout", "loras", "mini"]
CONTEXT, PHRASE, SIDE = 256, 96, 28
SEEN = {True: 48, False: 24}
"""Channels of the tiny image encoder: of its patches, and of its one vector."""
BOTH = ("places and words", "by place (MIP's code)")
KINDS = ("MS-Diffusion", "IP-Adapter", "IP-Adapter plus", "MIP-Adapter")


@pytest.fixture(scope="module")
def vision(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ComfyUI's own CLIP_VISION in few channels."""
    config = {
        "hidden_size": SEEN[True], "projection_dim": SEEN[False], "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 14, "intermediate_size": 64, "hidden_act": "gelu", "num_channels": 3,
        "layer_norm_eps": 1e-5, "model_type": "clip_vision_model",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("vision") / "config.json"
    path.write_text(json.dumps(config))
    model = comfy.core("comfy.clip_vision").ClipVisionModel(str(path))
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in model.get_sd().items()}
    ids = {name: value for name, value in model.get_sd().items() if name.endswith("position_ids")}
    model.load_sd(state | ids)
    return model


def adapter_state(comfy: Comfy, mini: Any, kind: str) -> dict[str, Tensor]:
    """An adapter of random weights for the embedded model, as its official program names them."""
    torch.manual_seed(KINDS.index(kind))
    made: nn.Module = ImageProjector(SEEN[False], 4, CONTEXT)
    if kind == "MS-Diffusion":
        made = Resampler(Sizes(SEEN[True], CONTEXT, 5, 64, 64, 1, PHRASE))
    elif kind == "IP-Adapter plus":
        made = Resampler(Sizes(SEEN[True], CONTEXT, 5, 64, 64, 1))
    state = {f"image_proj.{name}": value for name, value in made.state_dict().items()}
    prefix = "ms_adapter" if kind == "MS-Diffusion" else "ip_adapter"
    _, widths, context = comfy.module("attention.references").cross_layers(mini[0])
    assert widths == [128, 192, 192, 192, 128, 128, 192] and context == CONTEXT
    for number, width in enumerate(widths):
        for name in ("to_k_ip", "to_v_ip"):
            state[f"{prefix}.{2 * number + 1}.{name}.weight"] = torch.randn(width, CONTEXT) * 0.3
        if kind == "MIP-Adapter":
            state[f"{prefix}.{2 * number + 1}.text_to_weight.weight"] = torch.randn(1, width)
    return state


@pytest.fixture(scope="module")
def files(comfy: Comfy, mini: Any) -> dict[str, str]:
    """The names of a file of each kind, in the folders that they belong in."""
    names = {}
    for kind in KINDS:
        state, own = adapter_state(comfy, mini, kind), kind == "MS-Diffusion"
        folder = comfy.base / "models" / ("ms_diffusion" if own else "ipadapter")
        folder.mkdir(parents=True, exist_ok=True)
        names[kind] = f"{kind.lower().replace(' ', '-')}.{'bin' if own else 'safetensors'}"
        torch.save(nested(state), folder / names[kind]) if own else save_file(state, folder / names[kind])
    return names


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 40, 30, 3, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def refer(comfy: Comfy, mini: Any, files: dict[str, str], vision: Any) -> Any:
    """Run the node with masks side by side, whatever else is given."""

    def run(kind: str = "MS-Diffusion", model: Any = None, **more: Any) -> Any:
        settings = {"strength": 1.0, "where": "places", "photos": 1, "clip_vision": vision, **more}
        if "layout" not in settings:
            settings = {"masks": halves(), "references": pictures(), "names": "cat\ndog", **settings}
        adapter = settings.pop("adapter", files[kind])
        return comfy.run("MudiReferenceAdapter", model=model or mini[0], clip=mini[1], adapter=adapter, **settings)

    return run


def test_files_of_both_folders_can_be_chosen(comfy: Comfy, files: dict[str, str]) -> None:
    (comfy.base / "models" / "ipadapter" / "readme.txt").write_text("no adapter")
    choices = comfy.module("host").adapters()
    kinds = [choice.endswith(".safetensors") for choice in choices[:-1]]
    assert kinds == sorted(kinds, reverse=True) and len(set(kinds)) == 2
    assert set(files.values()) < set(choices) and choices[-1].startswith("embedded") and "readme.txt" not in choices


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_acts_and_none_of_no_strength_or_place(comfy: Comfy, mini: Any, refer: Any, kind: str) -> None:
    base = sampled(comfy, mini, mini[0])
    output = refer(kind)
    assert output.ui["text"][0].startswith(
        f"{kind} at {0.6 if kind == 'MS-Diffusion' else 0.75 if 'MIP' in kind else 1:.2f}"
    )
    got = sampled(comfy, mini, output.result[0])
    assert differ(got, base) > 0.05
    for shape in ((2, 4, 24, 32), (1, 4, 20, 12)):
        masks = halves(*shape[-2:])
        one = sampled(comfy, mini, refer(kind, masks=masks).result[0], shape)
        assert one.isfinite().all() and differ(one, sampled(comfy, mini, mini[0], shape)) > 0.05
    for more in ({"strength": 0.0}, {"masks": 0 * halves()}, {"start": 0.0, "end": 0.0}):
        assert torch.equal(sampled(comfy, mini, refer(kind, **more).result[0]), base)
    assert differ(sampled(comfy, mini, refer(kind, strength=2.0).result[0]), got) > 0.05


@pytest.mark.parametrize("kind", ["IP-Adapter", "IP-Adapter plus"])
def test_swapped_places_are_swapped_references(comfy: Comfy, mini: Any, refer: Any, kind: str) -> None:
    swapped = sampled(comfy, mini, refer(kind, masks=halves().flip(0)).result[0])
    others = sampled(comfy, mini, refer(kind, references=pictures().flip(0)).result[0])
    assert unlike(swapped, others) < 1e-3
    assert differ(swapped, sampled(comfy, mini, refer(kind).result[0])) > 0.05


def test_grounding_tells_phrase_and_box(comfy: Comfy, mini: Any, refer: Any) -> None:
    first = sampled(comfy, mini, refer().result[0])
    assert differ(sampled(comfy, mini, refer(names="cat\nbear").result[0]), first) > 1e-3
    reading, masks = comfy.module("attention.references"), torch.zeros(3, 10, 20)
    masks[0, 2:5, 4:16], masks[1, :, :] = 1, 1
    boxes = boxes_of(masks)
    assert torch.allclose(boxes, torch.tensor([[0.2, 0.2, 0.8, 0.5], [0, 0, 1, 1], [0, 0, 0, 0]]))
    phrase = reading.phrase(mini[1], "dog")
    assert phrase.shape == (1, PHRASE) and differ(phrase, reading.phrase(mini[1], "cat")) > 1e-3
    before = text(comfy, mini, "a dog")[0][1]["pooled_output"]
    reading.phrase(mini[1], "dog")
    assert torch.equal(text(comfy, mini, "a dog")[0][1]["pooled_output"], before)


def test_the_phrase_is_clip_ls_own_before_its_projection(comfy: Comfy, mini: Any) -> None:
    from mudi_core.bases import embedded as family
    from mudi_core.vocabulary import tokenizer

    encoder, _ = family.load_text_encoders()
    ids = tokenizer()("dog", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = encoder(ids).pooler_output
    assert unlike(comfy.module("attention.references").phrase(mini[1], "dog"), wanted) < 1e-4


@pytest.mark.parametrize("kind", ["IP-Adapter", "MIP-Adapter", "MS-Diffusion"])
def test_words_say_where_without_places(comfy: Comfy, mini: Any, refer: Any, kind: str) -> None:
    base = sampled(comfy, mini, mini[0])
    made = {
        (where, merge): sampled(comfy, mini, refer(kind, where=where, merge=merge).result[0])
        for where in ("places", "words", "places and words")
        for merge in ("by place (MIP's code)", "by subject (MIP's paper)")
    }
    assert all(differ(one, base) > 0.05 for one in made.values())
    # Where each place has one subject, its words are all that counts there.
    alike = [one for (where, merge), one in made.items() if where == "places" or (where, merge) == BOTH]
    assert len(alike) == 3 and all(unlike(one, alike[0]) < 1e-3 for one in alike)
    others = [one for (where, merge), one in made.items() if where != "places" and (where, merge) != BOTH]
    assert all(differ(a, b) > 1e-3 for n, a in enumerate(others) for b in others[:n] + alike[:1])


def test_it_stacks_with_every_other_node_in_any_order(comfy: Comfy, mini: Any, loras: Any, refer: Any) -> None:
    def worn(order: str) -> Tensor:
        model = mini[0]
        for letter in order:
            if letter == "f":
                model = refer("MIP-Adapter", model, where="places and words").result[0]
            elif letter == "s":
                model = separate(comfy, mini, loras, halves(), model)
            elif letter == "r":
                model = regional(comfy, mini, "a red cat\na blue dog", halves(), model, strength=0.5)
            else:
                model = guided(comfy, mini, halves(), model)
        return sampled(comfy, mini, model)

    wanted = worn("fsrg")
    for order in ("gsrf", "rfgs"):
        assert unlike(worn(order), wanted) < 1e-2, order
    assert differ(worn("srg"), wanted) > 0.05


def test_prompts_are_told_apart_in_every_order_without_a_negative_one_and_beside_another_packs_patch(
    comfy: Comfy, mini: Any, refer: Any
) -> None:
    model = refer("MS-Diffusion").result[0]
    wanted, turned = sampled(comfy, mini, model), model.clone()
    turned.set_model_unet_function_wrapper(flipped)
    assert unlike(sampled(comfy, mini, turned), wanted) < 1e-2
    assert differ(sampled(comfy, mini, model, cfg=1.0), sampled(comfy, mini, mini[0], cfg=1.0)) > 0.05
    both = sampled(comfy, mini, with_adapter(comfy, model))
    other_way = sampled(comfy, mini, refer("MS-Diffusion", with_adapter(comfy, mini[0])).result[0])
    assert unlike(both, other_way) < 1e-2
    assert differ(both, wanted) > 0.05 and differ(both, sampled(comfy, mini, with_adapter(comfy, mini[0]))) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_asked_for_apart_are_the_same_and_without_a_negative_one_every_kind_acts(
    comfy: Comfy, mini: Any, refer: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures, so that a row is not a prompt."""
    model, shape = refer(kind).result[0], (2, 4, 24, 24)
    wanted = sampled(comfy, mini, model, shape)
    alone = differ(sampled(comfy, mini, model, shape, cfg=1.0), sampled(comfy, mini, mini[0], shape, cfg=1.0))
    assert alone > 0.05
    calls = []
    needed = mini[0].model.memory_required
    much = 1e18
    monkeypatch.setattr(
        mini[0].model, "memory_required", lambda shape, **more: much if shape[0] > 2 else needed(shape, **more)
    )

    def asked(apply: Any, given: dict[str, Any]) -> Tensor:
        calls.append(len(given["cond_or_uncond"]))
        answer: Tensor = apply(given["input"], given["timestep"], **given["c"])
        return answer

    apart = model.clone()
    apart.set_model_unet_function_wrapper(asked)
    assert unlike(sampled(comfy, mini, apart, shape), wanted) < 1e-2
    assert calls == [1] * 4


@pytest.mark.parametrize("where", ["places", "words", "places and words"])
def test_places_of_another_aspect_than_the_latent_are_told(
    comfy: Comfy, mini: Any, refer: Any, layout: Any, where: str
) -> None:
    sentence = r"a picture {} : 1 \(width to height\), and a part of {} : 1 is sampled. Give Layout"
    wide = refer("IP-Adapter", where=where, masks=halves(12, 24)).result[0]
    with pytest.raises(MudiError, match=sentence.format("2.00", "1.00")):
        sampled(comfy, mini, wide)
    assert sampled(comfy, mini, wide, (1, 4, 12, 24)).isfinite().all()
    with pytest.raises(MudiError, match=sentence.format("1.00", "0.60")):
        sampled(comfy, mini, refer("IP-Adapter", where=where, layout=layout).result[0], (1, 4, 20, 12))


@pytest.mark.parametrize("where", ["places", "words", "places and words"])
def test_a_reference_without_a_place_is_as_if_it_were_not_there(
    comfy: Comfy, mini: Any, refer: Any, where: str
) -> None:
    first = halves()[:1]
    alone = refer("IP-Adapter", where=where, masks=first, references=pictures(1), names="cat").result[0]
    both = refer("IP-Adapter", where=where, masks=torch.cat([first, 0 * first]), references=pictures()).result[0]
    assert differ(sampled(comfy, mini, alone), sampled(comfy, mini, mini[0])) > 0.05
    assert unlike(sampled(comfy, mini, both), sampled(comfy, mini, alone)) < 1e-3


def test_a_pickle_that_wants_to_run_code_is_refused_by_the_node(comfy: Comfy, refer: Any, tmp_path: Any) -> None:
    class Wish:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"image_proj": Wish()}, comfy.base / "models" / "ms_diffusion" / "wish.bin")
    with pytest.raises(MudiError, match="wish.bin"):
        refer(adapter="wish.bin")
    assert not (tmp_path / "written").exists()


def test_keys_and_values_are_projected_once_a_run_and_then_forgotten(comfy: Comfy, mini: Any, refer: Any) -> None:
    model = refer("MS-Diffusion").result[0]
    part = model.get_wrappers("apply_model", "mudi_attention")[0].parts[0].part
    seen: list[int] = []
    project = part._projected

    def counted(*given: Any) -> Any:
        found = project(*given)
        seen.append(len(part._ready))
        return found

    part._projected = counted
    sampled(comfy, mini, model, steps=4)
    assert len(seen) == 7 * 4 and max(seen) == 7 and not part._ready


def test_a_layouts_subjects_are_the_references(comfy: Comfy, mini: Any, refer: Any, layout: Any) -> None:
    output = refer(layout=layout)
    assert output.ui["text"][0].endswith("pictures of each: 1, 1")
    several = refer(layout=layout, photos=2)
    assert several.ui["text"][0].endswith("pictures of each: 2, 2")
    shape = (2, 4, 24, 24)
    first, mean = (sampled(comfy, mini, one.result[0], shape) for one in (output, several))
    assert differ(first, mean) > 1e-3
    latent = comfy.run("MudiInitLatent", layout=layout, vae=mini[2], gamma=1.0, batch_size=2, seed=8).result[0]
    own = sampled(comfy, mini, refer(layout=layout, latent=latent).result[0], shape)
    assert unlike(own[0], first[0]) < 1e-2 and differ(own[1], first[1]) > 0.05


def test_the_layouts_subjects_are_cut_out_on_white(drawn_subjects: SubjectSet) -> None:
    subject = drawn_subjects.subjects[0]
    (shown,) = cut_out(subject, 1)
    assert shown[0, 0].tolist() == [1.0, 1.0, 1.0] and float(shown.mean()) < 0.99
    assert shown.shape[0] < subject.photos[0].image.shape[0]


def test_the_embedded_adapter_shows_each_character_in_its_box(comfy: Comfy, mini: Any, refer: Any) -> None:
    """A green and a pink bear that it has never seen, and a prompt that says nothing of their colours."""
    photos = [photo(one.character, random.Random(one.token), 192) for one in DEV_PAIRS[1]]
    references = torch.stack([torch.from_numpy(_on_white(one)).float() / 255 for one in photos])
    masks = torch.zeros(2, 24, 24)
    masks[0, 6:22, 1:11], masks[1, 6:22, 13:23] = 1, 1

    def greens(places: Tensor) -> list[float]:
        """How much more green than red there is in the left box and in the right one."""
        given = {"masks": places, "references": references, "names": "bear\nbear"}
        model = refer(adapter="embedded (drawn toys only)", clip_vision=None, **given).result[0]
        prompt = "a photo of a bear and a bear, simple background"
        made = sampled(comfy, mini, model, (2, 4, 24, 24), prompt, steps=12, cfg=5.0)
        with torch.inference_mode():
            pictures = mini[2].decode(made)
        shown = [pictures[:, 48:176, left : left + 80] for left in (8, 104)]
        return [float((one[..., 1] - one[..., 0]).mean()) for one in shown]

    left, right = greens(masks)
    assert left > right + 0.1
    left, right = greens(masks.flip(0))
    assert right > left + 0.1


def _on_white(drawn: Rendered) -> Any:
    return np.where(drawn.masks[0][..., None] > 0, drawn.image, 255)


def test_more_references_than_taught_are_told(refer: Any) -> None:
    masks = torch.zeros(5, 24, 24)
    for number in range(5):
        masks[number, :, 4 * number : 4 * number + 4] = 1
    output = refer(masks=masks, references=pictures(5), names="cat\n" * 5)
    assert "taught up to 4 references at once; these are 5" in output.ui["text"][0]


def test_what_does_not_fit_is_refused_in_a_sentence(
    comfy: Comfy, mini: Any, refer: Any, files: dict[str, str], vision: Any, layout: Any
) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        (r"This MODEL \(Flux\) has no cross-attention", {"model": tiny(comfy, "flux1")}),
        ("There are 3 references for 2 places", {"references": pictures(3)}),
        ("With masks alone nobody knows the subjects", {"references": None}),
        ("Nothing says where the subjects stand", {"masks": None}),
        ("2 places and names for 0", {"names": ""}),
        ("2 places and names for 3", {"names": "a\nb\nc"}),
        ("needs an image encoder. Connect Load CLIP Vision", {"clip_vision": None}),
        ("reads 48 channels, and this CLIP_VISION gives 24", {"clip_vision": Narrow()}),
        ("There is no adapter 'gone.bin' in models/ms_diffusion or models/ipadapter", {"adapter": "gone.bin"}),
    ]
    for sentence, more in cases:
        with pytest.raises(MudiError, match=sentence):
            refer("MS-Diffusion", **more)
    folder = comfy.base / "models" / "ipadapter"
    state = adapter_state(comfy, mini, "IP-Adapter")
    del state["ip_adapter.13.to_k_ip.weight"], state["ip_adapter.13.to_v_ip.weight"]
    save_file(state, folder / "other.safetensors")
    with pytest.raises(MudiError, match="is for a model with 6 cross-attentions that reads 256"):
        refer(adapter="other.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "none.safetensors")
    with pytest.raises(MudiError, match="is no reference adapter"):
        refer(adapter="none.safetensors")


class Narrow:
    """A CLIP_VISION of another kind."""

    def encode_image(self, image: Tensor) -> Any:
        self.penultimate_hidden_states = torch.zeros(1, 5, SEEN[False])
        return self
