"""The optimizers: which there are, how fast they go at each step, and that all they remember can be kept in a file."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_train_loop import CONFIG, plan_for, same, stopped
from tiny_sdxl import tiny_unet, train

from mudi_core.train.optimizer import MissingOptimizer, learning_rate, make_optimizer
from mudi_core.train.parts import Learning, OptimizerName


def test_the_learning_rate_rises_and_then_follows_its_schedule() -> None:
    learning = Learning(lr_warmup=4, learning_rate=0.8)

    def rates(schedule: Any) -> Sequence[float]:
        return [learning_rate(replace(learning, lr_schedule=schedule), step, 12) for step in range(12)]

    rising = [0.2, 0.4, 0.6, 0.8]
    assert rates("constant") == pytest.approx(rising + [0.8] * 8)
    assert rates("linear") == pytest.approx(rising + [0.8 * (1 - i / 8) for i in range(8)])
    assert rates("cosine") == pytest.approx(rising + [0.4 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])
    assert min(rates("cosine")) > 0


def test_a_warm_up_longer_than_the_run_never_ends() -> None:
    learning = Learning(lr_warmup=10, learning_rate=1.0, lr_schedule="linear")
    assert [learning_rate(learning, step, 3) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("name, package", [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_a_missing_package_is_a_sentence(name: OptimizerName, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = CONFIG.but(optimizer=name, learning_rate=1.0)
    with pytest.raises(MissingOptimizer, match=f"pip install {package}.*'adamw'"):
        make_optimizer(config.learning, [torch.nn.Parameter(torch.zeros(2))])


class Remembering(torch.optim.Optimizer):
    """A stand-in whose step hangs on a number of its group, one of its state, and bytes, as 8-bit optimizers have."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, {**settings, "distance": 0.001, "pair": (1.0, 2.0)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            assert isinstance(group["pair"], tuple)
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["codes"] = state.get("codes", torch.zeros(3, dtype=torch.uint8)) + 1
                change = parameter.grad.sign() * group["lr"] * group["distance"]
                parameter.sub_(change * state["count"] * int(state["codes"].sum()))
            group["distance"] *= 1.1

    def state_dict(self) -> Any:
        given = super().state_dict()
        nested = {i: {"count": one["count"], "nest": {"codes": one["codes"]}} for i, one in given["state"].items()}
        return {**given, "state": nested}

    def load_state_dict(self, state_dict: Any) -> None:
        kept = {i: values.pop("nest")["codes"] for i, values in state_dict["state"].items()}
        super().load_state_dict(state_dict)
        for i, parameter in enumerate(self.param_groups[0]["params"]):
            self.state[parameter]["codes"] = kept[i]


@pytest.mark.parametrize("name, package", [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
@pytest.mark.parametrize("real", [False, True], ids=["stand-in", "real"])
def test_a_resumed_run_of_any_optimizer_equals_an_uninterrupted_one(
    name: OptimizerName, package: str, real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if real and (importlib.util.find_spec(package) is None):
        pytest.skip(f"{package} is not installed")
    unet = tiny_unet()
    config = CONFIG.but(optimizer=name, learning_rate=0.1, weight_decay=0.0)
    plain = train(unet, plan_for(config), config.but(optimizer="adamw"))
    if not real:
        module = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=Remembering), Prodigy=Remembering)
        monkeypatch.setitem(sys.modules, package, module)  # type: ignore[arg-type]
    whole = train(unet, plan_for(config), config)
    stopped(unet, config, tmp_path / "run.safetensors", step=3)
    assert same(train(unet, plan_for(config), config, resume=tmp_path / "run.safetensors"), whole)
    assert not same(whole, plain)
