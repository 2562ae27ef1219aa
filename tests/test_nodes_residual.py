"""Residual tokens in ComfyUI: trained on the sockets' models, added to a CONDITIONING, and with Layout Guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.residual import Residual, added, load_residual, own_rows, save_residual
from mudi_core.bases.text import CheckpointText
from mudi_core.types import MudiError, SubjectSet

PROMPT = "a photo of a cat and a cat, a red dog"


@pytest.fixture(scope="module")
def mini(comfy: Comfy, mini_weights: None) -> Any:
    return comfy.run("MudiMiniCheckpoint").result


@pytest.fixture(scope="module")
def library(mini_weights: None) -> CheckpointText:
    return CheckpointText(open_checkpoint("mini"))


def made(library: CheckpointText, word: str, seed: int) -> Residual:
    own = own_rows(library, word)
    return Residual(word, torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)), own, library.widths)


def encoded(comfy: Comfy, mini: Any, prompt: str = PROMPT) -> Any:
    return comfy.run_stock("CLIPTextEncode", clip=mini[1], text=prompt)[0]


def token(comfy: Comfy, mini: Any, conditioning: Any, **about: Any) -> Any:
    given = {"clip": mini[1], "prompt": PROMPT, "residual": "none", "strength": 1.0, "occurrence": 0, **about}
    return comfy.run("MudiResidualToken", conditioning=conditioning, **given).result[0]


def test_a_conditioning_gets_what_the_library_adds(comfy: Comfy, mini: Any, library: CheckpointText) -> None:
    before = encoded(comfy, mini)
    kept = before[0][0].clone()
    same = token(comfy, mini, before, residuals=(made(library, "cat", 1),), strength=0.0)
    assert torch.equal(same[0][0], kept) and same[0][1].keys() == before[0][1].keys()
    some = [made(library, "cat", 1), made(library, "cat", 2), made(library, "red dog", 3)]
    found = token(comfy, mini, before, residuals=tuple(some))
    assert torch.equal(before[0][0], kept), "what comes in stays as it is"
    assert torch.equal(found[0][0], added(kept, PROMPT, some, library))
    assert torch.equal(found[0][1]["pooled_output"], before[0][1]["pooled_output"])
    chained = token(comfy, mini, before, residuals=(some[2],))
    chained = token(comfy, mini, chained, residuals=(some[1],), occurrence=2)
    chained = token(comfy, mini, chained, residuals=(some[0],), occurrence=1)
    assert torch.equal(chained[0][0], found[0][0])


def test_a_file_is_chosen_and_words_behind_the_77th_token_count(
    comfy: Comfy, mini: Any, library: CheckpointText
) -> None:
    folder = comfy.base / "models" / "residual_tokens"
    one, prompt = made(library, "cat", 4), "so " * 80 + "a cat"
    save_residual(folder / "cat.safetensors", one)
    before = encoded(comfy, mini, prompt)
    found = token(comfy, mini, before, residual="cat.safetensors", prompt=prompt)[0][0]
    changed = (found != before[0][0]).any(-1)[0].nonzero().flatten().tolist()
    assert before[0][0].shape[1] == 154 and len(changed) == 1 and changed[0] > 77
    short = [[before[0][0][:, :77], before[0][1]]]
    with pytest.raises(MudiError, match="has 77 tokens of 256 values; this CLIP makes 154"):
        token(comfy, mini, short, residual="cat.safetensors", prompt=prompt)
    (folder / "cat.safetensors").unlink()
    with pytest.raises(MudiError, match=r"no residual token 'cat.safetensors'"):
        token(comfy, mini, before, residual="cat.safetensors", prompt=prompt)


def test_what_cannot_be_added_is_told(comfy: Comfy, mini: Any, library: CheckpointText) -> None:
    before, cat = encoded(comfy, mini), made(library, "cat", 1)
    with pytest.raises(MudiError, match="No residual token is chosen"):
        token(comfy, mini, before)
    with pytest.raises(MudiError, match="does not have 'bear'"):
        token(comfy, mini, before, residuals=(made(library, "bear", 1),))
    with pytest.raises(MudiError, match="does not have 'cat' 3 times"):
        token(comfy, mini, before, residuals=(cat,), occurrence=3)
    other = Residual("cat", cat.shift[:, :96], cat.own[:, :96], (96,))
    with pytest.raises(MudiError, match="width 96; these have 96 and 160"):
        token(comfy, mini, before, residuals=(other,))
    with pytest.raises(MudiError, match="understand the word differently"):
        token(comfy, mini, before, residuals=(Residual("cat", cat.shift, -cat.own, cat.widths),))
    with pytest.raises(MudiError, match="must be residual tokens"):
        token(comfy, mini, before, residuals=(1,))


def test_layout_guidance_gives_each_of_two_cats_its_own_word(comfy: Comfy, mini: Any) -> None:
    each = comfy.module("attention").tokens_of_each(mini[1], PROMPT, [("olis cat", "cat"), ("hta cat", "cat")])
    assert [int(one.sum()) for one in each] == [1, 1] and not (each[0] * each[1]).any()
    assert each[0].argmax() < each[1].argmax()
    (both,) = comfy.module("attention").tokens_of_each(mini[1], PROMPT, [("cat",)])
    assert torch.equal(both, each[0] + each[1])


def test_it_is_trained_as_by_the_library_and_nothing_is_changed(
    comfy: Comfy, mini: Any, drawn_subjects: SubjectSet, library: CheckpointText
) -> None:
    model, clip, vae = mini
    weights = {name: one for name, one in clip.cond_stage_model.named_parameters()}
    values = {name: one.clone() for name, one in weights.items() if "token_embedding" not in name}
    (made_here,) = comfy.run(
        "MudiTrainResidual", model=model, clip=clip, vae=vae, subjects=drawn_subjects, name="cats", steps=2,
        learning_rate=1e-3, batch_size=1, resolution=64, seed=0,
    ).result  # fmt: skip
    after = dict(clip.cond_stage_model.named_parameters())
    assert all(after[name] is one for name, one in weights.items())
    assert all(torch.equal(after[name], value) for name, value in values.items())
    folder = comfy.base / "models" / "residual_tokens"
    files = sorted(folder.glob("cats_*.safetensors"))
    assert {one.name.split("_")[1] for one in files} == {"olis", "hta"} and len(made_here) == 2
    newest = [max(folder.glob(f"cats_{name}_*.safetensors")) for name in drawn_subjects.tokens]
    for one, file, subject in zip(made_here, newest, drawn_subjects, strict=True):
        read = load_residual(file)
        assert torch.equal(read.shift, one.shift) and read.about["mudi_subject"] == subject.name
        assert one.word == "cat" and one.shift.abs().max() > 1e-3
    assert not torch.allclose(made_here[0].shift, made_here[1].shift, atol=1e-3)
    assert made_here[0].check(library) > 0.999, "the library's text encoders are the same"


def test_those_of_other_models_cannot_be_trained(comfy: Comfy, mini: Any, drawn_subjects: SubjectSet) -> None:
    about = {"subjects": drawn_subjects, "name": "x", "steps": 1, "learning_rate": 0.0, "batch_size": 0}
    with pytest.raises(MudiError, match="need the CLIP of an SD or SDXL model"):
        comfy.run(
            "MudiTrainResidual", model=mini[0], clip=type("Clip", (), {"cond_stage_model": None})(), vae=mini[2],
            resolution=0, seed=0, **about,
        )  # fmt: skip
    with pytest.raises(MudiError, match="plain name"):
        comfy.run(
            "MudiTrainResidual", model=mini[0], clip=mini[1], vae=mini[2], resolution=0, seed=0,
            **{**about, "name": "../x"},
        )  # fmt: skip
