"""Layers of the LoRA that no gradient reaches: some are told once, all are an error before any step counts."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from test_nodes_train import segmix
from test_nodes_train import train as train_in_comfyui
from test_train_loop import CONFIG, Stop, plan_for, stop_after
from tiny_sdxl import tiny_unet, train
from torch import nn

from mudi_core.train.step import NoGradient

LAYERS = 32
"""Of the tiny U-Net, by its target modules."""


class Spare(nn.Module):
    """Linear layers that the network has and never uses."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({f"part{i}": nn.ModuleDict({"to_q": nn.Linear(4, 4)}) for i in range(count)})


def with_spare(unet: Any, count: int) -> Any:
    unet.spare = Spare(count)
    return unet


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (1, r": lora_unet_spare_attn_part0_to_q\.$"),
        (5, r": lora_unet_spare_\w+, \w+part1\w+, \w+part2\w+ and 2 more\.$"),
    ],
)
def test_layers_without_a_gradient_are_counted_and_named_once(
    count: int, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = train(with_spare(tiny_unet(), count), plan_for(CONFIG), CONFIG)
    (told,) = [record.getMessage() for record in caplog.records if "gradient" in record.getMessage()]
    assert told == result.remark
    assert told.startswith(f"{count} of the LoRA's {LAYERS + count} layers had no gradient in the first step")
    assert re.search(names, told)
    assert torch.count_nonzero(result.state["lora_unet_spare_attn_part0_to_q.lora_up.weight"]) == 0


def test_nothing_is_said_where_every_layer_learns() -> None:
    assert train(tiny_unet(), plan_for(CONFIG), CONFIG).remark == ""


def test_a_run_with_such_layers_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    unet, file = with_spare(tiny_unet(), 2), tmp_path / "stopped.safetensors"
    whole = train(unet, plan_for(CONFIG), CONFIG)
    with pytest.raises(Stop):
        train(unet, plan_for(CONFIG), CONFIG, stop_after(2, Stop()), checkpoint=file)
    gone_on = train(unet, plan_for(CONFIG), CONFIG, resume=file)
    assert gone_on.losses == whole.losses and gone_on.remark == whole.remark
    assert all(torch.equal(gone_on.state[name], whole.state[name]) for name in whole.state)


@pytest.mark.parametrize("spare", [0, 1])
def test_a_network_that_lets_no_gradient_through_is_refused(spare: int, tmp_path: Path) -> None:
    unet, file = with_spare(tiny_unet(), spare), tmp_path / "stopped.safetensors"
    unet.conv_out.register_forward_hook(lambda module, given, answer: answer.detach())
    with pytest.raises(NoGradient, match="No layer of the LoRA has a gradient on this model"):
        train(unet, plan_for(CONFIG), CONFIG, checkpoint=file)
    assert not file.exists()


def test_a_lora_of_unused_layers_alone_is_refused() -> None:
    """The loss then has a gradient from elsewhere, or none; either way nothing would be learned."""
    config = CONFIG.but(target_modules=("part0.to_q", "part1.to_q"))
    with pytest.raises(NoGradient):
        train(with_spare(tiny_unet(), 2), plan_for(config), config)


def test_the_node_says_which_layers_are_left_out(comfy: Comfy, random_mini: None, drawn_subjects: Any) -> None:
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    model.model.diffusion_model.spare = Spare(1)
    dataset, _ = segmix(comfy, drawn_subjects)
    trained = train_in_comfyui(comfy, (model, clip, vae), dataset, "spare")
    assert "layers had no gradient in the first step" in trained.ui["text"][0]
    assert "lora_unet_spare_attn_part0_to_q" in trained.ui["text"][0]
