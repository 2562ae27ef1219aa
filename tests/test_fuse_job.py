"""LoRAs of single subjects become one: on the embedded model, from files to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_nothing_is_lost import posix, with_full_disk
from torch import Tensor

from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.bases.text import places_of
from mudi_core.cli import main
from mudi_core.jobs.fuse import CAPTIONS, fuse
from mudi_core.jobs.fuse_checkpoint import CheckpointToFuse
from mudi_core.jobs.fusion import FuseConfig
from mudi_core.lora.change import BadLora
from mudi_core.lora.concepts import CannotFuse, Concept, check_concepts, fused_metadata
from mudi_core.lora.metadata import read_lora_subjects
from mudi_core.lora.reading import Lora, lora_of, read_lora
from mudi_core.lora.triggers import trigger_words
from mudi_core.lora.wear import sizes_of

TEXT_LAYERS = ("self_attn_q_proj", "self_attn_v_proj", "mlp_fc1")


@pytest.fixture(scope="module")
def mini() -> Checkpoint:
    return open_checkpoint("mini")


def tensors(
    mini: Checkpoint, seed: int, chosen: Callable[[str], bool] = lambda name: "_attn" in name, rank: int = 2
) -> dict[str, Tensor]:
    """A random LoRA on the chosen layers of network and text encoders."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, (out, wide) in CheckpointToFuse(mini).sizes().items():
        if name.startswith("lora_unet_") and chosen(name):
            found[f"{name}.lora_down.weight"] = 0.1 * torch.randn(rank, wide, generator=generator)
            found[f"{name}.lora_up.weight"] = 0.1 * torch.randn(out, rank, generator=generator)
            found[f"{name}.alpha"] = torch.tensor(float(rank))
    return found


def of_text(mini: Checkpoint, seed: int) -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, (out, wide) in CheckpointToFuse(mini).sizes().items():
        if name.startswith("lora_te") and name.endswith(TEXT_LAYERS):
            found[f"{name}.lora_down.weight"] = 0.02 * torch.randn(2, wide, generator=generator)
            found[f"{name}.lora_up.weight"] = 0.02 * torch.randn(out, 2, generator=generator)
    return found


def lora(given: dict[str, Tensor], name: str) -> Lora:
    return lora_of(given, {}, f"{name}.safetensors")


def concepts(mini: Checkpoint, **more: Any) -> list[Concept]:
    return [
        Concept(lora({**tensors(mini, 1, **more)}, "a"), (("olis", "corgi"),)),
        Concept(lora({**tensors(mini, 2, **more)}, "b"), (("hta", "cat"),)),
    ]


QUICK = FuseConfig(steps=2, rows=400)


@pytest.fixture(scope="module")
def fused(mini: Checkpoint) -> Any:
    return fuse(concepts(mini), CheckpointToFuse(mini), QUICK)


def test_every_layer_is_fused_and_nearer_to_each_concept_than_the_sum(mini: Checkpoint, fused: Any) -> None:
    assert fused.added_up == 0 and len(fused.changes) == 56
    assert {change.rank for change in fused.changes.values()} == {4}
    assert fused.errors.keys() == {"words", "picture"}
    plain, ours = fused.relative()
    assert all(b < 0.5 * a for a, b in zip(plain, ours, strict=True))
    words = fused.errors["words"][1].relative
    assert max(words) < 1e-3  # few words: an exact solution exists


def test_the_base_model_is_afterwards_the_very_same() -> None:
    mini = open_checkpoint("mini")
    before = [(id(value), value.data_ptr(), value.clone()) for value in mini.unet.parameters()]
    fuse(concepts(mini), CheckpointToFuse(mini), replace(QUICK, method="text"))
    for value, (identity, place, was) in zip(mini.unet.parameters(), before, strict=True):
        assert id(value) == identity and value.data_ptr() == place and torch.equal(value, was)
    assert not any(module._forward_pre_hooks for module in mini.unet.modules())


def test_the_sum_is_what_stacked_loras_are(mini: Checkpoint) -> None:
    two = [replace(one, strength=strength) for one, strength in zip(concepts(mini), (0.7, 1.2), strict=True)]
    found = fuse(two, CheckpointToFuse(mini), replace(QUICK, method="sum"))
    assert found.added_up == 56 and found.relative() is None
    for name, (out, wide) in sizes_of(mini.unet).items():
        if name in found.changes:
            weight = torch.zeros(out, wide)
            wanted = 0.7 * two[0].lora.changes[name].delta(weight) + 1.2 * two[1].lora.changes[name].delta(weight)
            torch.testing.assert_close(found.changes[name].delta(weight), wanted, rtol=0, atol=1e-6)


def test_only_the_text_is_fused_without_pictures(mini: Checkpoint, fused: Any) -> None:
    found = fuse(concepts(mini), CheckpointToFuse(mini), replace(QUICK, method="text"))
    assert found.errors.keys() == {"words"} and found.added_up == 42
    name = next(name for name in found.changes if name.endswith("attn2_to_k"))
    assert torch.equal(found.changes[name].parts["lora_up.weight"], fused.changes[name].parts["lora_up.weight"])


def test_text_encoders_convolutions_and_other_kinds_are_in_the_result(mini: Checkpoint) -> None:
    conv = "lora_unet_mid_block_resnets_0_conv1"
    out, wide = sizes_of(mini.unet)[conv]
    generator = torch.Generator().manual_seed(5)
    first = {**tensors(mini, 1), **of_text(mini, 3)}
    first[f"{conv}.lora_down.weight"] = torch.randn(2, wide // 9, 3, 3, generator=generator)
    first[f"{conv}.lora_up.weight"] = torch.randn(out, 2, 1, 1, generator=generator)
    second = tensors(mini, 2)
    dora = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    second[f"{dora}.dora_scale"] = torch.full((sizes_of(mini.unet)[dora][0], 1), 2.0)
    two = [Concept(lora(first, "a"), (("olis", "corgi"),)), Concept(lora(second, "b"), (("hta", "cat"),))]
    found = fuse(two, CheckpointToFuse(mini), QUICK)
    assert found.errors.keys() == {"text encoders", "words", "picture"} and found.added_up == 1
    assert sum(name.startswith("lora_te") for name in found.changes) == len(of_text(mini, 3)) // 2
    assert found.changes[conv].parts["lora_down.weight"].shape == (2, wide // 9, 3, 3)
    delta, weight = found.changes[conv].delta(torch.zeros(out, wide // 9, 3, 3)), torch.zeros(out, wide // 9, 3, 3)
    torch.testing.assert_close(delta, two[0].lora.changes[conv].delta(weight), rtol=0, atol=1e-4)
    assert found.changes[dora].rank == 64
    plain, ours = found.relative()
    assert all(b < 0.7 * a for a, b in zip(plain, ours, strict=True))


def test_a_smaller_rank_is_kept_to(mini: Checkpoint) -> None:
    found = fuse(concepts(mini), CheckpointToFuse(mini), replace(QUICK, method="text", rank=3))
    assert {change.rank for change in found.changes.values()} == {3}
    errors = found.errors["words"][1].relative
    assert 1e-3 < max(errors) < 1


def test_the_same_seed_gives_the_same_fusion(mini: Checkpoint, fused: Any) -> None:
    again = fuse(concepts(mini), CheckpointToFuse(mini), QUICK)
    for name, change in fused.changes.items():
        assert torch.equal(change.parts["lora_down.weight"], again.changes[name].parts["lora_down.weight"])


def test_the_file_knows_its_parents_and_subjects(mini: Checkpoint, fused: Any, tmp_path: Path) -> None:
    two = concepts(mini)
    about = fused_metadata(two, QUICK.described(), base="mini", family=mini.family, side=192)
    save_file({key: value.contiguous() for key, value in fused.state().items()}, tmp_path / "x.safetensors", about)
    subjects = read_lora_subjects(tmp_path / "x.safetensors")
    assert subjects.names == ["olis corgi", "hta cat"] and subjects.size == (192, 192) and subjects.base == "mini"
    parents = json.loads(read_lora(tmp_path / "x.safetensors").about["mudi_parents"])
    assert [one["file"] for one in parents] == ["a.safetensors", "b.safetensors"]
    assert [one["sha256"] for one in parents] == [one.lora.fingerprint() for one in two]
    assert parents[0]["strength"] == 1.0 and parents[1]["subjects"] == "hta cat"


def test_the_end_of_each_caption_is_answered_as_by_each_concept_alone(mini: Checkpoint, fused: Any) -> None:
    """The end of a text gathers what the whole of it says; other tokens that name nobody are not fused for."""
    tokenizer, ends, others = mini.tokenizers[0], [], []
    for concept in concepts(mini):
        captions = [caption.format(concept.words) for caption in CAPTIONS]
        contexts, _ = mini.encode_text(captions)
        read = [tokenizer(caption).input_ids for caption in captions]
        places = [ids.index(tokenizer.eos_token_id) for ids in read]
        assert places == [len(tokenizer.tokenize(caption)) + 1 for caption in captions]
        of = mini_words(mini, concept)
        for context, place in zip(contexts, places, strict=True):
            assert any(torch.equal(context[place], row) for row in of)
        missed = []
        for place in (places[0], 1):  # "photo" is the first word
            x = contexts[0][place].double()
            gaps = []
            for name, change in fused.changes.items():
                if name.endswith(("attn2_to_k", "attn2_to_v")):
                    nothing = torch.zeros(sizes_of(mini.unet)[name])
                    own = concept.lora.changes[name].delta(nothing).double() @ x
                    gaps.append(float((change.delta(nothing).double() @ x - own).norm() / own.norm()))
            assert len(gaps) == 14
            missed.append(gaps)
        ends.append(max(missed[0]))
        others.append(min(missed[1]))
    assert max(ends) < 2e-3 and min(others) > 0.1


def mini_words(mini: Checkpoint, concept: Concept) -> Tensor:
    """What is heard of a concept's words, ``[n, d]``."""
    names = [" ".join(name) for name in concept.names]
    return CheckpointToFuse(mini).words([caption.format(concept.words) for caption in CAPTIONS], names)


def test_places_of_words() -> None:
    assert places_of([[5, 6], [9]], [1, 5, 6, 9, 5, 6, 2]) == [1, 2, 3, 4, 5]
    assert places_of([[5, 6]], [6, 5]) == []


# ------------------------------------------------------------------------------------------------ what is wrong


def one(name: str = "a", seed: int = 1, names: Any = (("olis", "corgi"),), **settings: Any) -> Concept:
    given = {"lora_unet_a_attn1_to_q.lora_down.weight": torch.full((2, 3), float(seed))}
    given["lora_unet_a_attn1_to_q.lora_up.weight"] = torch.ones(4, 2)
    return Concept(lora(given, name), names, **settings)


@pytest.mark.parametrize(
    "given, message",
    [
        ([one()], "one LoRA, and fusing needs two"),
        ([one(), one("b", 2, (("hta", "cat"),), strength=0.0)], "b.safetensors has strength 0"),
        ([one(), one("copy", 1, (("hta", "cat"),))], "a.safetensors and copy.safetensors are the same LoRA"),
        ([one(), one("b", 2, (("Olis", "cat"),))], "have one trigger word, 'Olis'"),
        ([one(), one("b", 2, ())], "b.safetensors does not say what its subject is called"),
        ([one(), one("b", 2, (("hta", ""),))], "names the trigger word 'hta' and no class noun"),
    ],
)
def test_loras_that_cannot_be_told_apart_are_refused(given: list[Concept], message: str) -> None:
    with pytest.raises(CannotFuse, match=message):
        check_concepts(given)


@pytest.mark.parametrize(
    "setting", [{"rank": -1}, {"pictures": 0}, {"steps": 0}, {"rows": 1}, {"ridge": 2.0}, {"ridge": float("nan")}]
)
def test_settings_out_of_range_are_named(setting: dict[str, Any]) -> None:
    with pytest.raises(CannotFuse, match=f"{next(iter(setting))} is .*must be"):
        FuseConfig(**setting)


def test_a_lora_without_attention_layers_is_refused(mini: Checkpoint) -> None:
    only_ff = Concept(lora(tensors(mini, 2, lambda name: "_ff_" in name), "b"), (("hta", "cat"),))
    with pytest.raises(CannotFuse, match="b.safetensors changes no attention layer of mini"):
        fuse([concepts(mini)[0], only_ff], CheckpointToFuse(mini), QUICK)


def test_a_lora_of_another_base_model_is_refused(mini: Checkpoint) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    given = {f"{name}.lora_down.weight": torch.ones(2, 768), f"{name}.lora_up.weight": torch.ones(1280, 2)}
    other = Concept(lora(given, "sd"), (("hta", "cat"),))
    with pytest.raises(BadLora, match=r"sd.safetensors was trained on a model of another size \(SD 1.x\)"):
        fuse([concepts(mini)[0], other], CheckpointToFuse(mini), QUICK)


def test_a_family_that_cannot_be_fused_is_told_with_those_that_can(mini: Checkpoint) -> None:
    base = CheckpointToFuse(mini)
    base.family, base.name = "flux1", "Flux"
    with pytest.raises(
        CannotFuse, match=r"Flux \(flux1\) cannot be fused here: that works with SDXL, SD 1.x and SD 2.x"
    ):
        fuse(concepts(mini), base, QUICK)


# ------------------------------------------------------------------------------------------------ trigger words


@pytest.mark.parametrize(
    "about, found",
    [
        ({}, []),
        ({"mudi_tokens": '["olis", "hta"]', "mudi_class_nouns": '["corgi", "chow chow"]'},
         [("olis", "corgi"), ("hta", "chow chow")]),
        ({"modelspec.trigger_phrase": "ohwx woman, blue hair"}, [("ohwx", "woman")]),
        ({"modelspec.trigger_phrase": "ohwx"}, [("ohwx", "")]),
        ({"ss_tag_frequency": json.dumps({"1_other": {"a": 1}, "10_ohwx woman": {"a": 30, "b": 2}})},
         [("ohwx", "woman")]),
        ({"ss_tag_frequency": json.dumps({"5_my_cat": {"a": 1}})}, [("my", "cat")]),
        ({"modelspec.trigger_phrase": "<lora:x:1> (y:9)", "ss_tag_frequency": json.dumps({"3_ohwx man": {"a": 1}})},
         [("ohwx", "man")]),
        ({"mudi_tokens": '["a\\u0000b"]', "mudi_class_nouns": '["x"]'}, []),
        ({"mudi_tokens": '[["x"]]', "mudi_class_nouns": '["x"]'}, []),
        ({"ss_tag_frequency": "[" * 10_000}, []),
        ({"ss_tag_frequency": '{"a": 3, "b": {"c": "x"}}'}, [("b", "")]),
        ({"modelspec.trigger_phrase": "x" * 5000}, []),
        ({"ss_tag_frequency": "{" + '"a":1,' * 2**20}, []),
    ],
)  # fmt: skip
def test_trigger_words_are_read_as_bounded_data(about: dict[str, str], found: list[tuple[str, str]]) -> None:
    assert trigger_words(about) == found


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_makes_a_file(mini: Checkpoint, tmp_path: Path, capsys: Any) -> None:
    for name, seed, phrase in (("a", 1, "olis corgi"), ("b", 2, "hta cat")):
        save_file(tensors(mini, seed), tmp_path / f"{name}.safetensors", {"modelspec.trigger_phrase": phrase})
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    out = tmp_path / "ab.safetensors"
    words = ["fuse", *files, "--base", "mini", "--out", str(out), "--steps", "2", "--rows", "400"]
    assert main([*words, "--method", "text", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["layers"] == 56 and answer["subjects"] == ["olis corgi", "hta cat"]
    assert all(b < a for a, b in zip(answer["error_of_sum"], answer["error"], strict=True))
    assert read_lora_subjects(out).names == ["olis corgi", "hta cat"]
    assert len(read_lora(out).changes) == 56
    assert main(words) == 1 and "already exists" in capsys.readouterr().err
    more = [*words, "--overwrite", "--method", "sum"]
    assert main([*more, "--name", "x y", "--name", "z w", "--strength", "0.5", "0.7"]) == 0
    assert "56 of them are added up" in capsys.readouterr().out
    assert read_lora_subjects(out).names == ["x y", "z w"]
    assert main([*more, "--strength", "1"]) == 1 and "2 LoRAs and 1 times --strength" in capsys.readouterr().err
    assert main([*more, "--name", "x", "--name", ""]) == 1 and "no class noun" in capsys.readouterr().err


@posix
def test_a_full_disk_leaves_no_half_of_a_fusion(mini: Checkpoint, tmp_path: Path, capsys: Any) -> None:
    for name, seed, phrase in (("a", 1, "olis corgi"), ("b", 2, "hta cat")):
        save_file(tensors(mini, seed), tmp_path / f"{name}.safetensors", {"modelspec.trigger_phrase": phrase})
    files, out = [str(tmp_path / f"{name}.safetensors") for name in "ab"], tmp_path / "ab.safetensors"
    words = ["fuse", *files, "--base", "mini", "--out", str(out), "--method", "sum", "--overwrite"]
    assert main(words) == 0
    before, there = out.read_bytes(), set(tmp_path.iterdir())

    def fuse_anew() -> None:
        status = main([*words, "--strength", "0.5", "0.5"])
        raise RuntimeError(f"{status}: {capsys.readouterr().err}")

    told = with_full_disk(fuse_anew, 5000)
    assert "RuntimeError: 1: " in told and f"Cannot write {out}" in told and "Traceback" not in told
    assert out.read_bytes() == before and set(tmp_path.iterdir()) == there


def test_what_a_fused_file_holds_is_close_to_what_was_solved(mini: Checkpoint, fused: Any, tmp_path: Path) -> None:
    """Half precision keeps the answers: its error is far below the fusion's own."""
    from mudi_core.lora.file import save_lora

    save_lora(tmp_path / "x.safetensors", fused.state(), {})
    read = read_lora(tmp_path / "x.safetensors")
    for name, change in fused.changes.items():
        out, wide = sizes_of(mini.unet)[name]
        exact, stored = (each.delta(torch.zeros(out, wide)) for each in (change, read.changes[name]))
        assert (stored - exact).norm() < 2e-3 * exact.norm()


def test_pictures_are_made_with_a_lora_that_changes_the_text_encoders_too(mini: Checkpoint, tmp_path: Path) -> None:
    """Not only with this project's own: `generate --lora` wears any, as long as it paints."""
    from mudi_core.cli.generate import _wearing

    base = open_checkpoint("mini")
    given = {**tensors(mini, 1), **of_text(mini, 3)}
    save_file(given, tmp_path / "x.safetensors")
    before = base.encode_text(["a cat"])[0]
    weight = base.unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight")
    was = weight.clone()
    with _wearing(base, tmp_path / "x.safetensors", 0.5):
        assert not torch.equal(base.encode_text(["a cat"])[0], before) and not torch.equal(weight, was)
    assert torch.equal(base.encode_text(["a cat"])[0], before) and torch.equal(weight, was)
    with _wearing(base, None, 1.0):
        assert torch.equal(weight, was)
