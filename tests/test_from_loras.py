"""Subjects from LoRAs: pictures with one figure that is like its fellows; and a LoRA on top of another, as one file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_fuse_job import lora, tensors
from torch import Tensor

from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.cli import main
from mudi_core.jobs.from_loras import BadPictures, NoPictures, PicturesConfig, paint_subjects
from mudi_core.jobs.fuse_checkpoint import wearing
from mudi_core.jobs.one_figure import TRIES, Sample
from mudi_core.jobs.train import whole_of
from mudi_core.lora.change import BadLora
from mudi_core.lora.concepts import CannotFuse, Concept
from mudi_core.lora.file import save_lora
from mudi_core.lora.metadata import read_lora_subjects
from mudi_core.lora.reading import Lora, lora_of, read_lora
from mudi_core.lora.together import together
from mudi_core.subjects import storage
from mudi_core.types import Detections


@pytest.fixture(scope="module")
def mini() -> Checkpoint:
    return open_checkpoint("mini")


class Model:
    """Paints grey pictures; how many figures each shows and how bright they are is given in turn."""

    def __init__(self, *shown: tuple[int, float]) -> None:
        self.shown, self.asked, self.worn = shown, list[tuple[str, int]](), list[str]()

    @contextmanager
    def painting(self, concept: Concept) -> Iterator[Sample]:
        self.worn.append(concept.lora.name)
        yield self.sample
        self.worn.append("off")

    def sample(self, prompt: str, seed: int) -> Tensor:
        figures, level = self.shown[len(self.asked) % len(self.shown)]
        self.asked.append((prompt, seed))
        image = torch.zeros(32, 32, 3)
        image[..., 0], image[..., 1] = figures / 10, level
        return image

    def detect(self, image: Tensor, queries: list[str], threshold: float) -> Detections:
        count = round(float(image[0, 0, 0]) * 10)
        xyxy = torch.tensor([[4.0, 4.0, 20.0, 28.0]] * count).reshape(-1, 4)
        return Detections(xyxy, torch.full((count,), 0.9), (queries[0],) * count, 0.9)

    def segment(self, image: Tensor, xyxy: Tensor) -> Tensor:
        mask = torch.zeros(len(xyxy), 32, 32)
        mask[:, 4:28, 4:20] = 1
        return mask

    def embed(self, images: Sequence[Tensor]) -> Tensor:
        angles = torch.tensor([float(image[8, 12, 1]) for image in images])
        return torch.stack([angles.cos(), angles.sin()], 1)


def of(name: str, token: str, noun: str, about: dict[str, str] | None = None) -> Concept:
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    values = {
        f"{layer}.lora_up.weight": torch.full((4, 1), float(len(name))),
        f"{layer}.lora_down.weight": torch.ones(1, 4),
    }
    return Concept(lora_of(values, about or {}, name), ((token, noun),))


TWO = (of("a", "olis", "corgi"), of("bb", "hta", "cat", {"mudi_captions": "tags"}))


def test_each_subject_is_painted_by_its_own_lora_and_the_stranger_among_them_is_left_out() -> None:
    model = Model((1, 0.1), (2, 0.1), (1, 0.9), (0, 0.1), (1, 0.15), (1, 0.2))
    config = PicturesConfig(count=3, spare=1, scenes=("in the snow", "{subjects} at night"))
    made = paint_subjects(TWO, model.painting, model.detect, model.segment, model.embed, config)
    assert model.worn == ["a", "off", "bb", "off"]
    assert [subject.name for subject in made.subjects] == ["olis corgi", "hta cat"]
    for subject, kept, left in zip(made.subjects, made.kept, made.left_out, strict=True):
        assert [round(float(photo.image[0, 0, 1]), 2) for photo in subject.photos] == [0.1, 0.15, 0.2]
        assert min(kept) > 0.99 > 0.8 > left[0] and len(left) == 1
        assert all(mask.sum() == 24 * 16 for mask in subject.masks)
    dogs, cats = ({photo.caption for photo in subject.photos} for subject in made.subjects)
    assert dogs <= {"a photo of olis corgi in the snow", "olis corgi at night"} and len(dogs) == 2
    assert all("hta cat" in caption and "a photo of" not in caption for caption in cats)  # in tags, as it was taught
    assert len({seed for _, seed in model.asked}) == len(model.asked)
    assert "olis corgi: 3 pictures" in made.told()[0] and "1 less alike left out" in made.told()[0]


def test_a_lora_that_never_paints_its_subject_alone_is_told() -> None:
    model = Model((2, 0.1))
    with pytest.raises(NoPictures, match="a does not paint 'olis corgi'.*10 pictures of 'corgi'.*another trigger word"):
        paint_subjects(TWO, model.painting, model.detect, model.segment, model.embed)
    assert len(model.asked) == TRIES


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ((TWO[0], of("ccc", "olis", "cat")), "one trigger word, 'olis'"),
        ((of("a", "olis", ""),), "no class noun"),
        ((TWO[0], TWO[0]), "the same LoRA"),
        ((Concept(TWO[0].lora, (), 1.0),), "does not say what its subject is called"),
        ((Concept(TWO[0].lora, TWO[0].names, 0.0),), "strength 0"),
    ],
)
def test_loras_that_cannot_be_told_apart_are_refused_before_a_picture(
    concepts: Sequence[Concept], message: str
) -> None:
    model = Model((1, 0.1))
    with pytest.raises(CannotFuse, match=message):
        paint_subjects(concepts, model.painting, model.detect, model.segment, model.embed)
    assert not model.asked


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"count": 0}, {"spare": -1}, {"scenes": ()}):
        with pytest.raises(BadPictures):
            PicturesConfig(**settings)  # type: ignore[arg-type]


def deltas(loras: Sequence[Lora], mini: Checkpoint) -> dict[str, Tensor]:
    """What some LoRAs add to each weight."""
    from mudi_core.lora.wear import layers_of

    found = {}
    for name, layer in layers_of(mini.unet).items():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        own = [one.changes[name].delta(weight.detach()) for one in loras if name in one.changes]
        if own:
            found[name] = sum(own[1:], own[0])
    return found


def test_two_loras_as_one_are_exactly_their_sum(mini: Checkpoint) -> None:
    conv = "lora_unet_mid_block_resnets_0_conv1"
    first, second = tensors(mini, 1), tensors(mini, 2, rank=3)
    for given, rank in ((first, 2), (second, 4)):
        given[f"{conv}.lora_down.weight"] = torch.randn(rank, 192, 3, 3)
        given[f"{conv}.lora_up.weight"] = torch.randn(192, rank, 1, 1)
    del second[next(iter(second)).split(".")[0] + ".lora_down.weight"]
    del (
        second[next(iter(second)).split(".")[0] + ".lora_up.weight"],
        second[next(iter(second)).split(".")[0] + ".alpha"],
    )
    both = [lora(first, "a"), lora(second, "b")]
    one = lora_of(together(both), {}, "one")
    wanted, found = deltas(both, mini), deltas([one], mini)
    assert wanted.keys() == found.keys() and conv in found
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_what_has_no_such_form_is_told() -> None:
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    with pytest.raises(BadLora, match="a and b.safetensors cannot be one file"):
        together([TWO[0].lora, lora({f"{layer}.diff": torch.ones(4, 4)}, "b")])


def test_the_command_line_goes_from_loras_to_a_decoupled_file(
    mini: Checkpoint, mini_weights: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fusion, and a LoRA on it that learns from compositions: as two files and as one, which name their parents."""
    fusion, out = tmp_path / "ab.safetensors", tmp_path / "apart.safetensors"
    about = {"mudi_tokens": '["olis", "hta"]', "mudi_class_nouns": '["cat", "cat"]'}
    small = {key: 0.1 * value if key.endswith("weight") else value for key, value in tensors(mini, 1).items()}
    save_lora(fusion, small, about)
    train = [
        "train",
        str(drawn_dataset),
        "--base",
        "mini",
        "--on",
        str(fusion),
        "--preset",
        "decouple",
        "--out",
        str(out),
    ]
    quick = ["--steps", "2", "--batch", "1", "--rank", "2", "--resolution", "64", "--json"]
    assert main([*train, *quick]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["whole"] == str(whole_of(out))
    part, whole = read_lora(out), read_lora(whole_of(out))
    config = json.loads(part.about["mudi_config"])
    assert (config["segmix_prob"], config["kl_weight"], config["dco_beta"]) == (1.0, 1.0, 0.0)
    ((under,), parents) = (json.loads(part.about["mudi_on"]), json.loads(whole.about["mudi_parents"]))
    assert under["file"] == "ab.safetensors" and under["sha256"] == read_lora(fusion).fingerprint()
    assert parents == [under, {"file": "apart.safetensors", "sha256": part.fingerprint(), "strength": 1.0,
                               "subjects": "olis cat and hta cat"}]  # fmt: skip
    assert "mudi_on" not in whole.about
    assert read_lora_subjects(whole_of(out)).names == ["olis cat", "hta cat"]
    wanted, found = deltas([read_lora(fusion), part], mini), deltas([whole], mini)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-6 * value.norm()
    both = whole_of(out).read_bytes()
    whole_of(out).unlink()  # as where the disk was full after the first file
    assert main([*train, *quick]) == 0 and json.loads(capsys.readouterr().out)["trained"] is False
    assert whole_of(out).read_bytes() == both
    save_lora(fusion, tensors(mini, 2), about)
    assert main([*train, *quick]) == 1 and "another LoRA on the base model" in capsys.readouterr().err


def test_it_learns_on_the_model_with_the_lora_under_it(mini_weights: None, drawn_dataset: Path, tmp_path: Path) -> None:
    """Another fusion under the same training makes another LoRA."""
    mini, made = open_checkpoint("mini"), []
    for seed in (1, 2):
        fusion, out = tmp_path / f"ab{seed}.safetensors", tmp_path / f"apart{seed}.safetensors"
        save_lora(fusion, tensors(mini, seed), {})
        command = ["train", str(drawn_dataset), "--base", "mini", "--on", str(fusion), "--out", str(out)]
        assert main([*command, "--steps", "1", "--batch", "1", "--rank", "2", "--resolution", "64"]) == 0
        made.append(read_lora(out).fingerprint())
    assert made[0] != made[1]


def test_a_base_model_wears_a_lora_only_inside_the_block(mini: Checkpoint) -> None:
    def values() -> list[Tensor]:
        return [value.clone() for value in mini.unet.parameters()]

    before = values()
    with wearing(mini, lora(tensors(mini, 1), "a")):
        assert sum(not torch.equal(a, b) for a, b in zip(values(), before, strict=True)) == 56
    assert all(torch.equal(a, b) for a, b in zip(values(), before, strict=True))


def test_a_lora_of_another_base_model_is_told_with_its_kind(mini: Checkpoint) -> None:
    given = {f"{layer}.{part}": torch.ones(size) for layer in ("lora_unet_double_blocks_0_img_attn_qkv",)
             for part, size in (("lora_up.weight", (4, 1)), ("lora_down.weight", (1, 4)))}  # fmt: skip
    with pytest.raises(BadLora, match="None of the 1 layers that flux.safetensors changes is in mini: FLUX calls them"):
        with wearing(mini, lora(given, "flux")):
            pass


def test_the_command_paints_subjects_that_train_takes(
    mini: Checkpoint, mini_weights: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = {key: 0.01 * value if key.endswith("up.weight") else value for key, value in tensors(mini, 1).items()}
    save_lora(tmp_path / "a.safetensors", weak, {"modelspec.trigger_phrase": "olis cat"})
    command = [
        "from-loras",
        str(tmp_path / "a.safetensors"),
        "--base",
        "mini",
        "--out",
        str(tmp_path / "set"),
        "--json",
    ]
    assert main([*command, "--count", "2", "--spare", "1", "--steps", "8", "--scene", "simple background"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["subjects"] == ["olis cat"] and [len(one) for one in answer["kept"]] == [2]
    (made,) = storage.read_subjects(tmp_path / "set")
    assert {photo.caption for photo in made.photos} == {"a photo of olis cat simple background"}
    assert all(0 < mask.mean() < 0.95 for mask in made.masks)
