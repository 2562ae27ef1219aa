"""CLIP and ImageReward keep the scorer's promise; the measures of whole pictures follow their formulas."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from coloured import coloured
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from mudi_core import eyes as backends
from mudi_core.cli import main
from mudi_core.eyes import clip, dino, image_reward
from mudi_core.eyes.dreamsim import MissingPackage
from mudi_core.eyes.pixels import AT_ONCE, CLIP, IMAGENET
from mudi_core.eyes.weights import MissingWeights
from mudi_core.score.compare import References
from mudi_core.score.fidelity import (
    collapse_rate,
    every_order,
    mean_similarity,
    product_similarity,
    similarities,
    text_fidelity,
)
from mudi_core.subjects.prompt import TooManyOrders
from mudi_core.types import Subject, SubjectSet

CPU = torch.device("cpu")


def picture(width: int, height: int, seed: int = 0) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=small, vision_config={**small, "image_size": 28, "patch_size": 14}, projection_dim=8
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_says_what_the_library_says(clip_folder: Path) -> None:
    ours = clip.load(clip_folder, CPU)
    image, texts = picture(28, 28), ["a photo of a cat", "a dog and a robot on a beach"]
    mean, std = map(torch.tensor, CLIP)
    pixels = ((image - mean) / std).permute(2, 0, 1)[None]
    tokens = ours.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = CLIPModel.from_pretrained(clip_folder)(**tokens, pixel_values=pixels)
    assert torch.allclose(ours([image]), theirs.image_embeds, atol=1e-5)
    assert torch.allclose(ours.texts(texts), theirs.text_embeds, atol=1e-5)
    scores = clip.ClipScorer(ours)([image, picture(40, 20, 1)], texts)
    assert scores.shape == (2, 2) and scores.abs().max() <= 1 + 1e-6
    cosines = torch.nn.functional.cosine_similarity(theirs.image_embeds, theirs.text_embeds)
    assert torch.allclose(scores[0], cosines, atol=1e-5)


def test_clip_is_an_embedder_of_any_sizes(clip_folder: Path) -> None:
    embedder = backends.load_embedder("clip", clip_folder, CPU)
    many = [picture(20 + i, 50 - i, i) for i in range(AT_ONCE + 3)]
    vectors = embedder(many)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(many)), atol=1e-5)
    assert torch.allclose(vectors[-1:], embedder(many[-1:]), atol=1e-5)
    assert embedder([]).shape == (0, 8)


def test_the_base_clip_sees_the_middle_as_openais_own_processing_does(clip_folder: Path) -> None:
    ours, plain = clip.load_base(clip_folder, CPU), clip.load(clip_folder, CPU)
    wide = picture(42, 28)
    assert torch.allclose(ours([wide]), ours([wide[:, 7:35]]), atol=1e-5)
    assert not torch.allclose(ours([wide]), plain([wide]), atol=1e-3)
    scores = clip.load_base_scorer(clip_folder, CPU)([wide], ["a cat", "a dog"])
    scaled = clip.load_base_scaled(clip_folder, CPU)([wide], ["a cat", "a dog"])
    assert torch.allclose(scaled, 2.5 * scores.clamp(min=0)) and scores.shape == (1, 2)


def test_a_clipscore_is_never_below_0() -> None:
    class Scorer:
        def __call__(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
            return torch.tensor([[0.3, -0.2]])

    assert torch.allclose(clip.ScaledScorer(cast(Any, Scorer()))([], []), torch.tensor([[0.75, 0.0]]))


def test_dino_gives_the_class_token_of_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "dino-vits16")
    monkeypatch.setenv("MUDI_MODELS", str(tmp_path))
    ours = dino.load(None, CPU)
    square = picture(256, 256)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    pixels = (square[16:240, 16:240].permute(2, 0, 1)[None] - mean) / std
    model = ViTModel.from_pretrained(tmp_path / "dino-vits16", add_pooling_layer=False)
    with torch.no_grad():
        theirs = model(pixel_values=pixels).last_hidden_state[:, 0]
    assert torch.allclose(ours([square]), torch.nn.functional.normalize(theirs, dim=1), atol=1e-5)
    assert ours([]).shape == (0, 16)
    monkeypatch.setenv("MUDI_MODELS", str(tmp_path / "empty"))
    with pytest.raises(
        MissingWeights, match="dino-vits16 is missing. Download .* from https://huggingface.co/facebook"
    ):
        dino.load(None, CPU)


def test_image_reward_scores_with_the_package_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in image_reward.CONTENT:
        (tmp_path / name).touch()
    module: Any = ModuleType("ImageReward")
    asked: dict[str, Any] = {}

    def load(name: str, **options: Any) -> SimpleNamespace:
        asked.update(options, name=name)
        return SimpleNamespace(score=lambda text, image: len(text) + image.width / 100)

    module.load = load
    monkeypatch.setitem(sys.modules, "ImageReward", module)
    scorer = backends.load_text_scorer("image-reward", tmp_path, CPU)
    scores = scorer([picture(50, 40), picture(20, 40)], ["cat", "robot"])
    assert torch.allclose(scores, torch.tensor([[3.5, 5.5], [3.2, 5.2]]))
    assert asked["name"] == str(tmp_path / "ImageReward.pt") and asked["med_config"] == str(
        tmp_path / "med_config.json"
    )


def test_image_reward_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingWeights, match="ImageReward.pt is missing"):
        image_reward.load(tmp_path, CPU)
    for name in image_reward.CONTENT:
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(MissingPackage, match="pip install image-reward"):
        image_reward.load(tmp_path, CPU)


def test_an_unknown_scorer_is_told_those_there_are() -> None:
    with pytest.raises(backends.UnknownBackend, match="clip, image-reward"):
        backends.load_text_scorer("eyes", None, CPU)


def test_similarities_are_means_over_the_photos_of_each_subject() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    left = list(vectors.split([3, 3, 2]))

    def embed(images: Sequence[Tensor]) -> Tensor:
        return left.pop(0)

    references = References(coloured("red", "blue", photos=3), embed)
    found = similarities([picture(9, 9), picture(9, 9)], references.means, embed)
    for row in range(2):
        for column in range(2):
            expected = (vectors[3 * column : 3 * column + 3] @ vectors[6 + row]).mean()
            assert float(found[row, column]) == pytest.approx(float(expected), abs=1e-6)


def test_the_product_falls_when_one_is_missing_and_the_mean_hardly_does() -> None:
    both, one = torch.tensor([[0.6, 0.6]]), torch.tensor([[0.9, 0.2]])
    assert float(mean_similarity(both)) == pytest.approx(0.6) and float(mean_similarity(one)) == pytest.approx(0.55)
    assert float(product_similarity(both)) == pytest.approx(0.36) and float(product_similarity(one)) == pytest.approx(
        0.18
    )
    assert float(product_similarity(torch.tensor([[-0.5, -0.5]]))) == 0


def test_the_collapse_rate_counts_the_subjects_that_a_mean_hides() -> None:
    eight = torch.tensor([[0.7] * 7 + [0.1], [0.4] * 8])
    assert collapse_rate(eight).tolist() == [1 / 8, 0] and float(eight[0].mean()) > 0.6
    assert collapse_rate(eight, 0.5).tolist() == [1 / 8, 1] and collapse_rate(eight[0, :2]).tolist() == 0


def nouns(*class_nouns: str) -> SubjectSet:
    (red,) = coloured("red", photos=1)
    return SubjectSet(tuple(Subject(f"t{i}", noun, red.photos, red.masks) for i, noun in enumerate(class_nouns)))


def test_text_fidelity_is_averaged_over_all_orders_of_the_subjects() -> None:
    texts = every_order(nouns("cat", "dog"), "{subjects} at sea")
    assert texts == ["cat and dog at sea", "dog and cat at sea"]
    assert len(every_order(nouns("cat", "dog", "robot"), "at sea")) == 6
    assert every_order(nouns("cat", "cat"), "{subjects}") == ["cat and cat"]
    with pytest.raises(TooManyOrders):
        every_order(nouns(*"abcdef"), "{subjects}")

    def first_word(images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        return torch.tensor(
            [[i + (0.2 if text.startswith("cat") else 0.4) for text in texts] for i in range(len(images))]
        )

    assert text_fidelity([picture(9, 9)] * 2, texts, first_word).tolist() == pytest.approx([0.3, 1.3])


def test_compare_says_them_where_asked(
    drawn_dataset: Path, mini_weights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked: list[Sequence[str]] = []

    def scorer(images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        asked.append(texts)
        return torch.full((len(images), len(texts)), 0.25)

    monkeypatch.setattr(backends, "load_text_scorer", lambda *about: scorer)
    monkeypatch.setattr("mudi_core.eyes.weights.locate", lambda *about, **more: tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.open(drawn_dataset / "olis_0.png").save(folder / "a.png")
    command = ["compare", str(folder), "--dataset", str(drawn_dataset), "--base", "mini", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["means"] == {}
    assert main([*command, "--whole-pictures", "--text", "{subjects} on a beach"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert asked == [["cat and cat on a beach"]]
    assert answer["means"]["text_fidelity"] == pytest.approx(0.25)
    (one,) = answer["pictures"]
    assert one["collapse_rate"] in (0, 0.5, 1) and one["similarity_product"] <= one["similarity"] <= 1
    assert one["text_fidelity"] == pytest.approx(0.25)
