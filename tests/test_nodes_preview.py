"""Train Preview: Train LoRA shows pictures on its way, and keeps the LoRA whose pictures were best."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from tiny_models import TINY, known, tiny
from torch import Tensor

from mudi_core.bases.families import FAMILIES
from mudi_core.lora.file import load_lora
from mudi_core.types import Comparison, Detections, SubjectSet

SIDE, STEPS = 64, 2


@pytest.fixture
def parts(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE with random weights."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


class Judge:
    """Sees every preview's pictures; gives them all the next of its scores."""

    def __init__(self) -> None:
        self.scores = [0.9, 0.2, 0.5]
        self.seen: list[list[Tensor]] = []

    def __call__(self, pictures: list[Tensor], subjects: SubjectSet, *how: Any) -> list[Comparison]:
        score = self.scores[len(self.seen) % 3]
        self.seen.append(list(pictures))
        nothing, similar = Detections(torch.zeros(0, 4), torch.zeros(0), ()), torch.eye(len(subjects))
        return [Comparison(subjects.tokens, score, score, similar, similar[:0], nothing) for _ in pictures]


@pytest.fixture
def judge(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Judge:
    one = Judge()
    monkeypatch.setattr(comfy.module("preview"), "compared", one)
    for role in ("detector", "embedder"):
        monkeypatch.setattr(comfy.module("host"), role, lambda choice, download=False: None)
    return one


@pytest.fixture
def interrupt(comfy: Comfy) -> Iterator[Any]:
    """Presses Cancel."""
    management = comfy.core("comfy.model_management")
    yield management.interrupt_current_processing
    management.interrupt_current_processing(False)


def preview(comfy: Comfy, clip: Any, subjects: SubjectSet, **more: Any) -> Any:
    layout = comfy.run(
        "MudiLayout", subjects=subjects, width=SIDE, height=SIDE, mode="random", seed=3, relative_sizes="", overlap=0.4
    ).result[0]
    (said,) = comfy.run_stock("CLIPTextEncode", clip=clip, text="olis cat and hta cat")
    settings = {
        **{"layout": layout, "positive": said, "negative": said, "every": 1, "seed": 3, "count": 1, "steps": STEPS},
        **{"cfg": 2.0, "sampler_name": "euler", "scheduler": "ddim_uniform", "detector": "mini (embedded)"},
        **{"embedder": "mini (embedded)", "threshold": 0.25, "cut_out": False, "download": False, **more},
    }
    return comfy.run("MudiTrainPreview", **settings).result[0]


def train(comfy: Comfy, parts: tuple[Any, Any, Any], subjects: SubjectSet, name: str, **more: Any) -> Any:
    model, clip, vae = parts
    dataset = comfy.run(
        "MudiSegMixDataset", subjects=subjects, probability=0.5, relative_sizes="", overlap=0.2, background_weight=1.0
    ).result[0]
    settings = {
        **{"method": "segmix", "preset": "mini, 192 px", "steps": 3, "rank": 2, "learning_rate": 1e-3},
        **{"batch_size": 1, "seed": 7, **more},
    }
    return comfy.run("MudiTrainLora", model=model, clip=clip, vae=vae, dataset=dataset, name=name, **settings)


def files(comfy: Comfy, name: str) -> list[str]:
    return sorted(path.name for path in (comfy.base / "models" / "loras").glob(f"{name}*"))


def lora(comfy: Comfy, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    return load_lora(comfy.base / "models" / "loras" / name)


def test_previews_show_the_lora_and_change_nothing_in_it(
    comfy: Comfy, parts: tuple[Any, Any, Any], drawn_subjects: SubjectSet, judge: Judge
) -> None:
    before = [value.clone() for value in parts[0].model.state_dict().values()]
    output = train(comfy, parts, drawn_subjects, "seen", preview=preview(comfy, parts[1], drawn_subjects))
    train(comfy, parts, drawn_subjects, "unseen")
    with_looks, without = (lora(comfy, f"{name}_00001.safetensors")[0] for name in ("seen", "unseen"))
    assert with_looks.keys() == without.keys()
    assert all(torch.equal(with_looks[key], value) for key, value in without.items())
    assert all(map(torch.equal, parts[0].model.state_dict().values(), before)) and not parts[0].patches

    assert [len(pictures) for pictures in judge.seen] == [2, 2, 2]
    plain, started = judge.seen[0]
    assert plain.shape == (SIDE, SIDE, 3) and not torch.equal(plain, started)
    assert not torch.equal(plain, judge.seen[1][0])
    assert files(comfy, "seen") == ["seen_00001-best.safetensors", "seen_00001.safetensors"]
    best, about = lora(comfy, "seen_00001-best.safetensors")
    assert (about["ss_steps"], about["mudi_score"]) == ("1", "0.9")
    assert any(not torch.equal(best[key], value) for key, value in without.items())
    assert "best after 1 steps, 0.90: seen_00001-best.safetensors" in output.ui["text"][0]
    assert len(output.ui["images"]) == 4
    assert len(list((comfy.base / "output" / "mudi" / "seen").glob("preview_*.png"))) == 3


def test_a_preview_is_what_stock_nodes_make_of_the_lora(
    comfy: Comfy, parts: tuple[Any, Any, Any], drawn_subjects: SubjectSet, judge: Judge
) -> None:
    looks = preview(comfy, parts[1], drawn_subjects, every=100)
    wearing = train(comfy, parts, drawn_subjects, "last", preview=looks).result[0]
    latent, *_ = comfy.run("MudiInitLatent", layout=looks.layout, vae=parts[2], gamma=-1.0, batch_size=1, seed=0).result
    (empty,) = comfy.run_stock("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    for start, shown in zip((empty, latent), judge.seen[0], strict=True):
        (samples,) = comfy.run_stock(
            "KSampler", model=wearing, seed=3, steps=STEPS, cfg=2.0, sampler_name="euler", scheduler="ddim_uniform",
            positive=looks.positive, negative=looks.negative, latent_image=start, denoise=1.0,
        )  # fmt: skip
        (picture,) = comfy.run_stock("VAEDecode", samples=samples, vae=parts[2])
        assert (picture[0] - shown).abs().mean() < 0.005  # the file has half precision


@pytest.mark.parametrize("family", ["flux1", "z_image", "sd3", "aura_flow"])
def test_auto_samples_as_is_usual_for_the_kind(
    comfy: Comfy, parts: tuple[Any, Any, Any], drawn_subjects: SubjectSet, family: str
) -> None:
    """The sampler that there is, whatever the widgets beside it say; without auto the widgets decide."""
    if not known(comfy, family):
        pytest.skip(f"this ComfyUI has no {TINY[family].kind}")
    settings, usual = comfy.module("preview")._settings, FAMILIES[family].sampling.preview()
    auto = preview(comfy, parts[1], drawn_subjects, sampler_name="auto", scheduler="karras", cfg=30.0)
    model = tiny(comfy, family)
    assert settings(auto, model) == (usual.steps, usual.cfg, usual.sampler, usual.scheduler)
    assert settings(preview(comfy, parts[1], drawn_subjects), model) == (STEPS, 2.0, "euler", "ddim_uniform")


def test_auto_is_the_demos_sampler_for_the_mini_model(
    comfy: Comfy, parts: tuple[Any, Any, Any], drawn_subjects: SubjectSet, judge: Judge
) -> None:
    by_hand = {"steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "ddim_uniform"}
    for more in ({"sampler_name": "auto", "steps": 1, "scheduler": "karras"}, by_hand):
        looks = preview(comfy, parts[1], drawn_subjects, every=100, **more)
        train(comfy, parts, drawn_subjects, f"auto_{len(judge.seen)}", steps=1, preview=looks)
    assert all(map(torch.equal, *judge.seen))


def test_every_familys_sampler_is_one_of_comfyuis(comfy: Comfy) -> None:
    known_ones = comfy.core("comfy.samplers").KSampler
    for name, family in FAMILIES.items():
        assert family.sampling.sampler in known_ones.SAMPLERS, name
        assert family.sampling.scheduler in known_ones.SCHEDULERS, name


def test_cancel_in_a_preview_goes_on_to_the_same_file_and_remembers_the_best(
    comfy: Comfy, parts: tuple[Any, Any, Any], drawn_subjects: SubjectSet, judge: Judge, interrupt: Any
) -> None:
    looks = preview(comfy, parts[1], drawn_subjects)
    train(comfy, parts, drawn_subjects, "looked_whole", preview=looks)
    judge.seen.clear()
    judged = comfy.module("preview").compared

    def press(*given: Any) -> list[Comparison]:
        if len(judge.seen) == 1:
            comfy.core("comfy.model_management").throw_exception_if_processing_interrupted()
            interrupt()
            comfy.core("comfy.model_management").throw_exception_if_processing_interrupted()
        found: list[Comparison] = judged(*given)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.module("preview"), "compared", press)
        with pytest.raises(comfy.core("comfy.model_management").InterruptProcessingException):
            train(comfy, parts, drawn_subjects, "looked_halved", preview=looks)
    assert len(files(comfy, "looked_halved")) == 1 and "best" in files(comfy, "looked_halved")[0]
    train(comfy, parts, drawn_subjects, "looked_halved", preview=looks)
    assert files(comfy, "looked_halved") == ["looked_halved_00001-best.safetensors", "looked_halved_00001.safetensors"]
    folder = comfy.base / "models" / "loras"
    for kind in ("", "-best"):
        whole, halved = (
            Path(folder, f"{name}_00001{kind}.safetensors").read_bytes() for name in ("looked_whole", "looked_halved")
        )
        assert whole == halved
    assert not list((comfy.base / "output").rglob("stopped_*.safetensors"))


def test_its_models_are_looked_for_before_hours_of_training(
    comfy: Comfy, parts: tuple[Any, Any, Any], drawn_subjects: SubjectSet
) -> None:
    from mudi_core.eyes.weights import MissingWeights

    with pytest.raises(MissingWeights, match="owlv2"):
        preview(comfy, parts[1], drawn_subjects, detector="owlv2-base")
    for what in ("sampler_name", "scheduler"):
        with pytest.raises(comfy.module("host").BadChoice, match="no-such"):
            preview(comfy, parts[1], drawn_subjects, **{what: "no-such"})
