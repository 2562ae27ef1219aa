"""Residual token embeddings: what they add to a text, how they are trained, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.bases.residual import (
    BadResidual,
    OtherEncoder,
    Residual,
    added,
    load_residual,
    own_rows,
    save_residual,
)
from mudi_core.bases.text import CheckpointText, NotNamed, marked, occurrences, shared, tuned
from mudi_core.eyes.embedded import load_embedder
from mudi_core.jobs.generate import GenerateConfig, generate
from mudi_core.jobs.residual import residual_config, train_residual
from mudi_core.score.compare import References
from mudi_core.score.fidelity import similarities
from mudi_core.stage.cutouts import cut_outs
from mudi_core.train import residual as training
from mudi_core.train.residual import TEMPLATES, BadTuning, Preservation, tune
from mudi_core.types import SubjectSet

PROMPT = "a photo of a cat and a big red dog, a robot"


@pytest.fixture(scope="module")
def base(mini_weights: None) -> Checkpoint:
    return open_checkpoint("mini")


@pytest.fixture(scope="module")
def text(base: Checkpoint) -> CheckpointText:
    return CheckpointText(base)


def made(text: CheckpointText, word: str, seed: int = 0) -> Residual:
    own = own_rows(text, word)
    shift = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed))
    return Residual(word, shift, own, text.widths, {"mudi_base": "mini"})


def context(base: Checkpoint, prompt: str = PROMPT) -> torch.Tensor:
    return base.encode_text([prompt])[0].detach()


def test_strength_0_changes_no_bit_and_strengths_scale_the_shift(base: Checkpoint, text: CheckpointText) -> None:
    before, one = context(base), made(text, "cat")
    assert added(before, PROMPT, [one], text, [0.0]) is before
    plain = before.clone()
    found = added(before, PROMPT, [one], text)
    assert torch.equal(before, plain), "what is given stays as it is"
    changed = (found != before).any(-1)[0].nonzero().flatten().tolist()
    place = occurrences(text.ids(PROMPT), text.word("cat"))[0]
    assert changed == [place] and torch.allclose(found[0, place] - before[0, place], one.shift[0], atol=1e-5)
    twice = added(before, PROMPT, [one], text, [-2.0])
    assert torch.allclose(twice[0, place] - before[0, place], -2 * one.shift[0], atol=1e-5)


def test_two_may_come_in_any_order_and_a_word_may_be_several_tokens(base: Checkpoint, text: CheckpointText) -> None:
    cat, dog = made(text, "cat", 1), made(text, "big red dog", 2)
    assert dog.shift.shape == (3, 256)
    before = context(base)
    at_once = added(before, PROMPT, [cat, dog], text, [1.0, 0.5])
    assert torch.equal(at_once, added(before, PROMPT, [dog, cat], text, [0.5, 1.0]))
    assert torch.equal(at_once, added(added(before, PROMPT, [dog], text, [0.5]), PROMPT, [cat], text))
    assert int((at_once != before).any(-1).sum()) == 4


def test_equal_words_are_the_subjects_in_their_order(base: Checkpoint, text: CheckpointText) -> None:
    prompt = "a cat and a cat"
    first, second = made(text, "cat", 1), made(text, "cat", 2)
    before, places = context(base, prompt), occurrences(text.ids(prompt), text.word("cat"))
    found = added(before, prompt, [first, second], text) - before
    for place, one in zip(places, (first, second), strict=True):
        assert torch.allclose(found[0, place], one.shift[0], atol=1e-5)
    both = added(before, prompt, [first], text) - before
    assert all(torch.allclose(both[0, place], first.shift[0], atol=1e-5) for place in places)
    only = added(before, prompt, [first], text, occurrence=2) - before
    assert not only[0, places[0]].any() and torch.allclose(only[0, places[1]], first.shift[0], atol=1e-5)
    with pytest.raises(NotNamed, match="of 'cat' and of 'cat', would act on the same word"):
        added(before, prompt, [first, second, first], text)
    assert shared([[2, 5], [2, 5], [9]]) == [[2], [5], [9]] and shared([[2], [2]]) == [[2], [2]]
    assert marked(5, [1, 4], 1).tolist() == [0, 1, 0, 0, 1]


def test_prompts_without_the_word_are_told(base: Checkpoint, text: CheckpointText) -> None:
    cat = made(text, "cat")
    for prompt in ("a dog", "two cats", "so " * 80 + "a cat"):
        with pytest.raises(NotNamed, match="does not have 'cat'"):
            added(context(base, prompt), prompt, [cat], text)
    with pytest.raises(NotNamed, match="does not have 'cat' 3 times"):
        added(context(base, "a cat, a cat"), "a cat, a cat", [cat], text, occurrence=3)
    with pytest.raises(NotNamed, match="token 6, and the conditioning has 3"):
        added(context(base)[:, :3], PROMPT, [cat], text)


def test_files_come_back_and_others_are_refused(text: CheckpointText, tmp_path: Path) -> None:
    one, path = made(text, "big red dog"), tmp_path / "dog.safetensors"
    save_residual(path, one)
    again = load_residual(path)
    assert (again.word, again.widths, again.about["mudi_base"]) == ("big red dog", (96, 160), "mini")
    assert torch.equal(again.shift, one.shift) and torch.equal(again.own, one.own)
    assert path.stat().st_size < 20_000
    row = torch.zeros(1, 8)
    others: list[tuple[dict[str, Any], dict[str, str] | None]] = [
        ({"clip_l": row}, {"mudi_word": "dog"}),
        ({"clip_l": row, "own.clip_l": row}, None),
        ({"clip_l": row, "own.clip_l": row.repeat(2, 1)}, {"mudi_word": "dog"}),
        ({"clip_l": row, "own.clip_l": row[:, :4]}, {"mudi_word": "dog"}),
        ({"lora_unet_x": row}, {"mudi_word": "dog"}),
        ({"clip_l": row / 0, "own.clip_l": row}, {"mudi_word": "dog"}),
    ]
    for tensors, about in others:
        save_file({name: value.clone() for name, value in tensors.items()}, path, about)
        with pytest.raises(BadResidual, match="dog.safetensors"):
            load_residual(path)


def test_those_of_another_text_encoder_are_refused(
    text: CheckpointText, monkeypatch: pytest.MonkeyPatch, mini_weights: None
) -> None:
    one = made(text, "cat")
    assert one.check(text) == pytest.approx(1, abs=1e-5)
    with pytest.raises(OtherEncoder, match="width 96; these have 96 and 160"):
        replace(one, widths=(96,)).check(text)
    other = open_checkpoint("mini")
    for encoder in other.text_encoders:
        for name, weight in encoder.named_parameters():
            if "token_embedding" not in name:
                weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * weight.std()
    with pytest.raises(OtherEncoder, match="understand the word differently"):
        one.check(CheckpointText(other))


def test_tuned_weights_are_learned_and_those_of_before_come_back(base: Checkpoint, text: CheckpointText) -> None:
    before = {name: weight for one in text.modules() for name, weight in one.named_parameters()}
    said = context(base)
    with tuned(text.modules()) as weights:
        loss = text.encode(["a cat"])[0]["context"].square().mean()
        loss.backward()
        learned = [one for one in weights if one.grad is not None and one.grad.any()]
        assert len(learned) > 40 and not any(len(one) == 49408 for one in weights)
        with torch.no_grad():
            for one in weights:
                one += 0.1
            assert not torch.allclose(context(base), said, atol=1e-2)
    assert all(weight is before[name] for one in text.modules() for name, weight in one.named_parameters())
    assert torch.equal(context(base), said) and not any(one.requires_grad for one in before.values())


def small(base: Checkpoint, **settings: Any) -> Any:
    return residual_config(base.usual, **{"resolution": 96, "crops_per_photo": 2, **settings})


def test_the_shift_is_the_mean_over_sentences_of_what_tuning_changed(
    base: Checkpoint, text: CheckpointText, drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.Tensor] = []
    at_word = training._at_word

    def spied(*about: Any) -> torch.Tensor:
        kept.append(at_word(*about))
        return kept[-1]

    monkeypatch.setattr(training, "_at_word", spied)
    found = train_residual(base, text, drawn_subjects.subjects[0], small(base, steps=2, batch_size=1))
    frozen, then = kept
    assert torch.equal(found.residual.shift, then - frozen) and found.residual.shift.norm() > 0.5
    sentences = [template.format("cat") for template in TEMPLATES]
    assert len(set(sentences)) == 27
    rows = [
        base.encode_text([sentence])[0][0, occurrences(text.ids(sentence), text.word("cat"))[0]]
        for sentence in sentences
    ]
    assert torch.allclose(frozen[0], torch.stack(rows).mean(0), atol=1e-5)
    assert found.residual.check(text) == pytest.approx(1, abs=1e-5)
    assert found.residual.about["mudi_base"] == "mini" and len(found.losses) == 2


def test_what_stands_around_the_word_is_held(
    base: Checkpoint, text: CheckpointText, drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: dict[float, float] = {}
    held = training._held

    def spied(now: torch.Tensor, before: torch.Tensor, rows: list[int], how: Preservation) -> torch.Tensor:
        moved[how.begin] = float((now - before)[0].norm().detach())
        return held(now, before, rows, how)

    monkeypatch.setattr(training, "_held", spied)
    for begin in (0.0, 1.0):
        how = Preservation(begin, begin)
        train_residual(base, text, drawn_subjects.subjects[0], small(base, steps=12, batch_size=1), how)
    assert moved[1.0] < 0.5 * moved[0.0]
    rows = torch.zeros(5, 4)
    now = rows.clone()
    now[0, 0], now[1], now[2:] = 3.0, 100.0, 1.0
    assert float(held(now, rows, [1], Preservation(0.5, 0.25))) == pytest.approx(0.5 * 3 + 0.25 * 12**0.5)


def test_it_can_be_stopped_and_a_loss_without_number_is_told(
    base: Checkpoint, text: CheckpointText, drawn_subjects: SubjectSet
) -> None:
    before = [weight for one in text.modules() for weight in one.parameters()]
    plan = training_plan(base, drawn_subjects)

    def stop(done: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(base.denoiser(), text, plan, small(base, steps=4), "cat", on_step=stop)
    assert all(a is b for a, b in zip(before, (w for one in text.modules() for w in one.parameters()), strict=True))
    broken = replace(plan, latents=tuple(one * float("nan") for one in plan.latents))
    with pytest.raises(BadTuning, match="NaN at step 1"):
        tune(base.denoiser(), text, broken, small(base, steps=4), "cat")
    with pytest.raises(NotNamed):
        tune(base.denoiser(), text, plan, small(base, steps=4), "")


def training_plan(base: Checkpoint, subjects: SubjectSet) -> Any:
    from mudi_core.train.plan import make_plan

    one = SubjectSet(subjects.subjects[:1])
    return make_plan(one, small(base, steps=4).samples, base.encode_image, base.condition)


def test_a_short_training_makes_pictures_like_the_subject(
    base: Checkpoint, text: CheckpointText, drawn_subjects: SubjectSet
) -> None:
    """Both subjects are cats: "a cat" becomes the first, and not the second."""
    config = residual_config(base.usual, steps=40, batch_size=2, learning_rate=2e-3, crops_per_photo=4)
    found = train_residual(base, text, drawn_subjects.subjects[0], config)
    references = References(drawn_subjects, load_embedder(), True)
    cutouts = cut_outs(drawn_subjects)
    pictures = GenerateConfig.usual(base.usual, "a photo of a cat in the meadow", 1, gamma=0.0, count=4, steps=8)

    def likeness(residuals: list[Residual]) -> torch.Tensor:
        images = [one.image for one in generate(base, cutouts, pictures, residuals=residuals)]
        return similarities(images, references.means, load_embedder()).mean(0)

    plain, ours = likeness([]), likeness([found.residual])
    assert ours[0] > plain[0] + 0.15 and ours[0] > ours[1] + 0.15, f"{plain} {ours}"
