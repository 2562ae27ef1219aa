"""Reference adapters: against the official modules' answers, by their laws, and their files.

`reference_parity.json` holds what the official modules answered to the same random tensors: MS-Diffusion
(MS-Diffusion/MS-Diffusion 74eb2d6), IP-Adapter (tencent-ailab/IP-Adapter 62e4af9) and MIP-Adapter
(hqhQAQ/MIP-Adapter ef01c84).
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mudi_core.attention.call import Call
from mudi_core.attention.layer import Layer, Part
from mudi_core.attention.lora import Change, SeparateLoras
from mudi_core.attention.prompts import RegionalPrompts
from mudi_core.attention.references.adapter import Adapter, BadAdapter, OtherBase, of, read
from mudi_core.attention.references.projector import ImageProjector, Resampler, Sizes
from mudi_core.attention.references.worn import By, References, Words
from mudi_core.attention.regions import Regions
from mudi_core.tensor_file import BadWeights

OFFICIAL = json.loads((Path(__file__).parent / "reference_parity.json").read_text(encoding="utf-8"))
HEADS, WIDE, TOKENS = 2, 16, 3
NAME = "input_blocks.4.1.transformer_blocks.0.attn2."
BOXES = ((0.0, 0.25, 0.5, 0.75), (0.25, 0.5, 0.75, 1.0))


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def filled(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights, drawn in the order of their names."""
    return {name: random(generator, *shapes[name]) * 0.3 for name in sorted(shapes)}


def module(made: nn.Module, generator: torch.Generator) -> nn.Module:
    made.load_state_dict(filled({name: tuple(value.shape) for name, value in made.state_dict().items()}, generator))
    return made.eval()


def plain(q: Tensor, k: Tensor, v: Tensor, rows: tuple[int, ...] = ()) -> Tensor:
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def official(name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
    return torch.tensor(OFFICIAL[name]).reshape(shape)


def layer_of(generator: torch.Generator, kind: str) -> Adapter:
    """An adapter of one layer, whose weights are drawn as the official module's were."""
    shapes = {"to_k_ip.weight": (WIDE, WIDE), "to_v_ip.weight": (WIDE, WIDE)}
    if kind.startswith("MIP"):
        shapes["text_to_weight.weight"] = (1, WIDE)
    drawn = filled(shapes, generator)
    gates = (drawn["text_to_weight.weight"],) if "text_to_weight.weight" in drawn else None
    projector = ImageProjector(4, TOKENS, WIDE)
    return Adapter(kind, projector, (drawn["to_k_ip.weight"],), (drawn["to_v_ip.weight"],), gates)  # type: ignore[arg-type]


def through(parts: list[Part], call: Call, size: tuple[int, int], n: Tensor, text: Tensor) -> Tensor:
    """The answer of a layer whose projections change nothing."""
    layer = Layer(parts, call, NAME, True, size)
    q, k, v = layer.before(n, text, text)
    return layer.after(layer.attention(q, k, v, HEADS, plain))


def boxes(side: int = 4) -> Tensor:
    masks = torch.zeros(1, len(BOXES), side, side)
    for mask, (x0, y0, x1, y1) in zip(masks[0], BOXES, strict=True):
        mask[round(y0 * side) : round(y1 * side), round(x0 * side) : round(x1 * side)] = 1
    return masks


def everywhere(count: int, size: tuple[int, int] = (4, 4)) -> Regions:
    return Regions(torch.ones(1, count, *size))


BOTH = Call.of([1, 0], torch.ones(2))
"""The negative prompt's row, and the positive one's."""


def test_a_grounded_resampler_is_ms_diffusions() -> None:
    generator = torch.Generator().manual_seed(0)
    made = module(Resampler(Sizes(24, WIDE, 3, 128, 128, 2, 12)), generator)
    seen, phrases = random(generator, 2, 5, 24), random(generator, 2, 12)
    where = torch.tensor([[0.1, 0.2, 0.45, 0.9], [torch.nan] * 4])
    got = made(seen, phrases, where)
    assert (got - official("ms_resampler", got.shape)).abs().max() < 1e-5
    assert (made(seen)[1] - got[1]).abs().max() < 1e-5 < 0.05 < (made(seen)[0] - got[0]).abs().max()


def test_a_plain_resampler_is_ip_adapter_pluss() -> None:
    generator = torch.Generator().manual_seed(1)
    made = module(Resampler(Sizes(24, WIDE, 3, 128, 128, 2)), generator)
    got = made(random(generator, 2, 5, 24))
    assert (got - official("plus_resampler", got.shape)).abs().max() < 1e-5


def test_masked_attention_is_ms_diffusions() -> None:
    """With boxes that overlap, places outside of all, and a negative prompt that sees nothing."""
    generator = torch.Generator().manual_seed(2)
    q, text = random(generator, 2, 16, WIDE), random(generator, 2, 77, WIDE)
    tokens = random(generator, 1, 2, TOKENS, WIDE)
    adapter = layer_of(generator, "MS-Diffusion")
    got = through([References(adapter, tokens, {NAME: 0}, Regions(boxes()), 0.6)], BOTH, (4, 4), q, text)
    assert (got - official("ms_attention", got.shape)).abs().max() < 1e-5
    assert torch.equal(got[0], plain(q, text, text)[0])
    assert (got[1] - plain(q, text, text)[1]).abs().amax(-1).gt(0).sum() == 7


def test_attention_is_ip_adapters() -> None:
    generator = torch.Generator().manual_seed(3)
    q, text = random(generator, 2, 12, WIDE), random(generator, 2, 77, WIDE)
    tokens, nothing = random(generator, 1, 1, TOKENS, WIDE), random(generator, 1, TOKENS, WIDE)
    adapter = layer_of(generator, "IP-Adapter")
    part = References(adapter, tokens, {NAME: 0}, everywhere(1, (4, 3)), 0.7, nothing=nothing)
    got = through([part], BOTH, (4, 3), q, text)
    assert (got - official("ip_attention", got.shape)).abs().max() < 1e-5


def mip() -> tuple[Adapter, Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    q, text = random(generator, 2, 16, WIDE), random(generator, 2, 77, WIDE)
    tokens, nothing = random(generator, 1, 2, TOKENS, WIDE), random(generator, 1, TOKENS, WIDE)
    names = random(generator, 2, 77, WIDE)
    random(generator, 77, WIDE)  # the official code's empty names
    return layer_of(generator, "MIP-Adapter"), q, text, tokens, nothing, names


def merged(by: By = "place", gated: bool = True, regions: Regions | None = None) -> Tensor:
    adapter, q, text, tokens, nothing, names = mip()
    if not gated:
        adapter = Adapter(adapter.kind, adapter.projector, adapter.keys, adapter.values)
    words = Words([one[None] for one in names], [1, 2], by)
    part = References(adapter, tokens, {NAME: 0}, regions or everywhere(2), 0.75, words, nothing)
    return through([part], BOTH, (4, 4), q, text)


def test_the_weighted_merge_is_mip_adapters_code() -> None:
    got = merged()
    assert (got - official("mip_attention", got.shape)).abs().max() < 1e-5
    assert (merged(gated=False) - got).abs().max() > 0.01


def test_the_weighted_merge_of_the_paper() -> None:
    """Equation 5 by hand: each subject's map of attention, divided by its mean over the places."""
    adapter, q, text, tokens, _, names = mip()
    answer, q = plain(q, text, text)[1:], q[1:]
    wanted = answer.clone()
    for index, length in enumerate((1, 2)):
        apart = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (names[index, None, 1 : 1 + length], q)]
        seen = (apart[0] @ apart[1].mT / (WIDE / HEADS) ** 0.5).softmax(-1).mean((1, 2))
        one = plain(q, tokens[:, index] @ adapter.keys[0].T, tokens[:, index] @ adapter.values[0].T)
        wanted += 0.75 * (seen / seen.mean())[..., None] * one
    assert (merged("subject", gated=False)[1:] - wanted).abs().max() < 1e-5


def test_words_and_places_together_are_kept_to_the_places() -> None:
    adapter, q, text, *_ = mip()
    got = merged(gated=False, regions=Regions(boxes()))[1]
    untouched = (got - plain(q, text, text)[1]).abs().amax(-1) == 0
    assert torch.equal(untouched, boxes()[0].amax(0).flatten() == 0)


@pytest.mark.parametrize("by", ["place", "subject", None])
def test_one_subject_is_the_plain_ip_adapter(by: By | None) -> None:
    adapter, q, text, tokens, nothing, names = mip()
    adapter = Adapter("IP-Adapter", adapter.projector, adapter.keys, adapter.values)
    words = None if by is None else Words([names[:1]], [1], by)
    part = References(adapter, tokens[:, :1], {NAME: 0}, everywhere(1), 0.5, words, nothing)
    got = through([part], BOTH, (4, 4), q, text)
    seen = plain(q[1:], tokens[:, 0] @ adapter.keys[0].T, tokens[:, 0] @ adapter.values[0].T)
    wanted = plain(q, text, text)[1:] + 0.5 * seen
    if by == "subject":  # its map still says where it is
        assert (got[1:] - wanted).abs().max() > 0.01
        assert torch.allclose((got[1:] - plain(q, text, text)[1:]).mean(), 0.5 * seen.mean(), atol=0.1)
    else:
        assert (got[1:] - wanted).abs().max() < 1e-5


def test_no_strength_and_no_place_change_nothing_to_the_bit() -> None:
    adapter, q, text, tokens, nothing, _ = mip()
    wanted = plain(q, text, text)
    for regions, strength in ((everywhere(2), 0.0), (Regions(torch.zeros(1, 2, 4, 4)), 0.7)):
        part = References(adapter, tokens, {NAME: 0}, regions, strength, nothing=nothing)
        assert torch.equal(through([part], BOTH, (4, 4), q, text), wanted)
    elsewhere = References(adapter, tokens, {"middle_block.": 0}, everywhere(2), 0.7)
    assert torch.equal(through([elsewhere], BOTH, (4, 4), q, text), wanted)


def test_swapped_regions_swap_what_is_seen() -> None:
    adapter, q, text, tokens, *_ = mip()
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :, :2], masks[0, 1, :, 2:] = 1, 1
    one, other, swapped = (
        through([References(adapter, some, {NAME: 0}, Regions(places), 0.7)], BOTH, (4, 4), q, text)
        for some, places in ((tokens, masks), (tokens.flip(1), masks), (tokens, masks.flip(1)))
    )
    assert torch.allclose(other, swapped, atol=1e-6) and (one - swapped).abs().max() > 0.05


def test_a_soft_place_sees_less() -> None:
    adapter, q, text, tokens, *_ = mip()

    def more(weight: float) -> Tensor:
        part = References(adapter, tokens[:, :1], {NAME: 0}, Regions(torch.full((1, 1, 4, 4), weight)), 0.7)
        return through([part], BOTH, (4, 4), q, text) - plain(q, text, text)

    assert torch.allclose(more(0.25), 0.25 * more(1.0), atol=1e-6) and more(1.0).abs().max() > 0.05


def test_references_stack_with_every_other_part_in_any_order() -> None:
    adapter, q, text, tokens, nothing, names = mip()
    generator = torch.Generator().manual_seed(5)
    places = Regions(boxes())
    lora = {
        f"{NAME}{layer}": Change(random(generator, 2, WIDE) * 0.3, random(generator, WIDE, 2) * 0.3)
        for layer in ("to_q", "to_k")
    }
    parts: list[Part] = [
        SeparateLoras([lora, lora], places),
        RegionalPrompts([random(generator, 1, 7, WIDE)] * 2, places),
        References(adapter, tokens, {NAME: 0}, places, 0.7, Words([one[None] for one in names], [1, 2]), nothing),
        References(adapter, tokens, {NAME: 0}, everywhere(2), 0.2),
    ]
    wanted = through(parts, BOTH, (4, 4), q, text)
    for order in itertools.permutations(parts):
        assert (through(list(order), BOTH, (4, 4), q, text) - wanted).abs().max() < 1e-5
    for left_out in range(len(parts)):
        fewer = [part for index, part in enumerate(parts) if index != left_out]
        assert (through(fewer, BOTH, (4, 4), q, text) - wanted).abs().max() > 1e-3


def test_each_picture_of_a_batch_sees_its_own() -> None:
    adapter, q, text, tokens, nothing, _ = mip()
    several = torch.cat([tokens, tokens.flip(1)])
    masks = torch.cat([boxes(), boxes().flip(1)])
    n, texts = torch.cat([q, q.flip(1)]), torch.cat([text, text.flip(0)])
    part = References(adapter, several, {NAME: 0}, Regions(masks), 0.7, nothing=nothing)
    whole = through([part], Call.of([1, 0], torch.ones(4)), (4, 4), n, texts)
    for picture in range(2):
        rows = [picture, 2 + picture]
        alone = References(
            adapter, several[picture, None], {NAME: 0}, Regions(masks[picture, None]), 0.7, nothing=nothing
        )
        assert torch.allclose(through([alone], BOTH, (4, 4), n[rows], texts[rows]), whole[rows], atol=1e-6)


def test_keys_and_values_are_projected_once_until_released(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, q, text, tokens, nothing, _ = mip()
    part = References(adapter, tokens, {NAME: 0}, everywhere(2), 0.7, nothing=nothing)
    first = through([part], BOTH, (4, 4), q, text)
    kept = dict(part._ready)
    assert torch.equal(through([part], BOTH, (4, 4), q, text), first)
    assert len(kept) == 2 and all(part._ready[key] is value for key, value in kept.items())
    part.release()
    assert not part._ready


def a_file(kind: str, layers: int = 2, width: int = 128) -> dict[str, Tensor]:
    """The tensors of an adapter in few channels, by the official names."""
    made: nn.Module = ImageProjector(20, 4, WIDE)
    if kind == "MS-Diffusion":
        made = Resampler(Sizes(24, WIDE, 5, width, width, 1, 12))
    elif "plus" in kind:
        made = Resampler(Sizes(24, WIDE, 5, width, 2 * width, 3))
    prefix = "ms_adapter" if kind == "MS-Diffusion" else "ip_adapter"
    state = {f"image_proj.{name}": value for name, value in made.state_dict().items()}
    for number in range(layers):
        for name in ("to_k_ip", "to_v_ip"):
            state[f"{prefix}.{2 * number + 1}.{name}.weight"] = torch.randn(32 * (number + 1), WIDE)
        if kind.startswith("MIP"):
            state[f"{prefix}.{2 * number + 1}.text_to_weight.weight"] = torch.randn(1, 32 * (number + 1))
    return state


def nested(state: dict[str, Tensor]) -> dict[str, object]:
    """As the official programs pickle it."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        first, rest = name.split(".", 1)
        found.setdefault(first, {})[rest] = value
    return {**found, "dummy_image_tokens": torch.zeros(1, 4, WIDE)}


KINDS = ("MS-Diffusion", "IP-Adapter", "IP-Adapter plus", "MIP-Adapter", "MIP-Adapter plus")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_the_kind_of_a_file_is_read_from_its_tensors(kind: str, suffix: str, tmp_path: Path) -> None:
    state, path = {name: value.half() for name, value in a_file(kind).items()}, tmp_path / f"some{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(nested(state), path)
    adapter = read(path)
    assert adapter.kind == kind and adapter.grounded == (kind == "MS-Diffusion")
    assert adapter.seen == (24 if adapter.sees_patches else 20) and (adapter.gates is not None) == ("MIP" in kind)
    assert [len(one) for one in adapter.keys] == [32, 64]
    seen = torch.randn(2, 7, 24) if adapter.sees_patches else torch.randn(2, 20)
    made = adapter.tokens(seen, torch.randn(2, 12), torch.rand(2, 4))
    assert made.shape == (2, 5 if adapter.sees_patches else 4, WIDE) and made.isfinite().all()
    adapter.check([32, 64], WIDE)
    for widths, context in (([32, 64, 64], WIDE), ([32, 32], WIDE), ([32, 64], 8)):
        with pytest.raises(OtherBase, match="2 cross-attentions that reads 16"):
            adapter.check(widths, context)


def test_the_layers_of_a_file_are_in_the_order_of_their_numbers() -> None:
    state = a_file("IP-Adapter", layers=12)
    assert [len(one) for one in of(state, "some").keys] == [32 * (number + 1) for number in range(12)]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this code ran",)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.bin"
    torch.save({"image_proj": Evil()}, path)
    with pytest.raises(BadWeights, match="damaged, or not tensors"):
        read(path)
    assert "this code ran" not in capsys.readouterr().out


def test_other_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    good = a_file("MS-Diffusion")
    no_projector = {name: value for name, value in good.items() if not name.startswith("image_proj")}
    no_values = {name: value for name, value in good.items() if "to_v_ip" not in name}
    lora = {"lora_unet_a.lora_up.weight": torch.zeros(2, 2)}
    for state in (no_projector, no_values, lora, {}):
        with pytest.raises(BadAdapter, match="is no reference adapter"):
            of(state, "some.bin")
    full = a_file("IP-Adapter") | {"image_proj.proj.0.weight": torch.zeros(2, 2)}
    del full["image_proj.proj.weight"]
    with pytest.raises(BadAdapter, match="kind that is not known here"):
        of(full, "full.bin")
    gated = a_file("MIP-Adapter")
    del gated["ip_adapter.3.text_to_weight.weight"]
    with pytest.raises(BadAdapter, match="1 gates for 2 layers"):
        of(gated, "mip.bin")
    for broken in ("image_proj.proj_in.weight", "image_proj.layers.0.1.3.weight"):
        for change in ("gone", "shape"):
            state = dict(good)
            state.pop(broken) if change == "gone" else state.update({broken: torch.zeros(3, 3)})
            with pytest.raises(BadAdapter, match="begins like a reference adapter"):
                of(state, "ms.bin")
    with pytest.raises(BadAdapter, match="There is no file"):
        read(tmp_path / "none.bin")
    (tmp_path / "half.bin").write_bytes(b"PK\x03\x04half")
    with pytest.raises(BadWeights, match="damaged"):
        read(tmp_path / "half.bin")
