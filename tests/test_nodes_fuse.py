"""Fuse LoRAs: the node does what the library does, on MODEL and CLIP, and changes neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import weights
from safetensors.torch import save_file

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.jobs.fuse import fuse
from mudi_core.jobs.fuse_checkpoint import CheckpointToFuse
from mudi_core.jobs.fusion import FuseConfig
from mudi_core.lora.concepts import Concept
from mudi_core.lora.metadata import read_lora_subjects
from mudi_core.lora.reading import read_lora

SETTINGS = {"rank": 0, "pictures": 1, "steps": 1, "width": 192, "height": 192, "seed": 0}
NAMES = {"olis": "olis corgi", "hta": "hta cat"}


@pytest.fixture(scope="module")
def files(comfy: Comfy) -> dict[str, Path]:
    """Two LoRAs on all attention and one linear layer of each text encoder, which name their subjects."""
    base, made = CheckpointToFuse(open_checkpoint("mini")), {}
    folder = comfy.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (token, phrase) in enumerate(NAMES.items()):
        generator, tensors = torch.Generator().manual_seed(seed), {}
        for name, (out, wide) in base.sizes().items():
            if "_attn1_" in name or "_attn2_" in name or name.endswith("layers_0_mlp_fc1"):
                tensors[f"{name}.lora_down.weight"] = 0.05 * torch.randn(2, wide, generator=generator)
                tensors[f"{name}.lora_up.weight"] = 0.05 * torch.randn(out, 2, generator=generator)
        made[token] = folder / f"{token}.safetensors"
        save_file(tensors, made[token], {"modelspec.trigger_phrase": phrase})
    return made


def loras(comfy: Comfy, files: dict[str, Path], **subjects: str) -> Any:
    kind = comfy.module("sockets").SubjectLora
    return tuple(kind(path, subjects.get(token, ""), 1.0, 1.0) for token, path in files.items())


def test_it_fuses_as_the_command_line_does(comfy: Comfy, files: dict[str, Path]) -> None:
    """The layers of the text encoders and those that read the text: without a sampler, so number by number."""
    model, clip, _ = comfy.run("MudiMiniCheckpoint").args
    before = weights(model, clip)
    wearing, reads, name = comfy.run(
        "MudiFuseLoras", model=model, clip=clip, loras=loras(comfy, files), name="fused", method="text", **SETTINGS
    ).args
    comfy.core("comfy.model_management").unload_all_models()  # ComfyUI patches the weights of what lies on the card
    assert all(torch.equal(a, b) for a, b in zip(weights(model, clip), before, strict=True))
    path = comfy.base / "models" / "loras" / name
    found, subjects = read_lora(path), read_lora_subjects(path)
    assert subjects.names == list(NAMES.values())
    concepts = [Concept(read_lora(files[t]), (tuple(NAMES[t].split()),)) for t in files]  # type: ignore[arg-type]
    wanted = fuse(concepts, CheckpointToFuse(open_checkpoint("mini")), FuseConfig(method="text"))
    assert found.changes.keys() == wanted.changes.keys()
    for layer, change in wanted.changes.items():
        weight = torch.zeros(change.size)
        theirs, ours = found.changes[layer].delta(weight), change.delta(weight)
        assert (theirs - ours).norm() < 0.02 * ours.norm(), layer
    network = sum(layer.startswith("lora_unet_") for layer in found.changes)
    assert sum(map(len, wearing.patches.values())) == network == 56
    assert sum(map(len, reads.patcher.patches.values())) == len(found.changes) - network > 0
    assert not model.patches


def test_every_layer_is_fused_with_pictures(comfy: Comfy, files: dict[str, Path]) -> None:
    model, clip, _ = comfy.run("MudiMiniCheckpoint").args
    made = comfy.run(
        "MudiFuseLoras", model=model, clip=clip, loras=loras(comfy, files), name="fused", method="fuse", **SETTINGS
    )
    told = "".join(made.ui["text"])
    assert "Prompt it with 'olis corgi and hta cat'" in told and "added up as loaders do" not in told
    assert "olis.safetensors (olis corgi): 56 layers of the network and" in told and "fused" in told
    modules = [*model.model.modules(), *clip.cond_stage_model.modules()]
    assert not any(module._forward_pre_hooks for module in modules)


def test_names_are_the_users_before_the_files(comfy: Comfy, files: dict[str, Path]) -> None:
    concept = comfy.module("fusing").concept_of
    kind = comfy.module("sockets").SubjectLora
    for subject, names in (
        ("", (("olis", "corgi"),)),
        ("olis", (("olis", "corgi"),)),
        ("corgi", (("olis", "corgi"),)),
        ("x chow chow", (("x", "chow chow"),)),
        ("x", (("x", ""),)),
    ):
        assert concept(kind(files["olis"], subject, 1.0, 1.0)).names == names


@pytest.mark.parametrize(
    "subjects, message",
    [({"olis": "hta cat"}, "one trigger word, 'hta'"), ({"olis": "x"}, "trigger word 'x' and no class noun")],
)
def test_what_cannot_be_told_apart_is_refused(
    comfy: Comfy, files: dict[str, Path], subjects: dict[str, str], message: str
) -> None:
    model, clip, _ = comfy.run("MudiMiniCheckpoint").args
    with pytest.raises(Exception, match=message):
        comfy.run(
            "MudiFuseLoras", model=model, clip=clip, loras=loras(comfy, files, **subjects), name="x", method="sum",
            **SETTINGS,
        )  # fmt: skip
