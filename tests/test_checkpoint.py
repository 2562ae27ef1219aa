from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sdxl_file import tiny_sdxl, write_single_file

from mudi_core.bases import sdxl, vae
from mudi_core.bases.checkpoint import EncodersReleased, MissingCheckpoint, open_checkpoint
from mudi_core.bases.embedded import MissingMiniWeights
from mudi_core.bases.sdxl import BadCheckpointFile
from mudi_core.cli import main
from mudi_core.lora.file import load_lora
from mudi_core.toy.world import PAIRS, photo
from mudi_core.train.config import TrainConfig
from mudi_core.types import MudiError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's architecture in a few channels, as diffusers writes it."""
    folder = tmp_path_factory.mktemp("tiny") / "sdxl"
    tiny_sdxl(folder)
    return folder


@pytest.fixture(scope="module")
def single_file(tiny: Path) -> Path:
    """The same weights under the names of the single files."""
    path = tiny.parent / "tiny.safetensors"
    write_single_file(tiny, path)
    return path


@pytest.fixture
def tiny_config(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own configurations, in the tiny model's sizes."""
    folder = tmp_path / "configs"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    monkeypatch.setattr(sdxl, "CONFIGS", folder)


def test_the_embedded_model_answers_in_sdxl_shapes(random_mini: None) -> None:
    checkpoint = open_checkpoint("mini")
    context, pooled = checkpoint.encode_text(["a photo of olis cat", ""])
    assert context.shape[:2] == (2, 77) and context.shape[2] == checkpoint.unet.config.cross_attention_dim
    width = checkpoint.unet.config.projection_class_embeddings_input_dim - 6 * 256
    assert pooled.shape == (2, width)
    images = torch.rand(3, 64, 96, 3)
    latents = checkpoint.encode_image(images)
    assert latents.shape == (3, 4, 8, 12)
    assert checkpoint.decode(latents).shape == images.shape
    assert checkpoint.negative_prompt == "" and checkpoint.side == 192


def test_text_is_encoded_as_the_pipeline_does(random_mini: None) -> None:
    checkpoint = open_checkpoint("mini")
    words = ["a photo of olis cat and hta cat"]
    context, pooled = checkpoint.encode_text(words)
    theirs = checkpoint.pipeline().encode_prompt(words, device=torch.device("cpu"), do_classifier_free_guidance=False)
    torch.testing.assert_close(context, theirs[0])
    torch.testing.assert_close(pooled, theirs[2])


def test_an_image_is_encoded_as_the_pipeline_decodes(random_mini: None) -> None:
    checkpoint = open_checkpoint("mini")
    image = torch.rand(1, 32, 32, 3)
    latents = checkpoint.encode_image(image)
    vae = checkpoint.pipeline().vae
    expected = vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(latents, expected)
    decoded = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(checkpoint.decode(latents * checkpoint.latent_scale), decoded)


def test_batches_do_not_change_what_is_encoded(random_mini: None, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint("mini")
    images = torch.rand(3, 32, 32, 3)
    together = checkpoint.encode_image(images)
    monkeypatch.setattr(vae, "PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(checkpoint.encode_image(images), together, atol=1e-4, rtol=1e-4)


def test_where_memory_is_short_the_vae_takes_tiles(mini_weights: None, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = open_checkpoint("mini")
    drawn = [photo(spec.character, random.Random(0), 192).image for spec in PAIRS[0]]
    images = torch.stack([torch.from_numpy(image).float() / 255 for image in drawn])
    whole, vae = checkpoint.encode_image(images), checkpoint.pipeline().vae
    pictures = checkpoint.decode(whole * checkpoint.latent_scale)
    assert not caplog.text
    seen = []

    def small_card(module: Any, given: tuple[torch.Tensor, ...]) -> None:
        side = given[0].shape[-1] * (8 if module is vae.decoder else 1)
        seen.append((given[0].shape[0], side))
        if side > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(small_card)
    tiled = checkpoint.encode_image(images)
    assert tiled.shape == whole.shape and (tiled - whole).abs().mean() < 0.25 * whole.std()
    again = checkpoint.decode(whole * checkpoint.latent_scale)
    assert again.shape == pictures.shape and (again - pictures).abs().mean() < 0.25 * pictures.std()
    assert caplog.text.count("works in tiles") == 2
    assert {count for count, side in seen if side <= 96} == {1} and [side for _, side in seen if side > 96] == [192] * 2
    assert not vae.use_tiling and vae.tile_sample_min_size == 192


def test_a_long_caption_is_cut_with_a_warning(random_mini: None, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = open_checkpoint("mini")
    context, _ = checkpoint.encode_text(["cat " * 100])
    assert context.shape[1] == 77 and "only the first 75 tokens" in caplog.text


def test_the_pipeline_of_vectors_leaves_the_text_encoders_where_they_are(random_mini: None) -> None:
    checkpoint = open_checkpoint("mini")
    pipeline = checkpoint.pipeline(reads=False)
    assert pipeline.text_encoder is None and pipeline.text_encoder_2 is None
    checkpoint._encoders().text_encoders[0].to("meta")
    assert pipeline._execution_device == torch.device("cpu")


def test_released_encoders_say_so(random_mini: None) -> None:
    checkpoint = open_checkpoint("mini")
    checkpoint.release_encoders()
    with pytest.raises(EncodersReleased, match="Open the base model again"):
        checkpoint.encode_text(["a"])
    assert checkpoint.unet is not None and checkpoint.latent_scale == 0.13025


def test_the_pipelines_scheduler_is_its_own(random_mini: None) -> None:
    checkpoint = open_checkpoint("mini")
    pipeline = checkpoint.pipeline()
    pipeline.scheduler.set_timesteps(3)
    assert len(checkpoint.scheduler.timesteps) == 1000


def test_missing_embedded_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mudi_core.bases.embedded.WEIGHTS", tmp_path)
    with pytest.raises(MissingMiniWeights, match="unet.safetensors"):
        open_checkpoint("mini")


def test_a_folder_is_read(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.name == "sdxl" and checkpoint.side == 64
    assert checkpoint.negative_prompt == "sticker, collage"
    assert not any(parameter.requires_grad for parameter in checkpoint.unet.parameters())


def test_a_single_file_is_the_same_model_as_its_folder(tiny: Path, single_file: Path, tiny_config: None) -> None:
    folder, file = open_checkpoint(tiny), open_checkpoint(single_file)
    weights = file.unet.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in folder.unet.state_dict().items())
    words = ["a photo of olis corgi", "two dogs"]
    for one, other in zip(folder.encode_text(words), file.encode_text(words), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    image = torch.rand(1, 32, 32, 3)
    torch.testing.assert_close(folder.encode_image(image), file.encode_image(image), rtol=0, atol=1e-6)
    assert folder.latent_scale == file.latent_scale == 0.13025


def test_a_single_file_needs_no_network(single_file: Path, tiny_config: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("went online")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    open_checkpoint(single_file)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("edm_mean", "edm_std"), "Playground 2.5.*trained with another kind of noise"),
        (("edm_std",), "Playground 2.5.*trained with another kind of noise"),
        (("edm_vpred.sigma_max", "edm_vpred.sigma_min"), "CosXL.*trained with another kind of noise"),
        (("edm_vpred.sigma_min",), "CosXL.*trained with another kind of noise"),
        (("model.diffusion_model.scaled_fp8",), "scaled fp8.*use the same checkpoint in fp16"),
        (("model.diffusion_model.out.2.scale_weight",), "scaled fp8.*use the same checkpoint in fp16"),
        (("model.diffusion_model.out.2.comfy_quant",), "scaled fp8.*use the same checkpoint in fp16"),
    ],
)
def test_files_of_sdxls_shape_but_another_kind_are_refused_for_what_they_are(
    keys: tuple[str, ...], told: str, single_file: Path, tiny_config: None, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    save_file({**load_file(single_file), **{key: torch.ones(1) for key in keys}}, tmp_path / "other.safetensors")
    with pytest.raises(sdxl.BadCheckpointFile, match=f"other.safetensors is .*{told}"):
        open_checkpoint(tmp_path / "other.safetensors")


_WEIGHT = "model.diffusion_model.out.2.weight"


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int16, torch.bool])
def test_weights_in_whole_numbers_without_scales_are_refused(
    kind: torch.dtype, tiny: Path, single_file: Path, tiny_config: None, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    weights = load_file(single_file)
    save_file({**weights, _WEIGHT: (weights[_WEIGHT] * 9).to(kind)}, tmp_path / "few.safetensors")
    shutil.copytree(tiny, tmp_path / "few")
    part = tmp_path / "few" / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(part)
    save_file({key: (value * 9).to(kind) for key, value in weights.items()}, part)
    for name in ("few.safetensors", "few"):
        with pytest.raises(MudiError, match=r"is stored in few bits: '.*(weight|bias)' holds.*use the same model in"):
            open_checkpoint(tmp_path / name)


def test_whole_numbers_beside_the_weights_are_no_matter(single_file: Path, tiny_config: None, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    beside = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "model_ema.num_updates": torch.tensor(7),
    }
    save_file({**load_file(single_file), **beside}, tmp_path / "beside.safetensors")
    open_checkpoint(tmp_path / "beside.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("key", "what"),
    [
        (_WEIGHT, "U-Net"),
        ("first_stage_model.decoder.conv_in.bias", "VAE"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "text encoder"),
        ("conditioner.embedders.1.model.ln_final.weight", "text encoder"),
    ],
)
def test_weights_that_are_not_numbers_are_refused(
    key: str, what: str, value: float, single_file: Path, tiny_config: None, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    weights = load_file(single_file)
    weights[key].reshape(-1)[-1] = value
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(BadCheckpointFile, match=rf"nan.safetensors: the {what} has weights that are not numbers"):
        open_checkpoint(tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    "keys, kind, last",
    [((), "epsilon", 0.004), (("v_pred",), "v_prediction", 0.004), (("v_pred", "ztsnr"), "v_prediction", 0.0)],
)
def test_a_finetune_says_what_it_predicts(
    keys: tuple[str, ...], kind: str, last: float, single_file: Path, tiny_config: None, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    marked = {**load_file(single_file), **{key: torch.zeros(0) for key in keys}}
    save_file(marked, tmp_path / "finetune.safetensors")
    checkpoint = open_checkpoint(tmp_path / "finetune.safetensors")
    level = checkpoint.denoiser().level(torch.tensor([999]))
    assert (level.of_latent.item() == 0) == (kind == "epsilon")
    assert level.signal.item() ** 2 == pytest.approx(last, abs=1e-3)
    assert checkpoint.family == "sdxl_base_v1-0" and checkpoint.usual.captions == ("tags" if keys else "sentence")


def test_a_finetune_that_predicts_v_is_trained_to(
    single_file: Path, tiny_config: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` on the file: its first loss is the mean squared error of ``v = sqrt(abar) eps - sqrt(1 - abar) z0``."""
    from safetensors.torch import load_file

    from mudi_core.jobs.train import Training
    from mudi_core.subjects import storage
    from mudi_core.train.step import batch_of, draw_noise, places_of

    zero = {**load_file(single_file), "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(zero, tmp_path / "noob.safetensors")
    options = ["--steps", "1", "--batch", "1", "--rank", "2", "--resolution", "64", "--dco-beta", "0"]
    losses = {}
    for name, base in (("eps", single_file), ("v", tmp_path / "noob.safetensors")):
        out = tmp_path / f"{name}.safetensors"
        assert main(["train", str(drawn_dataset), "--base", str(base), "--out", str(out), *options, "--json"]) == 0
        losses[name] = json.loads(capsys.readouterr().out)["loss"]
        about = load_lora(out)[1]
        assert about["ss_base_model_version"] == "sdxl_base_v1-0"
        assert about.get("mudi_captions", "sentence") == ("tags" if name == "v" else "sentence")
    checkpoint = open_checkpoint(tmp_path / "noob.safetensors")
    config = TrainConfig.usual(checkpoint.usual, steps=1, batch_size=1, rank=2, resolution=64, dco_beta=0.0)
    training = Training(checkpoint, storage.read_subjects(drawn_dataset), config)
    plan, denoiser = training.plan(), checkpoint.denoiser()
    sample = batch_of(plan, config, 0)[0]
    z0 = 0.13025 * plan.latents[sample][None]
    (eps,), timestep = draw_noise(config, denoiser, [z0.shape[1:]], places_of(plan, config, 0))
    abar = checkpoint.scheduler.alphas_cumprod[timestep].float()
    v = abar.sqrt() * eps - (1 - abar).sqrt() * z0
    with torch.no_grad():
        level, sizes = denoiser.level(timestep), plan.time_ids[[sample]]
        x = abar.sqrt() * z0 + (1 - abar).sqrt() * eps
        answer = denoiser.predict(x, level, [plan.conditions[plan.caption_of[sample]]], sizes)
    assert losses["v"] == pytest.approx(float((answer - v).square().mean()), rel=1e-4)
    assert losses["v"] != pytest.approx(float((answer - eps).square().mean()), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_vae_stays_in_float32(tiny: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(tiny, dtype=dtype)
    assert checkpoint.unet.dtype == dtype
    assert checkpoint.encode_image(torch.rand(1, 32, 32, 3)).dtype == torch.float32
    assert checkpoint.encode_text(["a"])[0].dtype == dtype


@pytest.mark.parametrize("base", ["nothing.safetensors", "no/such/folder"])
def test_a_missing_base_model_names_folder_and_link(base: str, tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpoint) as error:
        open_checkpoint(tmp_path / base)
    assert str((tmp_path / base).parent) in str(error.value) and "https://" in str(error.value)


def test_what_is_no_sdxl_file_is_refused_with_the_reason(tmp_path: Path, single_file: Path, tiny_config: None) -> None:
    from safetensors.torch import load_file

    def refused(name: str, reason: str) -> None:
        with pytest.raises(BadCheckpointFile, match=reason):
            open_checkpoint(tmp_path / name)

    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04pickle")
    refused("model.ckpt", "can run code")
    (tmp_path / "text.safetensors").write_text("this is not a model")
    refused("text.safetensors", "not a complete safetensors file")
    shutil.copy(single_file, tmp_path / "UPPER.SAFETENSORS")
    refused("UPPER.SAFETENSORS", "ends in .SAFETENSORS.*Rename it")
    (tmp_path / "cut.safetensors").write_bytes(single_file.read_bytes()[:-1000])
    refused("cut.safetensors", "not a complete safetensors file")
    save_file({"lora_unet_x.alpha": torch.ones(1)}, tmp_path / "lora.safetensors")
    refused("lora.safetensors", "is a LoRA, not a base model")
    save_file({"conv_in.weight": torch.ones(4), "down_blocks.0.x.weight": torch.ones(1)}, tmp_path / "unet.safetensors")
    refused("unet.safetensors", "is a part of a model.*Name the folder that holds model_index.json")
    save_file({"double_blocks.0.x.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    refused("other.safetensors", "not a complete SDXL checkpoint")
    weights = load_file(single_file)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**weights, key: weights[key].repeat(1, 2, 1, 1)}, tmp_path / "inpaint.safetensors")
    refused("inpaint.safetensors", r"8 channels instead of 4\), like models for inpainting and for editing pictures")
    lacking = {k: v for k, v in weights.items() if "middle_block" not in k}
    save_file(lacking, tmp_path / "lacking.safetensors")
    refused("lacking.safetensors", "lacks some|could not be read")


def test_what_is_no_sdxl_folder_is_refused_with_the_reason(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(BadCheckpointFile, match="no model_index.json"):
        open_checkpoint(tmp_path)
    shutil.copytree(tiny, tmp_path / "cut")
    next((tmp_path / "cut" / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(BadCheckpointFile, match="could not be read"):
        open_checkpoint(tmp_path / "cut")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        shutil.copytree(tiny, tmp_path / f"half {name}")
        part = next((tmp_path / f"half {name}" / name).glob("*.safetensors"))
        part.write_bytes(part.read_bytes()[:5000])
        with pytest.raises(MudiError, match=f"half {name}/{name}/.* is not a complete safetensors file"):
            open_checkpoint(tmp_path / f"half {name}")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(BadCheckpointFile, match="FluxPipeline"):
        open_checkpoint(tmp_path)


def test_the_real_configurations_are_sdxls() -> None:
    """2,567,463,684 parameters in the U-Net, as published; and LoRAs of rank 32 on its attention have 46.4 million."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def count(model: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(sdxl.CONFIGS / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(sdxl.CONFIGS / "vae"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(sdxl.CONFIGS / "text_encoder"))
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(sdxl.CONFIGS / "text_encoder_2"))
    assert count(unet) == 2_567_463_684
    assert count(vae) == 83_653_863
    assert count(text) == 123_060_480
    assert count(text_2) == 694_659_840
    attention = [layer for name, layer in unet.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    lora = sum(32 * (layer.in_features + layer.out_features) for layer in attention)
    assert round(lora / 1e6, 1) == 46.4
