"""SD 1.x and 2.x: read from folder and file as the same model, and trained into a LoRA of their own names."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sd_file import tiny_sd, write_single_sd

from mudi_core.bases import sd
from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.bases.sdxl import BadCheckpointFile
from mudi_core.jobs.generate import GenerateConfig, draw_noise, generate, generate_plain
from mudi_core.jobs.previews import Previews
from mudi_core.lora.adapter import Adapter
from mudi_core.lora.file import load_lora, save_lora
from mudi_core.lora.metadata import lora_metadata
from mudi_core.stage.cutouts import cut_outs
from mudi_core.train.config import TrainConfig
from mudi_core.train.loop import train
from mudi_core.train.plan import make_plan
from mudi_core.types import Photo, Subject, SubjectSet

VERSIONS = ("v1", "v2")
V_MARK = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {version: tmp_path_factory.mktemp("sd") / version for version in VERSIONS}
    for version, folder in made.items():
        tiny_sd(folder, version)
    return made


@pytest.fixture
def tiny_configs(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own configurations, in the tiny models' sizes."""
    for version, folder in folders.items():
        ignored = shutil.ignore_patterns("*.safetensors", "tokenizer*")
        shutil.copytree(folder, tmp_path / "configs" / version, ignore=ignored)
    monkeypatch.setattr(sd, "CONFIGS", tmp_path / "configs")


def single(folders: dict[str, Path], version: str, tmp_path: Path, **changed: torch.Tensor) -> Path:
    path = tmp_path / f"{version}.safetensors"
    write_single_sd(folders[version], path, version, {V_MARK: changed["mark"]} if changed else None)
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_a_single_file_is_the_same_model_as_its_folder(
    version: str, folders: dict[str, Path], tmp_path: Path, tiny_configs: None
) -> None:
    folder, file = open_checkpoint(folders[version]), open_checkpoint(single(folders, version, tmp_path))
    weights = file.unet.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in folder.unet.state_dict().items())
    words = ["a photo of olis corgi", "two dogs"]
    for one, other in zip(folder.encode_text(words), file.encode_text(words), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    image = torch.rand(1, 64, 64, 3)
    torch.testing.assert_close(folder.encode_image(image), file.encode_image(image), rtol=0, atol=1e-6)
    assert folder.latent_scale == file.latent_scale == 0.18215 and file.side == 512
    assert folder.family == file.family == f"sd_{version}"


@pytest.mark.parametrize("version", VERSIONS)
def test_text_is_encoded_as_the_pipeline_does(version: str, folders: dict[str, Path]) -> None:
    from diffusers import StableDiffusionPipeline

    words = ["a photo of olis cat and hta cat"]
    context, pooled = open_checkpoint(folders[version]).encode_text(words)
    pipeline = StableDiffusionPipeline.from_pretrained(folders[version], safety_checker=None)
    expected = pipeline.encode_prompt(words, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(context, expected)
    assert pooled.shape == (1, 0)


@pytest.mark.parametrize("spread, family, kind", [(0.05, "sd_v2", "epsilon"), (0.2, "sd_v2_v", "v_prediction")])
def test_sd2_shows_what_it_predicts(
    spread: float, family: str, kind: str, folders: dict[str, Path], tmp_path: Path, tiny_configs: None
) -> None:
    mark = torch.tensor([-spread, spread] * 16)
    checkpoint = open_checkpoint(single(folders, "v2", tmp_path, mark=mark))
    assert checkpoint.family == family and checkpoint.scheduler.config.prediction_type == kind
    assert checkpoint.side == (768 if kind == "v_prediction" else 512)


def lora_of(checkpoint: Checkpoint, path: Path) -> TrainConfig:
    photo, mask = Photo("a.png", torch.rand(64, 64, 3)), torch.ones(64, 64)
    subjects = SubjectSet(tuple(Subject(token, "dog", (photo,), (mask,)) for token in ("olis", "hta")))
    config = TrainConfig.of(steps=2, batch_size=2, resolution=64, rank=2, learning_rate=1e-2, dco_beta=1.0)
    plan = make_plan(subjects, config.samples, checkpoint.encode_image, checkpoint.condition)
    state = train(checkpoint.denoiser(), plan, config).state
    about = lora_metadata(
        config.described(), subjects, base=checkpoint.name, plan_hash=plan.plan_hash, family=checkpoint.family
    )
    save_lora(path, state, about, torch.float32)
    return config


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lora_is_trained_that_diffusers_loads(version: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    checkpoint = open_checkpoint(folders[version])
    config = lora_of(checkpoint, tmp_path / "lora.safetensors")
    state, about = load_lora(tmp_path / "lora.safetensors")
    assert about["ss_base_model_version"] == f"sd_{version}"
    assert len(state) == 3 * 128  # 16 transformers of two attentions of four layers

    def predict(unet: torch.nn.Module) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        latents, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 32, generator=generator)
        with torch.no_grad():
            answer: torch.Tensor = unet(latents, torch.tensor([500]), encoder_hidden_states=context).sample
        return answer

    base = predict(checkpoint.unet)
    with Adapter.new(
        checkpoint.denoiser(), config.learning.rank, config.learning.lora_alpha, config.learning.target_modules
    ) as adapter:
        adapter.load(state)
        expected = predict(checkpoint.unet)
    pipeline = StableDiffusionPipeline.from_pretrained(folders[version], safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(predict(pipeline.unet), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
def test_pictures_are_those_of_its_own_pipeline(
    version: str, folders: dict[str, Path], drawn_subjects: SubjectSet
) -> None:
    from diffusers import StableDiffusionPipeline

    checkpoint, cutouts = open_checkpoint(folders[version]), cut_outs(drawn_subjects)
    config = GenerateConfig(
        "olis cat and hta cat", "a dog", size=(64, 64), steps=2, guidance=3.0, gamma=0.0, count=2, batch_size=2
    )
    pipeline = checkpoint.pipeline()
    assert isinstance(pipeline, StableDiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.cat([draw_noise(config.seed, number, (1, 4, 8, 8)) for number in range(2)])
    theirs = pipeline(
        prompt=[config.prompt] * 2, negative_prompt=["a dog"] * 2, latents=noise, width=64, height=64,
        num_inference_steps=2, guidance_scale=3.0, output_type="pt",
    ).images  # fmt: skip
    plain = [one.image for one in generate(checkpoint, cutouts, config)]
    torch.testing.assert_close(torch.stack(plain), theirs.movedim(1, -1), atol=1e-4, rtol=0)
    shifted = [one.image for one in generate(checkpoint, cutouts, replace(config, gamma=2.0))]
    assert (shifted[0] - plain[0]).abs().max() > 1e-3
    torch.testing.assert_close(generate_plain(checkpoint, config), plain[0], atol=1e-4, rtol=0)
    previews = Previews(checkpoint, drawn_subjects, replace(config, count=1), lambda pictures: [0.0] * len(pictures))
    torch.testing.assert_close(previews._paint(0.0)[0], plain[0], atol=1e-4, rtol=0)


def test_files_that_are_not_whole_are_refused(folders: dict[str, Path], tmp_path: Path, tiny_configs: None) -> None:
    path = single(folders, "v1", tmp_path)
    weights = load_file(path)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for reason, state in (
        ("has no U-Net", {key: value for key, value in weights.items() if key != first}),
        ("has no VAE", {key: value for key, value in weights.items() if "first_stage" not in key}),
        ("inpainting", {**weights, first: weights[first].repeat(1, 2, 1, 1)[:, :9]}),
        ("lacks some|could not be read", {k: v for k, v in weights.items() if "middle_block" not in k}),
    ):
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        with pytest.raises(BadCheckpointFile, match=reason):
            open_checkpoint(path)


def test_the_real_configurations_are_sds() -> None:
    """859,520,964 and 865,910,724 parameters in the U-Nets, as published."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    counts = {"v1": (859_520_964, 123_060_480), "v2": (865_910_724, 340_387_840)}
    for version, (unet_size, text_size) in counts.items():
        configs = sd.CONFIGS / version
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs / "unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs / "vae"))
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(configs / "text_encoder"))
        sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (unet, vae, text)]
        assert sizes == [unet_size, 83_653_863, text_size] and sd.version(unet) == version
        attention = [name for name, _ in unet.named_modules() if name.endswith(TrainConfig().learning.target_modules)]
        assert len(attention) == 128
