"""Two processes that train together: they agree, stop and fail as one, and only the first writes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_loop import CONFIG, plan_for, same
from tiny_sdxl import tiny_unet, train

from mudi_core.train.loop import BadRun
from mudi_core.train.run import Interrupted, NonFiniteLoss
from mudi_core.train.team import BrokenTeam, Team, joined

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not hasattr(os, "fork"), reason="a process that knows a GPU cannot be forked"
)
SHARED = CONFIG.but(batch_size=1, accumulation=2)


def together(work: Callable[[Team, Path], str], folder: Path) -> list[str]:
    """What ``work`` says in each of two processes."""
    torch.multiprocessing.start_processes(_member, (work, folder), nprocs=2, start_method="fork")
    return [(folder / f"said_{rank}").read_text() for rank in range(2)]


def _member(rank: int, work: Callable[[Team, Path], str], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port(folder)}
    with joined(torch.device("cpu")) as team:
        assert (team.rank, team.size, team.leads) == (rank, 2, rank == 0)
        (folder / f"said_{rank}").write_text(work(team, folder))


def _port(folder: Path) -> str:
    """A port that was free a moment ago, the same in both processes."""
    return (folder / "port").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    return tmp_path


def add_and_agree(team: Team, folder: Path) -> str:
    tensors = [torch.full((2, 3), float(team.rank + 1)), torch.tensor([1e-12 * (team.rank + 1)], dtype=torch.float64)]
    team.add_up(tensors)
    assert torch.equal(tensors[0], torch.full((2, 3), 3.0)) and tensors[1].item() == pytest.approx(3e-12)
    assert [list(Team(rank, 2).share(4)) for rank in range(2)] == [[0, 2], [1, 3]]
    team.agree("the same", "words")
    try:
        team.agree(f"mine, {team.rank}", "words")
    except BrokenTeam as error:
        return str(error)
    return "agreed"


def test_sums_and_words_are_shared(folder: Path) -> None:
    assert (
        together(add_and_agree, folder)
        == ["The processes have different words. Give all of them the same files and settings."] * 2
    )


def stop_one(team: Team, folder: Path) -> str:
    """Ctrl-C reaches the second process alone."""
    import signal

    def press(done: int, total: int, loss: float) -> None:
        if done == 2 and team.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)

    unet, file = tiny_unet(), folder / "run.safetensors"
    try:
        train(unet, plan_for(SHARED), SHARED, on_step=press, checkpoint=file, team=team)
    except Interrupted as error:
        team.wait()
        resumed = train(unet, plan_for(SHARED), SHARED, resume=file, team=team)
        whole = train(unet, plan_for(SHARED), SHARED, team=team)
        return f"{same(resumed, whole)} {error}"
    return "went on"


def test_a_stop_of_one_stops_both_after_the_same_step_and_both_go_on(folder: Path) -> None:
    for said in together(stop_one, folder):
        assert said.startswith("True Training was stopped after step 3 of 5. Resume from")


def spoil_one(team: Team, folder: Path) -> str:
    plan = plan_for(SHARED)
    plan = replace(plan, steps=torch.tensor([[0, 1], [1, 0], [0, 3], [1, 2], [0, 1]]))
    plan.latents[3].fill_(float("nan"))
    try:
        train(tiny_unet(), plan, SHARED, checkpoint=folder / "run.safetensors", team=team)
    except NonFiniteLoss as error:
        return str(error)
    return "went on"


def test_a_loss_that_is_no_number_in_one_stops_both_with_its_sample(folder: Path) -> None:
    for said in together(spoil_one, folder):
        assert "nan at step 3, with photo 3." in said and "2 steps before is kept in" in said


def other_settings(team: Team, folder: Path) -> str:
    config = SHARED.but(learning_rate=1e-3 * (team.rank + 1))
    try:
        train(tiny_unet(), plan_for(config), config, team=team)
    except BrokenTeam as error:
        return str(error)
    return "went on"


def test_processes_of_other_settings_do_not_train(folder: Path) -> None:
    assert all("different photos, settings or base models" in said for said in together(other_settings, folder))


def test_batches_that_cannot_be_shared_evenly_are_refused() -> None:
    config: Any = SHARED.but(accumulation=3)
    with pytest.raises(BadRun, match="2 processes cannot share 3 batches.*multiple of 2"):
        train(tiny_unet(), plan_for(config), config, team=Team(0, 2))


def test_the_launcher_trains_what_one_process_with_twice_the_batches_would(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path
) -> None:
    train = ("-m", "mudi_core", "train", str(drawn_dataset), "--base", "mini", "--steps", "2", "--batch", "2", "--out")
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, command, more in (("two", launch, ()), ("one", (), ("--accumulation", "2"))):
        file = str(tmp_path / f"{name}.safetensors")
        run = subprocess.run(
            [sys.executable, *command, *train, file, *more], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-5)
    assert any(value.abs().max() > 1e-4 for key, value in one.items() if "lora_up" in key)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]
