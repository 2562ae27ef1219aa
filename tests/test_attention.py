"""What is worn in attention, as functions of q, k, v and regions: against other people's code and by hand.

`attention_parity.json` holds what the official modules answered to the same random tensors: Cones 2
(ali-vilab/Cones-V2 447c194, `attention_control.py` with `layout_guidance.py`'s function) and Mix-of-Show
(TencentARC/Mix-of-Show 51270fd, ``region_rewrite`` of `pipeline_regionally_t2iadapter.py`).
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mudi_core.attention import attend as by_hand
from mudi_core.attention.attend import Added, Local, attend
from mudi_core.attention.call import Call
from mudi_core.attention.guidance import LayoutGuidance
from mudi_core.attention.layer import Displaced, Layer, Part
from mudi_core.attention.lora import Change, SeparateLoras
from mudi_core.attention.prompts import RegionalPrompts
from mudi_core.attention.regions import OtherShape, Regions
from mudi_core.stage.cutouts import cut_outs
from mudi_core.stage.regions import BadShape, regions
from mudi_core.types import Layout, Placement, SubjectSet

OFFICIAL = json.loads((Path(__file__).parent / "attention_parity.json").read_text(encoding="utf-8"))
HEADS, WIDE = 2, 8


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def plain(q: Tensor, k: Tensor, v: Tensor, rows: tuple[int, ...] = ()) -> Tensor:
    """Attention as torch has it."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def a_call(positive: int, others: int = 0, pictures: int = 1, sigma: float = 1.0) -> Call:
    kinds = [1] * others + [0] * positive
    return Call.of(kinds, torch.full((pictures * len(kinds),), sigma))


def through(parts: list[Part], call: Call, size: tuple[int, int], n: Tensor, text: Tensor, name: str = "") -> Tensor:
    """The answer of a layer whose projections change nothing."""
    layer = Layer(parts, call, name, True, size)
    q, k, v = layer.before(n, text, text)
    return layer.after(layer.attention(q, k, v, HEADS, plain))


@pytest.mark.parametrize("settings", sorted(OFFICIAL["cones"]))
def test_layout_guidance_is_cones_2s(settings: str) -> None:
    pull, push, strength, sigma = map(float, settings.split("/"))
    generator = torch.Generator().manual_seed(0)
    q, k, v = random(generator, 1, 12, WIDE), random(generator, 1, 77, WIDE), random(generator, 1, 77, WIDE)
    inside, words = torch.zeros(1, 2, 4, 3), torch.zeros(2, 77)
    inside[0, 0, :, 0], inside[0, 1, 1:3, 1:], words[0, 2:4], words[1, 6] = 1, 1, 1, 1
    part = LayoutGuidance(list(words), Regions(inside), strength, pull, push)
    layer = Layer([part], a_call(1, sigma=sigma), "", True, (4, 3))
    layer.before(q, k, v)
    got = layer.attention(q, k, v, HEADS, plain)
    wanted = torch.tensor(OFFICIAL["cones"][settings]).reshape(got.shape)
    assert (got - wanted).abs().max() < 1e-5 < 0.05 < (plain(q, k, v) - wanted).abs().max()


def test_regional_prompts_are_mix_of_shows() -> None:
    generator, boxes = torch.Generator().manual_seed(1), ([0.1, 0.0, 0.8, 0.6], [0.25, 0.4, 1.0, 1.0])
    q, k, v = random(generator, 2, 48, WIDE), random(generator, 2, 77, WIDE), random(generator, 2, 77, WIDE)
    inside, masks = [], torch.zeros(1, 2, 8, 6)
    for index, (y0, x0, y1, x1) in enumerate(boxes):
        keys, values = random(generator, 2, 77, WIDE), random(generator, 2, 77, WIDE)
        inside.append(plain(q, keys, values))
        masks[0, index, math.ceil(y0 * 8) : math.floor(y1 * 8), math.ceil(x0 * 6) : math.floor(x1 * 6)] = 1
    part = RegionalPrompts([torch.zeros(1, 77, WIDE)] * 2, Regions(masks))
    got = part.blend(plain(q, k, v), inside, a_call(1, pictures=2), (8, 6))
    wanted = torch.tensor(OFFICIAL["mix_of_show"]).reshape(got.shape)
    assert (got - wanted).abs().max() < 1e-5 < 0.05 < (plain(q, k, v) - wanted).abs().max()


def test_changes_of_keys_and_values_are_exact_at_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each position had keys and values of its own; also where scores are made some rows at a time."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = random(generator, 3, 5, WIDE), random(generator, 3, 7, WIDE), random(generator, 3, 7, WIDE)

    def whole(ranks: int) -> Added:
        return Added(torch.rand(3, 5, ranks, generator=generator), random(generator, 3, 7, WIDE))

    def low(ranks: int) -> Added:
        weight = torch.rand(3, 5, ranks, generator=generator)
        return Added(weight, random(generator, 3, 7, ranks), random(generator, ranks, WIDE))

    changes = [
        Local(whole(1), whole(1)), Local(values=whole(1)), Local(keys=whole(1)), Local(low(3), low(2)), Local(low(1)),
    ]  # fmt: skip
    wanted = torch.zeros_like(q)
    for place in range(5):
        own = [k.clone(), v.clone()]
        for one in changes:
            for which, more in enumerate((one.keys, one.values)):
                if more is not None and more.up is None:
                    own[which] += more.weight[:, place, None] * more.inside
                elif more is not None:
                    own[which] += (more.weight[:, place, None] * more.inside) @ more.up
        wanted[:, place] = plain(q[:, place, None], *own)[:, 0]
    assert (attend(q, k, v, HEADS, changes) - wanted).abs().max() < 1e-5
    monkeypatch.setattr(by_hand, "_MOST", 1)
    assert (attend(q, k, v, HEADS, changes) - wanted).abs().max() < 1e-5
    assert (attend(q, k, v, HEADS) - plain(q, k, v)).abs().max() < 1e-6


def test_rows_are_told_by_their_prompts_in_every_order() -> None:
    sigma = torch.ones(6)
    assert Call.of([1, 0], sigma).positive == (3, 4, 5) and Call.of([1, 0], sigma).others == (0, 1, 2)
    assert Call.of([0, 1, 2], sigma).positive == (0, 1) and Call.of([0, 1, 2], sigma).pictures == (0, 1) * 3
    assert Call.of([0], sigma).others == () and Call.of([1], sigma).positive == ()
    alone = Call.of([1, 0], torch.arange(4.0)).only_positive()
    assert alone.positive == alone.pictures == (0, 1) and alone.sigma.tolist() == [2.0, 3.0]


def parts_and_inputs() -> tuple[list[Part], Tensor, Tensor]:
    """One of each kind, for two pictures with places of their own; queries of 4 x 3 positions, and a text."""
    generator = torch.Generator().manual_seed(3)
    masks = (torch.rand(2, 2, 8, 6, generator=generator) > 0.5).float()
    loras = [
        {layer: Change(random(generator, 2, WIDE) * 0.3, random(generator, WIDE, 2) * 0.3) for layer in layers}
        for layers in (("to_q", "to_k", "to_v", "to_out.0"), ("to_k", "to_out.0"))
    ]
    words = torch.zeros(2, 7)
    words[0, 1], words[1, 3] = 1, 1
    places = Regions(masks)
    parts: list[Part] = [
        SeparateLoras(loras, places, [None, words[1]]),
        RegionalPrompts([random(generator, 1, 7, WIDE), random(generator, 1, 5, WIDE)], places, 0.7),
        LayoutGuidance(list(words), places),
    ]
    return parts, random(generator, 4, 12, WIDE), random(generator, 4, 7, WIDE)


def test_parts_stack_in_any_order() -> None:
    parts, n, text = parts_and_inputs()
    call = Call.of([1, 0], torch.full((4,), 3.0))
    wanted = through(parts, call, (4, 3), n, text)
    for order in itertools.permutations(parts):
        assert (through(list(order), call, (4, 3), n, text) - wanted).abs().max() < 1e-5
    for left_out in range(3):
        fewer = [part for index, part in enumerate(parts) if index != left_out]
        assert (through(fewer, call, (4, 3), n, text) - wanted).abs().max() > 1e-2


def test_a_picture_does_not_depend_on_its_batch_or_on_the_other_prompts_in_the_call() -> None:
    parts, n, text = parts_and_inputs()
    whole = through(parts, Call.of([1, 0], torch.full((4,), 3.0)), (4, 3), n, text)
    turned = [2, 3, 0, 1]
    other = through(parts, Call.of([0, 1], torch.full((4,), 3.0)), (4, 3), n[turned], text[turned])
    assert (other[turned] - whole).abs().max() < 1e-5
    for kind, rows in ((1, [0, 1]), (0, [2, 3])):
        alone = through(parts, Call.of([kind], torch.full((2,), 3.0)), (4, 3), n[rows], text[rows])
        assert (alone - whole[rows]).abs().max() < 1e-5
    first = through(parts, Call.of([1, 0], torch.full((2,), 3.0)), (4, 3), n[[0, 2]], text[[0, 2]])
    assert (first - whole[[0, 2]]).abs().max() < 1e-5


def test_other_prompts_see_no_guidance_and_no_region() -> None:
    parts, n, text = parts_and_inputs()
    negative = Call.of([1], torch.full((4,), 3.0))
    assert torch.equal(through(parts[1:], negative, (4, 3), n, text), plain(n, text, text))


def test_what_another_has_put_there_is_called_and_its_addition_kept() -> None:
    parts, n, text = parts_and_inputs()
    call = Call.of([1, 0], torch.full((4,), 3.0))
    seen: list[tuple[int, ...]] = []

    def theirs(q: Tensor, k: Tensor, v: Tensor, rows: tuple[int, ...]) -> Tensor:
        seen.append(rows)
        assert len(q) == len(k) == len(v) == len(rows)
        return plain(q, k, v) + 5.0

    layer = Layer(parts[1:], call, "", True, (4, 3))
    got = layer.attention(*layer.before(n, text, text), HEADS, plain, theirs)
    wanted = through(parts[1:], call, (4, 3), n, text)
    assert (got - wanted - 5.0).abs().max() < 1e-4
    assert set(seen) == {(0, 1), (2, 3)}


def test_loras_of_whole_regions_are_merged_ones_and_of_none_nothing() -> None:
    parts, n, text = parts_and_inputs()
    lora, call = parts[0], a_call(1, pictures=4)
    assert isinstance(lora, SeparateLoras)
    every = SeparateLoras(lora._loras, Regions(torch.ones(1, 2, 4, 3)))

    def merged(layer: str, x: Tensor) -> Tensor:
        return x + sum(one[layer](x) for one in lora._loras if layer in one)

    answer = plain(merged("to_q", n), merged("to_k", text), merged("to_v", text))
    got = through([every], call, (4, 3), n, text)
    assert (got - merged("to_out.0", answer)).abs().max() < 1e-5
    nothing = SeparateLoras(lora._loras, Regions(torch.zeros(1, 2, 4, 3)))
    assert not nothing.touches("") and torch.equal(through([nothing], call, (4, 3), n, text), plain(n, text, text))


@pytest.mark.parametrize("rank", [1, 2, 5, 40])
def test_changes_of_any_rank_are_as_those_of_whole_matrices(rank: int) -> None:
    """Few ranks are multiplied with the queries, many ones unfolded; some LoRAs may change no keys, or no values."""
    generator, call = torch.Generator().manual_seed(6), a_call(1, pictures=4)
    masks, words = torch.rand(2, 3, 4, 3, generator=generator), torch.zeros(7)
    words[1:3] = 1
    low = [
        {layer: Change(random(generator, rank, WIDE) * 0.3, random(generator, WIDE, rank) * 0.3) for layer in layers}
        for layers in (("to_q", "to_k", "to_v", "to_out.0"), ("to_k", "to_out.0"), ("to_v", "to_q"))
    ]
    dense = [{name: Change(one.up @ one.down) for name, one in every.items() if one.up is not None} for every in low]
    n, text = random(generator, 4, 12, WIDE), random(generator, 4, 7, WIDE)
    for marked in ([None, words, None], [None] * 3):
        wanted, got = (
            through([SeparateLoras(loras, Regions(masks), marked)], call, (4, 3), n, text) for loras in (dense, low)
        )
        assert (got - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
        assert (wanted - plain(n, text, text)).abs().max() > 0.1


def test_a_lora_changes_nothing_where_its_subject_is_not() -> None:
    """Not even through the text that all positions share."""
    parts, n, text = parts_and_inputs()
    lora, call = parts[0], a_call(1, pictures=4)
    assert isinstance(lora, SeparateLoras)
    masks = torch.zeros(1, 2, 4, 3)
    masks[0, 0, :2], masks[0, 1, 2] = 1, 1
    got = through([SeparateLoras(lora._loras, Regions(masks))], call, (4, 3), n, text)
    assert torch.allclose(got[:, 9:], plain(n, text, text)[:, 9:], atol=1e-6)
    alone = [
        through([SeparateLoras([one], Regions(torch.ones(1, 1, 4, 3)))], call, (4, 3), n, text) for one in lora._loras
    ]
    assert torch.allclose(got[:, :6], alone[0][:, :6], atol=1e-5)
    assert torch.allclose(got[:, 6:9], alone[1][:, 6:9], atol=1e-5)


def test_places_that_another_took_together_are_told() -> None:
    parts, n, text = parts_and_inputs()
    with pytest.raises(Displaced, match="12 for 3x2"):
        Layer(parts, a_call(1, pictures=4), "", True, (2, 3)).before(n, text, text)


@pytest.mark.parametrize("size", [(24, 24), (11, 16), (1, 1)])
def test_regions_keep_ones_and_zeros_at_every_level(size: tuple[int, int]) -> None:
    masks = torch.stack([torch.ones(24, 24), torch.zeros(24, 24)])[None]
    found = Regions(masks).at(size, a_call(1), torch.zeros(1))
    assert found.shape == (1, size[0] * size[1], 2)
    assert torch.equal(found[..., 0], torch.ones_like(found[..., 0])) and not found[..., 1].any()


def test_regions_of_another_shape_are_told() -> None:
    wide = Regions(torch.ones(1, 1, 96, 168))
    for size in ((96, 168), (48, 84), (12, 21), (13, 21), (192, 336)):
        wide.check(size)
    for size in ((168, 96), (128, 128)):
        with pytest.raises(OtherShape, match="Give Layout and the latent one size"):
            wide.check(size)


def test_a_layouts_regions_are_its_figures(drawn_subjects: SubjectSet) -> None:
    cutouts = cut_outs(drawn_subjects)
    one, two = drawn_subjects.tokens
    layout = Layout((256, 192), (Placement(two, (0.5, 0.1, 0.95, 0.9)), Placement(one, (0.05, 0.2, 0.45, 0.8))))
    exact = regions(layout, cutouts, grow=0.0)
    assert exact.shape == (2, 24, 32)
    assert not exact[0, :, 16:].any() and not exact[1, :, :15].any() and exact[0].sum() > 20 < exact[1].sum()
    larger = regions(layout, cutouts, grow=0.2)
    assert (larger >= exact - 1e-6).all() and larger.sum() > 1.2 * exact.sum()
    assert larger.sum(0).max() <= 1 + 1e-6 and 0 < float(((larger > 0.05) & (larger < 0.95)).float().mean())
    boxes = regions(layout, cutouts, "boxes", 0.0)
    assert torch.equal(boxes.unique(), torch.tensor([0.0, 1.0])) and int(boxes[1].sum()) == 14 * 20
    overlapping = Layout((192, 192), (Placement(one, (0.1, 0.1, 0.7, 0.9)), Placement(two, (0.3, 0.1, 0.9, 0.9))))
    assert regions(overlapping, cutouts, "boxes", 0.0).sum(0).max() == 1
    alone = regions(Layout((192, 192), (Placement(two, (0.1, 0.1, 0.7, 0.9)),)), cutouts)
    assert not alone[0].any() and alone[1].any()
    with pytest.raises(BadShape, match="no shape 'circles'"):
        regions(layout, cutouts, "circles")
