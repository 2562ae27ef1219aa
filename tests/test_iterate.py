"""Iterative training: the best pictures are chosen soundly, and rounds go on, stop and resume as they should."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_fuse_job import tensors
from test_nothing_is_lost import posix, with_full_disk
from torch import Tensor

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.cli import main
from mudi_core.jobs.best_pictures import (
    BadPictures,
    Best,
    BestConfig,
    InMemory,
    NoneSound,
    Paint,
    Tried,
    as_subjects,
    asked,
    best_of,
    best_pictures,
)
from mudi_core.jobs.iterate import CannotIterate, IterateConfig, Round, iterate
from mudi_core.jobs.picture_shelf import LIST, FolderShelf
from mudi_core.jobs.train import LoraFiles, whole_of
from mudi_core.jobs.unfinished import InUse, how_it_begins, unfinished
from mudi_core.lora.file import save_lora
from mudi_core.lora.reading import Lora, read_lora
from mudi_core.types import Comparison, Detections, SubjectSet, Verdict

SIDE = 32


def tried(number: int, score: float, prompt: str = "p") -> Tried:
    return Tried(number, prompt, number, score, 2, 2, ((0.0, 0.0, 8.0, 8.0),) * 2, torch.zeros(SIDE, SIDE, 3))


def found(score: float, figures: int = 2, themselves: int = 2) -> Comparison:
    xyxy = torch.tensor([[2.0, 2.0, 6.0, 12.0], [8.0, 2.0, 12.0, 12.0], [1.0, 1.0, 2.0, 2.0]])[:figures]
    verdicts = tuple(Verdict("ab"[i], "found" if i < themselves else "mixed", 1.0, "") for i in range(2))
    seen = Detections(xyxy, torch.ones(figures), ("cat",) * figures, 0.9)
    return Comparison(("a", "b"), score, score, torch.eye(2), torch.zeros(figures, 2), seen, verdicts)


class World:
    """Pictures whose brightness says how they will be judged."""

    def __init__(self, *results: Comparison) -> None:
        self.results, self.painted = results, list[tuple[str, int]]()

    def paint(self, prompt: str, seed: int) -> Tensor:
        self.painted.append((prompt, seed))
        return torch.full((SIDE, SIDE, 3), (len(self.painted) - 1) % len(self.results) / 100)

    def judge(self, pictures: Sequence[Tensor]) -> list[Comparison]:
        return [self.results[round(float(one[0, 0, 0]) * 100)] for one in pictures]


def test_the_best_are_kept_and_only_so_many_of_a_prompt() -> None:
    every = [tried(0, 0.9, "x"), tried(1, 0.8, "x"), tried(2, 0.7, "x"), tried(3, 0.2, "y"), tried(4, 0.6, "y")]
    assert [one.number for one in best_of(every, keep=3, per_prompt=2)] == [0, 1, 4]
    assert [one.number for one in best_of(every, keep=10, per_prompt=10)] == [0, 1, 2, 3, 4]


def test_forgetting_as_it_goes_keeps_what_choosing_at_the_end_would() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(60, generator=generator).tolist()
    every = [tried(i, score, "xyz"[i % 3 if i < 40 else 0]) for i, score in enumerate(scores)]
    kept: list[Tried] = []
    for one in every:
        kept = best_of([*kept, one], 10, 4)
    assert [one.number for one in kept] == [one.number for one in best_of(every, 10, 4)]


def test_only_pictures_with_everybody_as_itself_are_kept(drawn_subjects: SubjectSet) -> None:
    world = World(found(0.5), found(0.9, themselves=1), found(0.95, figures=3), found(0.7))
    config = BestConfig(("x", "y"), count=8, keep=3, per_prompt=2, least=2)
    shelf = InMemory()
    best = best_pictures(config, drawn_subjects, world.paint, world.judge, shelf)
    assert (best.tried, best.sound) == (8, 4) and "4 of 8 pictures" in best.words
    assert [one.score for one in best.kept] == [0.5, 0.7, 0.7]
    assert world.painted == asked(config.prompts, 8, 0) and len({seed for _, seed in world.painted}) == 8
    made = as_subjects(best, drawn_subjects, shelf)
    assert made.tokens == drawn_subjects.tokens
    photos = [photo for one in made for photo in one.photos]
    assert sorted(photo.caption for photo in photos) == sorted(one.prompt for one in best.kept)
    mask = made.subjects[0].masks[0]
    assert mask[5, 3] == mask[5, 10] == 1 and mask[31, 31] == mask[0, 0] == 0


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([found(0.0, figures=3)], "None of 6 pictures.*6 do not show 2 figures.*higher gamma.*Or make more pictures"),
        ([found(0.1, themselves=1)], "in 6 not everybody is itself. In most somebody is mixed.*train the first LoRA"),
        ([found(0.9)] + [found(0.1, themselves=0)] * 5, "Only 1 of 6 pictures.*and 2 are needed"),
    ],
)
def test_too_few_sound_pictures_are_told_with_what_to_change(
    drawn_subjects: SubjectSet, results: list[Comparison], message: str
) -> None:
    world = World(*results)
    with pytest.raises(NoneSound, match=message):
        best_pictures(
            BestConfig(("x",), count=6, keep=3, least=2), drawn_subjects, world.paint, world.judge, InMemory()
        )


@pytest.mark.parametrize(
    "settings", [{"prompts": ()}, {"count": 0}, {"keep": 0}, {"per_prompt": -1}, {"least": 0}, {"least": 51}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadPictures):
        BestConfig(**{"prompts": ("x",), **settings})


def test_prompts_to_check_with_are_others_than_those_to_learn_from() -> None:
    for settings in ({"fresh": ()}, {"fresh": ("x",)}, {"fresh": ("y",), "checks": 1}, {"fresh": ("y",), "rounds": 0}):
        with pytest.raises(BadPictures):
            IterateConfig(BestConfig(("x",)), **settings)  # type: ignore[arg-type]


def test_a_round_improves_by_more_than_its_standard_error() -> None:
    before = Round(0, Path(), (0.1, 0.5, 0.3, 0.7), 0.5)
    assert replace(before, scores=(0.3, 0.7, 0.5, 0.9)).gain(before) == pytest.approx((0.2, 0.0))
    assert replace(before, scores=(0.3, 0.7, 0.5, 0.9)).improves(before)
    assert not before.improves(before)
    gain, error = replace(before, scores=(0.9, 0.1, 0.3, 0.7)).gain(before)
    assert gain == pytest.approx(0.1) and error == pytest.approx(0.25166, rel=1e-3)


# ------------------------------------------------------------------------------------------------ the folder


def test_a_shelf_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    shelf = FolderShelf(tmp_path)
    image = torch.rand(SIDE, SIDE, 3)
    kept = shelf.add(replace(tried(0, 0.5), image=image), True)
    shelf.add(tried(1, 0.1), False)
    assert kept.path is not None and (shelf.image(kept) - image).abs().max() < 0.5 / 255 + 1e-6
    path = tmp_path / LIST
    path.write_text(path.read_text() + '{"number": 2, "prom')  # killed in the middle of a line
    again = FolderShelf(tmp_path)
    assert again.get(0, "p", 0) is not None and again.get(1, "p", 1) is not None and again.get(2, "p", 2) is None
    assert again.get(0, "q", 0) is None and again.get(0, "p", 7) is None
    again.add(tried(2, 0.2), False)
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [0, 1, 2]
    kept.path.unlink()
    assert FolderShelf(tmp_path).get(0, "p", 0) is None


@posix
def test_a_full_disk_is_told_and_nothing_is_painted_twice(tmp_path: Path, drawn_subjects: SubjectSet) -> None:
    config = BestConfig(("x",), count=4, keep=2, least=1)

    def work(world: World) -> Best:
        return best_pictures(config, drawn_subjects, world.paint, world.judge, FolderShelf(tmp_path))

    told = with_full_disk(lambda: work(World(found(0.5))) and None, 100)  # type: ignore[func-returns-value]
    assert told.startswith("CannotWriteShelf: Pictures cannot be written to") and "goes on with what is there" in told
    world = World(found(0.5))
    assert work(world).sound == 4 and len(world.painted) <= 4
    again = World(found(0.5))
    assert work(again).sound == 4 and not again.painted


def test_a_stopped_run_is_in_use_by_one_and_says_from_where_it_goes_on(
    tmp_path: Path, drawn_subjects: SubjectSet
) -> None:
    """Of the shelf, until it is moved to its own name."""
    world, root, made_of = World(found(0.5)), tmp_path / "stopped", {"model": "a", "seed": 1}
    config = BestConfig(("x",), count=4, keep=4, least=2)
    said: list[str] = []

    @contextmanager
    def progress(what: str) -> Iterator[Any]:
        yield lambda done, total, words="": said.append(words)

    def cancelled(prompt: str, seed: int) -> Tensor:
        if len(world.painted) == 2:
            raise InterruptedError
        return world.paint(prompt, seed)

    with pytest.raises(InterruptedError), unfinished(root, made_of) as shelf:
        with pytest.raises(InUse, match="in another process"), unfinished(root, made_of):
            pass
        best_pictures(config, drawn_subjects, cancelled, world.judge, shelf, progress)
    with unfinished(root, {**made_of, "seed": 2}) as shelf:
        assert how_it_begins(shelf, {**made_of, "seed": 2}).endswith("has other seed")
    with unfinished(root, made_of) as shelf:
        assert how_it_begins(shelf, made_of) == "going on from picture 3"
        best = best_pictures(config, drawn_subjects, world.paint, world.judge, shelf, progress)
        shelf.move(tmp_path / "best")
        assert torch.equal(shelf.image(best.kept[0]), torch.zeros(SIDE, SIDE, 3)) and len(world.painted) == 4
    assert said == ["", "", *["going on from picture 3"] * 4]
    assert len(list(root.glob("*/"))) == 1 and len(list((tmp_path / "best").glob("*.png"))) == 4


# ------------------------------------------------------------------------------------------------ rounds


LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def write_lora(path: Path, value: float) -> None:
    up, down = torch.full((4, 1), value), torch.ones(1, 4)
    save_lora(path, {f"{LAYER}.lora_up.weight": up, f"{LAYER}.lora_down.weight": down}, {})


class Fake:
    """Pictures as good as the LoRA's value; training adds what is given for each round."""

    def __init__(self, *gains: float, dies: int = 0) -> None:
        self.gains, self.dies = list(gains), dies
        self.trained, self.painted, self.value = 0, 0, 0.0

    @contextmanager
    def wearing(self, lora: Lora) -> Iterator[Paint]:
        self.value = float(lora.changes[LAYER].parts["lora_up.weight"][0, 0])
        yield self.paint

    def paint(self, prompt: str, seed: int) -> Tensor:
        self.painted += 1
        if self.dies and self.painted == self.dies:
            raise InterruptedError
        return torch.full((SIDE, SIDE, 3), min(1.0, max(0.0, self.value + 0.01 * (seed % 5))))

    def judge(self, pictures: Sequence[Tensor]) -> list[Comparison]:
        return [found(float(one[0, 0, 0])) for one in pictures]

    def train(self, subjects: SubjectSet, on: Lora, files: LoraFiles, seed: int) -> None:
        assert files.lora is not None
        if whole_of(files.lora).exists():
            return
        self.trained += 1
        value = float(on.changes[LAYER].parts["lora_up.weight"][0, 0]) + self.gains[int(files.lora.parent.name[-1]) - 1]
        write_lora(files.lora, value)
        write_lora(whole_of(files.lora), value)


CONFIG = IterateConfig(BestConfig(("x", "y"), count=6, keep=4, least=2), fresh=("z",), checks=4, rounds=3)


def go(model: Fake, tmp_path: Path, subjects: SubjectSet, **more: Any) -> Any:
    first = tmp_path / "first.safetensors"
    if not first.exists():
        write_lora(first, 0.2)
    made_of = {"base": "fake", **more.pop("made_of", {})}
    return iterate(first, subjects, model, model.judge, replace(CONFIG, **more), tmp_path / "out", made_of)


def test_it_goes_on_while_it_improves(tmp_path: Path, drawn_subjects: SubjectSet) -> None:
    model = Fake(0.1, 0.2, 0.1)
    done = go(model, tmp_path, drawn_subjects)
    assert [round(one.mean - done.rounds[0].mean, 2) for one in done.rounds] == [0.0, 0.1, 0.3, 0.4]
    assert (done.best.number, done.stopped, model.trained) == (3, False, 3)
    best = read_lora(tmp_path / "out" / "best.safetensors")
    assert float(best.changes[LAYER].parts["lora_up.weight"][0, 0]) == pytest.approx(0.6, abs=1e-3)
    rows = json.loads((tmp_path / "out" / "iterate.json").read_text())
    assert [row["round"] for row in rows] == [0, 1, 2, 3] and rows[1]["kept"] == 4 and rows[1]["sound"] == 6


@pytest.mark.parametrize(("gains", "rounds", "best"), [((0.1, 0.0), 2, 1), ((-0.1,), 1, 0), ((0.1, -0.2), 2, 1)])
def test_it_stops_by_itself_and_keeps_the_best(
    tmp_path: Path, drawn_subjects: SubjectSet, gains: tuple[float, ...], rounds: int, best: int
) -> None:
    done = go(Fake(*gains), tmp_path, drawn_subjects)
    assert (len(done.rounds) - 1, done.best.number, done.stopped) == (rounds, best, True)
    assert (tmp_path / "out" / "best.safetensors").exists()


@pytest.mark.parametrize("dies", [1, 3, 7, 12, 20])
def test_stopped_anywhere_it_goes_on_to_the_same_and_paints_nothing_twice(
    tmp_path: Path, drawn_subjects: SubjectSet, dies: int
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = Fake(0.1, 0.2, 0.0)
    wanted = go(straight, tmp_path / "a", drawn_subjects)
    model = Fake(0.1, 0.2, 0.0, dies=dies)
    with pytest.raises(InterruptedError):
        go(model, tmp_path / "b", drawn_subjects)
    done = go(model, tmp_path / "b", drawn_subjects)
    assert [one.scores for one in done.rounds] == [one.scores for one in wanted.rounds]
    assert (model.painted - 1, model.trained) == (straight.painted, straight.trained)
    again = Fake(9.0)
    assert [one.scores for one in go(again, tmp_path / "b", drawn_subjects).rounds] == [
        one.scores for one in wanted.rounds
    ]
    assert again.painted == again.trained == 0


def test_a_folder_of_another_iteration_is_refused(tmp_path: Path, drawn_subjects: SubjectSet) -> None:
    go(Fake(0.0), tmp_path, drawn_subjects)
    with pytest.raises(CannotIterate, match="holds an iteration with other base"):
        go(Fake(0.0), tmp_path, drawn_subjects, made_of={"base": "another"})
    with pytest.raises(CannotIterate, match="holds an iteration with other settings"):
        go(Fake(0.0), tmp_path, drawn_subjects, checks=5)
    write_lora(tmp_path / "first.safetensors", 0.3)
    with pytest.raises(CannotIterate, match="holds an iteration with other lora"):
        go(Fake(0.0), tmp_path, drawn_subjects)


def test_before_the_first_training_more_pictures_can_be_asked_for(tmp_path: Path, drawn_subjects: SubjectSet) -> None:
    few = Fake(0.1)
    with pytest.raises(NoneSound):
        go(few, tmp_path, drawn_subjects, pictures=replace(CONFIG.pictures, least=4, keep=4, count=3))
    model = Fake(0.1, 0.0, 0.0)
    with pytest.raises(CannotIterate, match="other settings"):
        go(model, tmp_path, drawn_subjects, pictures=replace(CONFIG.pictures, seed=1))
    go(model, tmp_path, drawn_subjects, made_of={"training": 2}, rounds=1)
    assert few.painted == 4 + 3 and model.painted == 3 + 4
    with pytest.raises(CannotIterate, match="other training"):
        go(model, tmp_path, drawn_subjects, made_of={"training": 1}, rounds=1)
    with pytest.raises(CannotIterate, match="other pictures to choose from"):
        go(model, tmp_path, drawn_subjects, made_of={"training": 2}, pictures=replace(CONFIG.pictures, count=7))


def test_more_rounds_can_be_asked_for_later(tmp_path: Path, drawn_subjects: SubjectSet) -> None:
    model = Fake(0.1, 0.2, 0.0)
    assert go(model, tmp_path, drawn_subjects, rounds=1).best.number == 1
    done = go(model, tmp_path, drawn_subjects)
    assert (len(done.rounds) - 1, done.best.number, model.trained) == (3, 2, 3)


def test_every_picture_of_a_check_can_be_looked_at(tmp_path: Path, drawn_subjects: SubjectSet) -> None:
    go(Fake(-1.0), tmp_path, drawn_subjects)
    for number in (0, 1):
        assert len(list((tmp_path / "out" / f"check-{number}").glob("*.png"))) == CONFIG.checks


def test_the_command_iterates_on_the_embedded_model(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its real parts; whether everybody is itself is not asked of an untrained LoRA."""
    mini = open_checkpoint("mini")
    small = {key: 0.01 * value if key.endswith("weight") else value for key, value in tensors(mini, 1).items()}
    about = {"mudi_tokens": '["olis", "hta"]', "mudi_class_nouns": '["cat", "cat"]'}
    save_file(small, tmp_path / "two.safetensors", about)
    command = ["iterate", str(drawn_dataset), "--base", "mini", "--lora", str(tmp_path / "two.safetensors")]
    command += ["--out", str(tmp_path / "out"), "--picture-steps", "2", "--checks", "2", "--count", "3", "--keep", "2"]
    command += ["--least", "2", "--steps", "1", "--batch", "1", "--rank", "2", "--rounds", "1"]
    assert main(command) == 1
    assert "of 3 pictures show every subject as itself, and 2 are needed" in capsys.readouterr().err
    pictures = tmp_path / "out" / "round-1" / "pictures"
    rows = [json.loads(row) for row in (pictures / LIST).read_text().splitlines()]
    assert len(rows) == 3 and all("olis cat and hta cat" in row["prompt"] for row in rows)
    for number, row in enumerate(rows):  # as if everybody were there
        row |= {"file": f"{number:04d}.png", "themselves": 2, "boxes": [[20, 40, 80, 160], [100, 40, 170, 160]]}
        Image.new("RGB", (192, 192), (90, 60 * number, 120)).save(pictures / row["file"])
    (pictures / LIST).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["kept"] for one in answer["rounds"]] == [0, 2] and Path(answer["lora"]).exists()
    whole = read_lora(tmp_path / "out" / "round-1" / "lora-whole.safetensors")
    config = json.loads(whole.about["mudi_config"])
    assert (config["segmix_prob"], config["kl_weight"], config["dco_beta"]) == (0.0, 1.0, 0.0)
    assert [one["file"] for one in json.loads(whole.about["mudi_parents"])] == ["two.safetensors", "lora.safetensors"]
    assert main([*command, "--rank", "3"]) == 1
    assert "holds an iteration with other training" in capsys.readouterr().err
