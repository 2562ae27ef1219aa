"""Captions in ComfyUI: beside photos and from any node, offered class nouns, styles of training and of prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from PIL import Image
from safetensors.torch import save_file
from test_ask import Stub, stub
from tiny_models import tiny

from mudi_core.bases.families import Family
from mudi_core.lora.file import load_lora
from mudi_core.lora.metadata import lora_metadata, read_lora_subjects
from mudi_core.stage.captions import BadTemplate
from mudi_core.stage.describe import NoClassNoun
from mudi_core.train.config import TrainConfig
from mudi_core.train.parts import BadTrainConfig
from mudi_core.types import MudiError, SubjectSet

__all__ = ["stub"]

TAGS = "no humans, olis cat, hta cat"


@pytest.fixture
def kohya(comfy: Comfy) -> Iterator[Path]:
    """A folder of kohya's in ComfyUI's input folder: two photos, one with a caption."""
    folder = comfy.base / "input" / "10_olis cat"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (48, 48), (255, 0, 0)).save(folder / name)
    (folder / "1.txt").write_text("cat, grass, blue sky", encoding="utf-8")
    yield folder
    shutil.rmtree(folder)


def subject(comfy: Comfy, count: int = 2, **more: Any) -> Any:
    """As the executor calls Subject, with masks in the middle of the photos."""
    mask = torch.zeros(1, 48, 48)
    mask[:, 12:36, 12:36] = 1
    given = {"photos": [torch.rand(1, 48, 48, 3)] * count, "masks": [mask] * count, "class_noun": ["cat"]}
    return comfy.run("MudiSubject", token=["olis"], **{**given, **more})


def test_load_photos_gives_captions_and_what_the_folder_offers(comfy: Comfy, kohya: Path) -> None:
    output = comfy.run("MudiLoadPhotos", folder=kohya.name)
    images, captions, token, noun = output.result
    assert len(images) == 2 and captions == ["cat, grass, blue sky", ""] and (token, noun) == ("olis", "cat")
    (said,) = output.ui["text"]
    assert "1 of 2 photos have a caption beside them: connect captions to Subject" in said
    assert "offers the token 'olis' and the class noun 'cat'. Its number, 10, is ignored" in said
    before = comfy.node("MudiLoadPhotos").fingerprint_inputs(folder=kohya.name)
    (kohya / "2.txt").write_bytes("ein Hündchen".encode("latin-1"))
    assert comfy.node("MudiLoadPhotos").fingerprint_inputs(folder=kohya.name) != before
    with pytest.raises(MudiError, match="2.txt, line 1 is not UTF-8 text"):
        comfy.run("MudiLoadPhotos", folder=kohya.name)
    made = subject(comfy, captions=captions)
    assert [photo.caption for photo in made.result[0].subjects[0].photos] == ["olis cat, cat, grass, blue sky", ""]
    assert "The captions of olis_1.png did not say 'olis'" in made.ui["text"][0]


def test_a_captioning_node_tells_every_photo_and_the_name_is_put_in(comfy: Comfy) -> None:
    made = subject(comfy, captions=["a grey cat\non a sofa", "olis cat at sea"])
    (one,) = made.result[0].subjects
    assert [photo.caption for photo in one.photos] == ["a grey olis cat on a sofa", "olis cat at sea"]
    (alone,) = subject(comfy, 1, captions=["a cat\non a sofa"]).result[0].subjects
    assert [photo.caption for photo in alone.photos] == ["a olis cat on a sofa"]
    with pytest.raises(MudiError, match="2 photos but 3 captions"):
        subject(comfy, captions=["a", "b", "c"])


def test_a_caption_that_is_not_read_to_its_end_is_told(comfy: Comfy) -> None:
    tags = ", ".join(f"tag{number}" for number in range(40))
    assert "olis_1.png: its caption has " in subject(comfy, captions=[f"olis, {tags}", "olis"]).ui["text"][0]


def test_a_class_noun_is_offered_and_taken_only_on_request(comfy: Comfy, stub: Stub, monkeypatch: Any) -> None:
    def named(**more: Any) -> tuple[str, str, str]:
        output = subject(comfy, **more)
        return output.result[0].subjects[0].class_noun, output.result[1], (output.ui.get("text") or ("",))[0]

    assert named()[:2] == ("cat", "cat")
    noun, offered, said = named(description=["Class: **grey tabby cat**", "another"])
    assert (noun, offered) == ("cat", "grey tabby cat")
    assert "offers the class noun 'grey tabby cat' instead of 'cat'. Write it into class_noun" in said
    noun, _, said = named(description=["grey tabby cat"], describe=["take"])
    assert noun == "grey tabby cat" and "It is used." in said
    assert named(description=["Cat."], describe=["take"])[:2] == ("cat", "cat")

    bad = "I cannot see any picture, so I am unable to answer that"
    noun, _, said = named(description=[bad])
    assert noun == "cat" and "answer is no class noun" in said
    with pytest.raises(NoClassNoun, match="is no class noun"):
        named(description=[bad], describe=["take"])
    with pytest.raises(MudiError, match="no way to describe 'guess'"):
        named(describe=["guess"])

    assert not stub.asked
    monkeypatch.setenv("MUDI_LLM_URL", stub.url)
    stub.replies = ["striped cat", "striped cat"]
    assert named(describe=["ask and offer"])[:2] == ("cat", "striped cat")
    assert named(describe=["ask and take"])[:2] == ("striped cat", "striped cat")
    assert named(description=["grey cat"], describe=["ask and offer"])[:2] == ("cat", "grey cat")
    assert len(stub.asked) == 2


def dataset(comfy: Comfy, subjects: SubjectSet, **more: Any) -> Any:
    given = {"probability": 0.5, "relative_sizes": "", "overlap": 0.2, "background_weight": 1.0, **more}
    return comfy.run("MudiSegMixDataset", subjects=subjects, **given)


def test_the_dataset_shows_how_compositions_are_told(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    plain = "12 examples of what training will see"
    assert dataset(comfy, drawn_subjects).ui["text"] == (plain,)
    (said,) = dataset(comfy, drawn_subjects, captions="tags").ui["text"]
    assert said == f"{plain}, such as '{TAGS}, simple background, white background'"
    (said,) = dataset(comfy, drawn_subjects, template="{count}: {subjects}").ui["text"]
    assert "such as '2: a olis cat and a hta cat', if its style is usual" in said
    for template, words in (("two cats", "names nobody"), ("{subjects} by {artist}", "artist")):
        assert words in str(comfy.node("MudiSegMixDataset").validate_inputs(relative_sizes="", template=template))
        with pytest.raises(BadTemplate, match=words):
            dataset(comfy, drawn_subjects, template=template)
    with pytest.raises(MudiError, match="no style of captions 'poem'"):
        dataset(comfy, drawn_subjects, captions="poem")
    assert comfy.node("MudiSegMixDataset").validate_inputs(relative_sizes=None, template=None) is True


def test_the_dataset_shows_compositions_of_the_models_kind(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    """For FLUX figures are larger and some canvases black, in the preview as in training; the dataset is the same."""
    given, sheet = dataset(comfy, drawn_subjects).result
    same, of_sdxl = dataset(comfy, drawn_subjects, model=tiny(comfy, "sd3")).result
    again, of_flux = dataset(comfy, drawn_subjects, model=tiny(comfy, "flux1")).result
    assert torch.equal(of_sdxl, sheet)
    assert vars(given) == vars(same) == vars(again)

    def cells(sheet: torch.Tensor) -> list[torch.Tensor]:
        rows, columns = (range(0, side, 256 + 4) for side in sheet.shape[1:3])
        return [sheet[0, y : y + 256, x : x + 256] for y in rows for x in columns]

    def bare(cell: torch.Tensor, colour: float) -> float:
        """How much of it is canvas of this colour."""
        return float((cell == colour).all(-1).float().mean())

    plain, ours = cells(sheet), cells(of_flux)
    black = [bare(cell, 0.0) > 0.2 for cell in ours]
    assert len(ours) == 12 and 1 <= sum(black) <= 6
    assert not any(bare(cell, 0.0) > 0.2 for cell in plain)
    seen = [sum(bare(cell, 1.0) for cell, dark in zip(each, black, strict=True) if not dark) for each in (plain, ours)]
    assert seen[1] < seen[0]  # larger figures leave less of the canvas
    (said,) = dataset(comfy, drawn_subjects, model=tiny(comfy, "flux1")).ui["text"]
    assert "such as 'a close out photo of a small olis cat and a small hta cat, white simple background" in said
    (said,) = dataset(comfy, drawn_subjects, model=tiny(comfy, "flux1"), captions="tags").ui["text"]
    assert TAGS in said


@pytest.mark.parametrize(
    ("captions", "family", "style"),
    [
        ("auto", "sentence", "sentence"),
        ("auto", "tags", "tags"),
        ("tags", "sentence", "tags"),
        ("sentence", "tags", "sentence"),
    ],
)
@pytest.mark.parametrize("preset", ["auto", "SDXL, 1024 px"])
def test_auto_is_the_style_of_the_family(comfy: Comfy, captions: str, family: str, style: str, preset: str) -> None:
    train, sockets = comfy.module("train_config"), comfy.module("sockets")
    numbers = dict.fromkeys(("steps", "rank", "learning_rate", "batch_size"), 0)
    chosen = {"method": "segmix", "seed": 0, "preset": preset, "loss": "as the preset", **numbers}
    given = sockets.TrainingSet(subjects=None, captions=captions)
    config: TrainConfig = train.config_of(Family(captions=family), chosen, given, sockets.TrainSettings(), 0)
    assert config.samples.captions == style
    with pytest.raises(BadTrainConfig, match="names nobody"):
        train.config_of(Family(), chosen, sockets.TrainingSet(None, caption_template="x"), sockets.TrainSettings(), 0)


def lora(comfy: Comfy, subjects: SubjectSet, style: str) -> str:
    settings = TrainConfig.of(resolution=192).described()
    about = lora_metadata(settings, subjects, base="SDXL", plan_hash="", captions=style)
    path = comfy.base / "models" / "loras" / "styled.safetensors"
    save_file({"x": torch.zeros(1)}, path, about)
    return path.name


def test_a_prompt_has_the_style_that_the_lora_was_taught(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    name = lora(comfy, drawn_subjects, "tags")
    given = {"lora_name": name, "text": "a photo of {subjects}", "kind": "", "every_order": False, "negative": ""}
    try:
        output = comfy.run("MudiSubjectPrompt", **given)
        assert output.result[0] == [TAGS] and output.result[2] == "olis cat, hta cat"
        orders = comfy.run("MudiSubjectPrompt", **{**given, "every_order": True, "text": "at sea"}).result[0]
        assert orders == [f"{TAGS}, at sea", "no humans, hta cat, olis cat, at sea"]
        output = comfy.run("MudiSubjectPrompt", **given, captions="sentence")
        assert output.result[0] == ["a photo of olis cat and hta cat"]
        assert "taught in the style 'tags'; this prompt is in 'sentence'" in output.ui["text"][0]
        lora(comfy, drawn_subjects, "FLUX (official)")
        output = comfy.run("MudiSubjectPrompt", **given, captions="sentence")
        assert output.result[0] == ["a photo of olis cat and hta cat"] and "taught in" not in output.ui["text"][0]
        with pytest.raises(MudiError, match="no style of captions 'poem'"):
            comfy.run("MudiSubjectPrompt", **given, captions="poem")
    finally:
        (comfy.base / "models" / "loras" / name).unlink()
    alone = comfy.run("MudiSubjectPrompt", **{**given, "lora_name": "none"}, subjects=drawn_subjects, captions="tags")
    assert alone.result[0] == [TAGS]


def test_the_embedded_model_trains_on_tags_and_its_lora_says_so(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet
) -> None:
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    given, _ = dataset(comfy, drawn_subjects, captions="tags", probability=1.0).result
    read: list[str] = []
    tokenize = clip.tokenize
    clip.tokenize = lambda text, *more, **rest: (read.append(text), tokenize(text, *more, **rest))[1]
    settings = {"method": "segmix", "preset": "auto", "steps": 20, "rank": 4, "learning_rate": 2e-3, "batch_size": 2}
    output = comfy.run(
        "MudiTrainLora", model=model, clip=clip, vae=vae, dataset=given, name="tagged", seed=3, **settings
    )
    assert {text for text in read if "olis" in text} == {
        f"{TAGS}, simple background, white background",
        "no humans, hta cat, olis cat, simple background, white background",
    }
    assert f"Prompt it with '{TAGS}'" in output.ui["text"][0]
    path = comfy.base / "models" / "loras" / output.result[1]
    state, about = load_lora(path)
    assert about["mudi_captions"] == json.loads(about["mudi_config"])["captions"] == "tags"
    assert read_lora_subjects(path).captions == "tags"
    assert any(value.abs().max() > 0 for key, value in state.items() if key.endswith("lora_up.weight"))
    prompt = {"text": "", "kind": "", "every_order": False, "negative": ""}
    assert comfy.run("MudiSubjectPrompt", lora_name=path.name, **prompt).result[0] == [TAGS]
    path.unlink()
