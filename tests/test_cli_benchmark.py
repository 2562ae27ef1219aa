"""The benchmark: a spec becomes cells, each done once by whoever comes first, and they become a table and a page."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mudi_core.bases.tokens import load_token, save_token
from mudi_core.benchmark import page as pages
from mudi_core.benchmark import run as work
from mudi_core.benchmark import trained as learned
from mudi_core.benchmark.methods import METHODS
from mudi_core.benchmark.page import _published
from mudi_core.benchmark.results import OtherSpec, Result, Results
from mudi_core.benchmark.run import Worker
from mudi_core.benchmark.spec import BadSpec, Cell, Judges, Spec
from mudi_core.benchmark.spec_file import read_spec
from mudi_core.benchmark.table import COLUMNS, nested, paired, summary, table
from mudi_core.cli import main
from mudi_core.eyes import embedded as eyes
from mudi_core.report.chart import Bar, bar_chart
from mudi_core.report.statistics import hierarchical_interval, hierarchical_means, smallest_seen
from mudi_core.toy.pairs import drawn
from mudi_core.toy.world import PAIRS
from mudi_core.train.config import SETTINGS as TRAIN_SETTINGS
from mudi_core.types import Comparison, Detections, SubjectSet, Verdict

SPECS = Path(__file__).parent.parent / "benchmarks"
FAST = """
base = "mini"
methods = ["dreambooth", "segmix", "mudi"]
prompts = ["{subjects} <at> sea"]
seeds = 2
[combos]
cats = "DATASET"
[train]
steps = 1
rank = 2
batch_size = 1
resolution = 64
max_composites = 2
crops_per_photo = 1
[generate]
steps = 1
size = [64, 64]
"""


@pytest.fixture
def spec_file(drawn_dataset: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(FAST.replace("DATASET", str(drawn_dataset)))
    return path


def worker(spec: Spec, folder: Path) -> Worker:
    return Worker(Results(folder, spec), eyes.load_detector(), eyes.load_embedder())


def result(combo: str, method: str, seed: int, score: float, found: int = 2, fidelity: float | None = None) -> Result:
    boxes = Detections(torch.rand(found, 4), torch.ones(found), ("cat",) * found, 0.9)
    verdicts = tuple(
        Verdict(token, "found" if i < found else "missing", 0.9, f"{token} & co")
        for i, token in enumerate(("olis", "hta"))
    )
    s_gt = torch.eye(2)
    compared = Comparison(("olis", "hta"), score, score / 2, s_gt, torch.rand(found, 2), boxes, verdicts)
    return Result(Cell(combo, method, 0, seed), compared, fidelity)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("embedded", 6 * 6 * 4 * 16),
        ("embedded_quick", 6 * 6 * 4),
        ("held_out", 12 * 3 * 7 * 4 * 8),
        ("several_alike", 4 * 3 * 4 * 2 * 8),
        ("several_different", 4 * 3 * 4 * 2 * 8),
        ("rivals", 6 * 4 * 8 * (2 * 19 + 4)),
        ("paper", 8 * 7 * 5 * 10),
        ("official", 8 * 7 * 5 * 10),
    ],
)
def test_the_specs_that_ship_are_whole(name: str, cells: int) -> None:
    spec = read_spec(SPECS / f"{name}.toml")
    assert len(spec.cells()) == cells == len(set(spec.cells()))
    for method in spec.methods:
        steps = spec.steps_of.get(method) or spec.train_config("mudi", 1024).samples.steps
        assert spec.train_config(method, 1024).samples.steps == steps
    assert spec.methods[-1] == "mudi"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('base = "mini"', ""), "does not say 'base'"),
        (('base = "mini"', 'base = "mini'), "is not TOML"),
        (('"mudi"', '"magic"'), "no method 'magic'"),
        (("seeds = 2", "seeds = 0"), "seeds and trainings are 1 or more"),
        (("seeds = 2", "seeds = 2\nspeed = 3"), "no 'speed'"),
        (("{subjects}", "cats"), "has no {subjects}"),
        (("rank = 2", "ranks = 2"), r"\[train\] has no 'ranks'"),
        (("rank = 2", 'method = "cutmix"'), r"\[train\] has no 'method'"),
        (("\nsize = ", "\nsizes = "), r"\[generate\] has no 'sizes'"),
        (("cats = ", '"../cats" = '), "cannot be the name of a combo"),
        (("[train]", "[judges]\nmood = 1\n[train]"), r"\[judges\] has no 'mood'"),
    ],
)
def test_a_spec_with_a_mistake_is_told_in_a_sentence(change: tuple[str, str], words: str, spec_file: Path) -> None:
    spec_file.write_text(spec_file.read_text().replace(*change))
    with pytest.raises(BadSpec, match=words):
        read_spec(spec_file)


CAST = "[casts.three]\nsubjects = 3\nalike = true\ncount = 2\n[judges]"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("alike = true\n", "", r"\[casts.three\] does not say 'alike'"),
        ("alike = true", "alike = 1", "alike is 1; it must be true or false"),
        ("subjects = 3", "subjects = 6", "subjects is 2 to 5"),
        ("count = 2", "count = 0", "count 1 or more"),
        ("count = 2", "count = 60", "'three 30' cannot be drawn: 100 characters give"),
        ("pairs_seed = 2026\n", "", "need a 'pairs_seed'"),
    ],
)
def test_a_cast_with_a_mistake_is_told_in_a_sentence(before: str, after: str, words: str, tmp_path: Path) -> None:
    text = (SPECS / "held_out.toml").read_text().replace("[judges]", CAST)
    (tmp_path / "spec.toml").write_text(text)
    three = read_spec(tmp_path / "spec.toml").characters("three 1")
    assert len(three) == 3 and len({one.class_noun for one in three}) == 1
    (tmp_path / "spec.toml").write_text(text.replace(before, after))
    with pytest.raises(BadSpec, match=words):
        read_spec(tmp_path / "spec.toml")


def test_a_spec_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"gone.toml cannot be read"):
        read_spec(tmp_path / "gone.toml")


def test_rivals_share_steps_seed_and_noise(drawn_subjects: SubjectSet) -> None:
    small = read_spec(SPECS / "embedded.toml")
    spec = replace(small, methods=tuple(METHODS), general_nouns=dict.fromkeys(small.combos, "animal"))
    trained = [spec.train_config(method, 192) for method in METHODS]
    assert (
        len(
            {
                (config.samples.steps, config.samples.seed, config.learning.rank, config.learning.learning_rate)
                for config in trained
            }
        )
        == 1
    )
    overlaps = {method: config.samples.layout.max_overlap for method, config in zip(METHODS, trained, strict=True)}
    assert [method for method, overlap in overlaps.items() if overlap != 0.2] == ["apart"] and overlaps["apart"] == 0
    made = {method: spec.generate_config(Cell("cats", method, 1, 7), drawn_subjects) for method in METHODS}
    assert {(config.seed, config.steps, config.guidance, config.count) for config in made.values()} == {(7, 20, 5.0, 1)}
    started = {method for method, config in made.items() if config.gamma > 0}
    assert started == {"apart", "general", "dco", "mudi", *(name for name in METHODS if name.endswith("_start"))}
    shared = {name for name, rival in METHODS.items() if rival.wears or rival.singles or rival.residual} | {"segmix"}
    assert len({rival.lora for name, rival in METHODS.items() if name not in shared}) == len(METHODS) - len(shared)
    assert METHODS["segmix"].lora == METHODS["mudi"].lora and METHODS["regions"].lora == METHODS["dreambooth"].lora


def test_only_the_method_without_descriptive_class_calls_subjects_otherwise(drawn_subjects: SubjectSet) -> None:
    small = read_spec(SPECS / "embedded.toml")
    with pytest.raises(BadSpec, match="does not say what the subjects of 'bears' all are"):
        replace(small, methods=("general",))
    spec = replace(small, methods=tuple(METHODS), general_nouns=dict.fromkeys(small.combos, "animal"))
    for method in METHODS:
        noun = "animal" if method == "general" else "cat"
        cell = Cell("cats", method, 1, 0)
        named = "a cat and a cat" if METHODS[method].by_noun else f"olis {noun} and hta {noun}"
        assert spec.generate_config(cell, drawn_subjects).prompt == f"a photo of {named} in the meadow"
        assert {subject.class_noun for subject in spec.as_named(cell, drawn_subjects)} == {noun}


def test_what_a_paper_has_printed_stands_apart_and_changes_no_result(spec_file: Path) -> None:
    spec = read_spec(SPECS / "paper.toml")
    assert spec.published["mudi"] == {"D&C-DS": 0.637, "D&C-DINO": 0.61, "ImageReward": 0.77, "CLIPs": 0.263}
    assert set(spec.published) <= set(spec.methods) | {"general"}
    shown = _published(spec)
    assert "D&amp;C-DS" in shown and "0.637" in shown and "Not made here" in shown and "–" in shown
    assert _published(replace(spec, published={})) == ""
    assert replace(spec, published={}).as_json() == spec.as_json()
    with pytest.raises(BadSpec, match=r"\[published\] has 'magic', which is no method"):
        replace(spec, published={"magic": {"D&C": 1.0}})


def test_trainings_have_seeds_and_files_of_their_own(spec_file: Path, tmp_path: Path) -> None:
    spec = replace(read_spec(spec_file), trainings=3)
    assert len(set(spec.cells())) == len(spec.cells()) == 3 * len(replace(spec, trainings=1).cells())
    seeds = [spec.train_config("segmix", 192, training).samples.seed for training in range(3)]
    assert seeds == [spec.seed, spec.seed + 1, spec.seed + 2]
    with pytest.raises(BadSpec, match="seeds and trainings are 1 or more"):
        replace(spec, trainings=0)
    results = Results(tmp_path / "out", replace(spec, trainings=1))  # a folder of earlier, with one training
    one = result("cats", "mudi", 0, 0.5)
    results.add(one, torch.zeros(8, 8, 3))
    more = Results(tmp_path / "out", spec)
    assert [more.is_done(one.cell._replace(training=training)) for training in range(3)] == [True, False, False]
    parts = Worker(more, eyes.load_detector(), eyes.load_embedder())._open_parts()
    assert {"cats/segmix", "cats/segmix-2", "cats/segmix-3"} <= parts.keys()


def test_the_papers_spec_is_the_papers_and_the_official_one_the_codes() -> None:
    paper, official = (read_spec(SPECS / f"{name}.toml") for name in ("paper", "official"))
    losses = [one.train_config("segmix", 1024).learning.dco_beta for one in (paper, official)]
    assert (losses, paper.priors, official.priors) == ([0.0, 1000.0], 50, 0)
    for one in (paper, official):
        steps = [one.train_config(method, 1024, combo="combo_1").samples.steps for method in ("dreambooth", "segmix")]
        assert steps == [1000, 1200] and one.judges.matching == "in order"
    harder = replace(paper, steps_of={"dreambooth": 1000, "combo_1": 1600})
    steps = [harder.train_config(method, 1024, combo="combo_1").samples.steps for method in ("dreambooth", "segmix")]
    assert steps == [1000, 1600]
    with pytest.raises(BadSpec, match=r"\[steps_of\] has magic = 5"):
        replace(paper, steps_of={"magic": 5})


def test_priors_are_made_once_and_trained_on(
    random_mini: None, spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = [], []

    def make(subjects: SubjectSet, *_: Any) -> SubjectSet:
        made.append(subjects.tokens)
        return subjects

    train = learned.train_lora
    monkeypatch.setattr(work, "make_priors", make)
    monkeypatch.setattr(
        learned, "train_lora", lambda training, *a, **k: (seen.append(training), train(training, *a, **k))
    )
    spec = replace(read_spec(spec_file), methods=("dreambooth", "mudi"), seeds=1, priors=2)
    results = Results(tmp_path / "out", spec)
    Worker(results, eyes.load_detector(), eyes.load_embedder(), segmenter=eyes.load_segmenter()).run()
    assert len(made) == 1 and (tmp_path / "out" / "cats" / "priors" / "metadata.jsonl").is_file()
    assert len(seen) == 2 and all(one.priors is not None and one.priors.tokens == made[0] for one in seen)
    with pytest.raises(OtherSpec, match="priors differ"):
        Results(tmp_path / "out", replace(spec, priors=0))


def test_pairs_that_a_seed_draws_take_the_place_of_the_built_in_ones(tmp_path: Path) -> None:
    text = (SPECS / "embedded.toml").read_text()
    (tmp_path / "spec.toml").write_text(text)
    plain, by_seed = read_spec(tmp_path / "spec.toml"), read_spec(tmp_path / "spec.toml", pairs_seed=7)
    assert plain.characters("dogs") == PAIRS[2] and by_seed.characters("dogs") == drawn(7, 5)[2]
    Results(tmp_path / "out", plain)
    with pytest.raises(OtherSpec, match="pairs_seed differ"):
        Results(tmp_path / "out", by_seed)
    (tmp_path / "spec.toml").write_text(text.replace("cats = 0", "cats = 6"))
    with pytest.raises(BadSpec, match="there is no pair 6; there are 0 to 5"):
        read_spec(tmp_path / "spec.toml")
    assert read_spec(tmp_path / "spec.toml", pairs_seed=0).pairs_seed == 0


def test_a_cell_is_read_as_it_was_written(spec_file: Path, tmp_path: Path) -> None:
    results = Results(tmp_path / "out", read_spec(spec_file))
    alike = replace(result("cats", "mudi", 0, 0.5, fidelity=0.2), similarities=(0.25, 0.5), places=PLACES)
    for one in (alike, result("cats", "mudi", 1, 0.0, found=0)):
        assert not results.is_done(one.cell)
        image = (torch.rand(64, 64, 3) * 255).round() / 255
        results.add(one, image)
        assert results.is_done(one.cell) and torch.allclose(results.image(one.cell), image)
        again = results.read(one.cell)
        assert again.similarities == one.similarities and again.places == one.places
        assert (again.cell, again.text_fidelity, again.success) == (one.cell, one.text_fidelity, one.success)
        ours, theirs = one.comparison, again.comparison
        assert (ours.tokens, ours.score, ours.verdicts) == (theirs.tokens, theirs.score, theirs.verdicts)
        assert torch.equal(ours.s_dc, theirs.s_dc) and torch.equal(ours.detections.xyxy, theirs.detections.xyxy)
    assert not list(tmp_path.rglob("*.part"))


def test_results_of_another_spec_are_refused(spec_file: Path, tmp_path: Path) -> None:
    spec = read_spec(spec_file)
    Results(tmp_path / "out", spec)
    Results(tmp_path / "out", spec)
    Results(tmp_path / "out", replace(spec, name="more", seeds=3, methods=("mudi", "cutmix")))
    with pytest.raises(OtherSpec, match="another spec: prompts, seed differ"):
        Results(tmp_path / "out", replace(spec, seed=3, prompts=("{subjects}",)))


def test_a_claim_keeps_others_out_and_ends_with_its_process(spec_file: Path, tmp_path: Path) -> None:
    results = Results(tmp_path / "out", read_spec(spec_file))
    with results.claimed("cats/segmix") as ours, results.claimed("cats/segmix") as theirs:
        assert ours and not theirs
    script = f"""
import sys, time
from pathlib import Path
from mudi_core.lock import claimed
with claimed(Path({str(tmp_path / "out" / ".cats.segmix.lock")!r})):
    print("claimed", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "claimed\n"
    with results.claimed("cats/segmix") as ours:
        assert not ours
    other.kill()
    other.wait()
    results.sweep()
    assert not list(results.folder.glob(".*"))
    with results.claimed("cats/segmix", wait=True) as ours:
        results.sweep()
        assert ours and [path.name for path in results.folder.glob(".*")] == [".cats.segmix.lock"]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often LoRAs were trained and pictures made."""
    done: Counter[str] = Counter()
    train_lora, generate = learned.train_lora, work.generate

    def counted_train(*about: Any, **more: Any) -> Any:
        done["trained"] += 1
        return train_lora(*about, **more)

    def counted_generate(*about: Any, **more: Any) -> Iterator[Any]:
        done["pictures"] += 1
        if done["pictures"] == done["killed at"]:
            raise MemoryError
        return generate(*about, **more)

    monkeypatch.setattr(learned, "train_lora", counted_train)
    monkeypatch.setattr(work, "generate", counted_generate)
    return done


def test_what_was_killed_goes_on_and_nothing_is_done_twice(
    random_mini: None, spec_file: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    spec = read_spec(spec_file)
    worker(spec, tmp_path / "whole").run()
    assert (counted["trained"], counted["pictures"]) == (2, 6)  # Seg-Mix and MuDI share a LoRA

    counted.clear()
    counted["killed at"] = 4
    with pytest.raises(MemoryError):
        worker(spec, tmp_path / "out").run()
    worker(spec, tmp_path / "out").run()
    assert (counted["trained"], counted["pictures"]) == (2, 6 + 1)
    worker(spec, tmp_path / "out").run()
    assert (counted["trained"], counted["pictures"]) == (2, 6 + 1)

    whole, out = (Results(tmp_path / name, spec) for name in ("whole", "out"))
    for cell in spec.cells():
        assert torch.equal(whole.image(cell), out.image(cell))
        assert whole.read(cell).comparison.score == out.read(cell).comparison.score


def test_rivals_that_learn_tokens_leave_files_that_others_read(
    random_mini: None, spec_file: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    spec = replace(read_spec(spec_file), methods=("textual_inversion", "custom_diffusion"), seeds=1)
    out = tmp_path / "out"
    worker(spec, out).run()
    embeddings = {f"{method}.{token}.safetensors" for method in spec.methods for token in ("olis", "hta")}
    assert {path.name for path in out.rglob("*.safetensors")} == embeddings | {"custom_diffusion.safetensors"}
    first = load_token(out / "cats" / "textual_inversion.olis.safetensors")
    assert {name: vector.shape for name, vector in first.items()} == {"clip_l": (1, 96), "clip_g": (1, 160)}

    # What lies there is what pictures are made with, and nothing is trained again for more of them.
    worker(replace(spec, seeds=2), out).run()
    assert counted["trained"] == 2 and counted["pictures"] == 4
    cell = Cell("cats", "textual_inversion", 0, 0)
    again = tmp_path / "again"
    shutil.copytree(out, again, ignore=shutil.ignore_patterns("*.png", "*.json"))
    worker(spec, again).run()
    assert torch.equal(Results(again, spec).image(cell), Results(out, spec).image(cell))
    shutil.rmtree(again / "cats" / "textual_inversion")
    save_token(
        again / "cats" / "textual_inversion.olis.safetensors", {name: vector + 1 for name, vector in first.items()}, {}
    )
    worker(spec, again).run()
    assert not torch.equal(Results(again, spec).image(cell), Results(out, spec).image(cell))
    assert counted["trained"] == 2


def test_one_worker_waits_for_what_another_has(
    random_mini: None, spec_file: Path, tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other dies with half its part done: the one that waited does the rest."""
    spec = read_spec(spec_file)
    results = Results(tmp_path / "out", spec)
    claimed, waited = Results.claimed, []

    def busy(self: Results, name: str, wait: bool = False) -> Any:
        if wait:
            waited.append(name)
        if name == "cats/dreambooth" and not waited:
            return claimed_by_another()
        return claimed(self, name, wait)

    from contextlib import contextmanager

    @contextmanager
    def claimed_by_another() -> Iterator[bool]:
        yield False

    monkeypatch.setattr(Results, "claimed", busy)
    Worker(results, eyes.load_detector(), eyes.load_embedder()).run()
    assert waited == ["cats/dreambooth"] and all(results.is_done(cell) for cell in spec.cells())
    assert counted["pictures"] == 6


def test_a_killed_process_leaves_its_work_to_the_others(mini_weights: None, spec_file: Path, tmp_path: Path) -> None:
    out, spec = tmp_path / "out", read_spec(spec_file)
    command = [sys.executable, "-m", "mudi_core", "benchmark", str(spec_file), "--out", str(out), "--device", "cpu"]
    killed, other = (
        subprocess.Popen(command, cwd=SPECS.parent, env={**os.environ, "RANK": rank}, stderr=subprocess.PIPE)
        for rank in ("1", "0")
    )
    patience = time.monotonic() + 300
    while not (there := list(out.glob("cats/*/*.json"))) and time.monotonic() < patience:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    written = {path: path.stat().st_mtime_ns for path in there}
    _, said = other.communicate(timeout=300)
    assert written and other.returncode == 0, said
    results = Results(out, spec)
    assert all(results.is_done(cell) for cell in spec.cells()) and (out / "report.html").is_file()
    assert {path: path.stat().st_mtime_ns for path in there} == written


def test_pairs_of_the_toy_world_are_drawn_and_cut_out(mini_weights: None, spec_file: Path, tmp_path: Path) -> None:
    spec = replace(read_spec(spec_file), combos={"bears": 1}, methods=("dreambooth",), seeds=1)
    one = worker(spec, tmp_path / "out")
    one.run()
    compared = one.results.read(Cell("bears", "dreambooth", 0, 0)).comparison
    assert compared.tokens == ("olis", "hta")
    assert len(list((tmp_path / "out" / "bears" / "photos").rglob("*.jpg"))) == 10
    with pytest.raises(BadSpec, match="there is no pair 99"):
        worker(replace(spec, combos={"bears": 99}), tmp_path / "other")


def test_a_report_of_what_is_there_so_far(
    random_mini: None, spec_file: Path, tmp_path: Path, counted: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["benchmark", str(spec_file), "--out", str(tmp_path / "out"), "--so-far", "--json"]
    assert main(command) == 1
    assert "no picture of this spec yet" in capsys.readouterr().err
    results = Results(tmp_path / "out", read_spec(spec_file))
    alone = result("cats", "mudi", 1, 0.25, found=1)
    alike = replace(alone, comparison=replace(alone.comparison, s_gt=torch.ones(2, 2), queries=("cat",)))
    for one in (result("cats", "segmix", 0, 0.5), result("cats", "mudi", 0, 0.75), alike):
        results.add(one, torch.rand(64, 64, 3))
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {name: numbers["count"] for name, numbers in answer["methods"].items()} == {"segmix": 1, "mudi": 2}
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.images == 3 and "3 of 6 pictures" in text and not counted
    assert "1 figure, 2 expected" in text and "– hta</span>" in text and "✓ hta 90%" in text
    assert "look alike" not in text
    for cell in (alike.cell, result("cats", "segmix", 0, 0.5).cell):
        results.add(replace(alike, cell=cell), torch.rand(64, 64, 3))
    assert results.read(alike.cell).comparison.queries == ("cat",)
    assert main(command) == 0
    assert "&#x27;olis&#x27; and &#x27;hta&#x27; look alike" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_the_command_writes_table_and_page(
    random_mini: None, spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["benchmark", str(spec_file), "--out", str(out), "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["pictures"] == 6 and set(answer["methods"]) == {"dreambooth", "segmix", "mudi"}
    rows = list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))
    assert len(rows) == 6 and tuple(rows[0]) == COLUMNS
    for method, numbers in answer["methods"].items():
        scores = [float(row["score"]) for row in rows if row["method"] == method]
        assert numbers["mean"] == pytest.approx(sum(scores) / 2, abs=1e-5)
    text = (out / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.images == 6
    assert all(link.startswith("data:image/") for link in tags.links)
    assert "&lt;at&gt;" in text and "<at>" not in text and "script" not in text
    assert main(["benchmark", str(spec_file), "--out", str(out), "--device", "cpu"]) == 0
    spec_file.write_text(spec_file.read_text().replace("rank = 2", "rank = 3"))
    assert main(["benchmark", str(spec_file), "--out", str(out), "--device", "cpu"]) == 1
    assert "results of another spec: train differ" in capsys.readouterr().err


class Tags(HTMLParser):
    """Checks that tags nest, and collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "xlink:href")]
        self.images += tag == "img"
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_summary_counts_what_the_pictures_say() -> None:
    done = [result("a", "mudi", 0, 1.0, fidelity=0.3), result("a", "mudi", 1, 0.0, found=1, fidelity=0.1)]
    one = summary(done)
    assert (one.count, one.mean, one.spectral, one.success, one.right_count) == (2, 0.5, 0.25, 0.5, 0.5)
    assert one.low == 0 and one.high == 1 and one.text_fidelity == pytest.approx(0.2)
    done[0] = replace(done[0], similarities=(0.7, 0.5))
    one = summary(done)
    assert (one.similarity, one.similarity_product) == (pytest.approx(0.6), pytest.approx(0.35))
    assert one.collapse == 0
    assert summary([result("a", "mudi", 0, 1.0)]).text_fidelity is None and one.combos_interval is None
    assert summary([result(combo, "mudi", 0, 0.5) for combo in "ab"]).combos_interval == (0.5, 0.5)
    assert table(done).splitlines()[1:] == [
        "a,mudi,0,0,0,2,2,1.000000,0.500000,1,,2,0,0,0,0,0.300000,0.600000,0.350000,,0.000000,0.000000,0.500000",
        "a,mudi,0,1,0,2,1,0.000000,0.000000,0,,1,0,0,1,0,0.100000,,,,,,",
    ]


PLACES = ((0.0, 20.0, 30.0, 60.0), (30.0, 20.0, 64.0, 60.0))


@pytest.mark.parametrize(
    ("places", "figures", "right"),
    [
        (PLACES, [[2, 2, 20, 60], [40, 2, 60, 60]], True),
        (PLACES, [[40, 2, 60, 60], [2, 2, 20, 60]], False),  # each is where the other should be
        (PLACES, [[2, 2, 20, 60], [10, 2, 30, 60]], False),  # both are left
        (PLACES, [[16, 2, 46, 60], [40, 2, 60, 60]], True),  # on the line between: as near to its own as to the other
        (PLACES, [[2, 2, 20, 60]], False),
        (PLACES, [[2, 2, 20, 60], [40, 2, 60, 60], [20, 0, 30, 10]], False),
        (PLACES, [], False),
        ((), [[2, 2, 20, 60], [40, 2, 60, 60]], None),
        (PLACES[:1], [[2, 2, 20, 60]], None),
        (((0, 0, 64, 20), (0, 40, 64, 64)), [[40, 2, 60, 18], [2, 44, 20, 60]], True),  # above and below
    ],
)
def test_subjects_are_on_their_side_where_each_figure_is_nearest_to_its_own_place(
    places: Any, figures: list[list[float]], right: bool | None
) -> None:
    boxes = torch.tensor(figures, dtype=torch.float32).reshape(-1, 4)
    found = Detections(boxes, torch.ones(len(boxes)), ("cat",) * len(boxes), 0.9)
    plain = result("a", "mudi", 0, 0.5)
    tokens = plain.comparison.tokens[: len(places) or 2]
    one = replace(plain, comparison=replace(plain.comparison, tokens=tokens, detections=found), places=places)
    assert one.on_their_side is right
    unknown = replace(one, places=())
    assert summary([one, unknown]).on_their_side == (None if right is None else float(right)), "of those that are told"
    rows = list(csv.DictReader(table([one, unknown]).splitlines()))
    assert [row["on_their_side"] for row in rows] == ["" if right is None else str(int(right)), ""]


def test_only_methods_that_are_told_places_have_a_side(
    random_mini: None, spec_file: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    methods = ("segmix", "regions", "merge", "merge_start", "mudi")
    spec = replace(read_spec(spec_file), methods=methods, seeds=1)
    results = Results(tmp_path / "out", spec)
    Worker(results, eyes.load_detector(), eyes.load_embedder()).run()
    done = {one.cell.method: one for one in map(results.read, spec.cells())}
    told = {method for method, one in done.items() if one.places}
    assert told == {"regions", "merge_start", "mudi"} == {m for m, one in done.items() if one.on_their_side is not None}
    (places,) = {done[method].places for method in told}
    assert len(places) == 2 and all(0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64 for x0, y0, x1, y1 in places)
    aside = [replace(one, places=()) for one in done.values()]
    shown = [pages.page(results, some) for some in (list(done.values()), aside)]
    assert [text.count("on their side, if told") for text in shown] == [1, 0]
    assert [text.count("On their side: the share of pictures") for text in shown] == [1, 0]
    segmix, mudi = (
        next(line for line in shown[0].splitlines() if f"<tr><td>{title}</td>" in line)
        for title in (METHODS["segmix"].title, METHODS["mudi"].title)
    )
    share = f"{float(bool(done['mudi'].on_their_side)):.0%}"
    right_count = f"{float(done['mudi'].comparison.count_is_right):.0%}"
    assert f"<td>{right_count}</td><td>{share}</td>" in mudi.split(METHODS["mudi"].title)[1]
    assert "<td>–</td>" in segmix and "seconds a picture" in shown[0] and "of CPU time on a CPU" in shown[0]


def test_an_interval_over_combos_is_as_wide_as_the_combos_differ() -> None:
    alike = [result(combo, "mudi", seed, seed / 10) for combo in "abcd" for seed in range(10)]
    apart = [result(combo, "mudi", seed, "abcd".index(combo) / 3) for combo in "abcd" for seed in range(10)]
    score = [hierarchical_interval(nested(done, lambda one: one.comparison.score)) for done in (alike, apart)]
    assert 0.35 < score[0][0] < 0.4 and 0.5 < score[0][1] < 0.55  # 40 pictures whose deviation is 0.29
    assert score[1][0] < 0.3 and score[1][1] > 0.7


def test_a_hierarchical_bootstrap_varies_as_its_formula_says() -> None:
    rng = np.random.default_rng(1)
    pairs, trainings, pictures = 6, 3, 8
    table = rng.normal(size=(pairs, 1, 1)) + 0.7 * rng.normal(size=(pairs, trainings, 1))
    table = table + 0.5 * rng.normal(size=(pairs, trainings, pictures))
    groups = {str(p): {str(t): list(table[p, t]) for t in range(trainings)} for p in range(pairs)}
    # What drawing with replacement adds at each level: the variance there, over how many are drawn in all.
    of_pairs = table.mean((1, 2)).var() / pairs
    of_trainings = table.mean(2).var(1).mean() / (pairs * trainings)
    of_pictures = table.var(2).mean() / (pairs * trainings * pictures)
    means = hierarchical_means(groups, 40_000)
    assert means.mean() == pytest.approx(table.mean(), abs=0.01)
    assert means.var() == pytest.approx(of_pairs + of_trainings + of_pictures, rel=0.03)
    seen = smallest_seen(groups)
    assert seen is not None and seen == pytest.approx(2.8 * table.mean((1, 2)).std(ddof=1) / pairs**0.5)
    assert smallest_seen({"a": {"0": [1.0, 2.0]}}) is None
    low, high = hierarchical_interval({"a": [1.0, 1.0], "b": [1.0]})
    assert (low, high) == (1, 1)


def test_a_difference_that_is_just_seen_is_found_in_four_of_five_repetitions() -> None:
    rng, pairs = np.random.default_rng(2), 24

    def comparison(true: float) -> dict[str, dict[str, list[float]]]:
        return {str(pair): {"0": [value]} for pair, value in enumerate(true + 0.3 * rng.normal(size=pairs))}

    seen = float(np.mean([smallest_seen(comparison(0)) for _ in range(500)]))
    found = [hierarchical_interval(comparison(seen), draws=400)[0] > 0 for _ in range(500)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_differences_are_taken_from_the_same_noise() -> None:
    done = [result("a", method, seed, seed + (method == "mudi")) for method in ("mudi", "cutmix") for seed in range(3)]
    assert paired(done, "mudi", "cutmix") == {"a": {"0": [1, 1, 1]}}
    assert paired(done[:4], "mudi", "cutmix") == {"a": {"0": [1]}}


def test_bars_reach_from_zero_to_their_means() -> None:
    drawn = bar_chart({"mudi": Bar("MuDI", 0.5, 0.4, 0.6), "cutmix": Bar("Cut-Mix", -0.3, -0.5, -0.1)}, "scores")
    assert 'aria-label="scores: MuDI 0.50 (0.40 to 0.60), Cut-Mix -0.30 (-0.50 to -0.10)"' in drawn
    bars = [line for line in drawn.splitlines() if 'class="bar"' in line]
    left, width = ([float(line.split(f'{key}="')[1].split('"')[0]) for line in bars] for key in ("x", "width"))
    assert left[1] + width[1] == pytest.approx(left[0], abs=0.2) and width[0] > width[1] > 0


def test_names_of_any_length_stand_beside_their_bars_and_many_methods_are_scrolled(
    spec_file: Path, tmp_path: Path
) -> None:
    bars = {name: Bar(rival.title, 0.5, 0.4, 0.6) for name, rival in METHODS.items()}
    drawn = bar_chart(bars, "scores")
    ends = {float(line.split('x="')[1].split('"')[0]) for line in drawn.splitlines() if 'class="label"' in line}
    longest = max(len(rival.title) for rival in METHODS.values())
    assert len(ends) == 1 and min(ends) > 7.7 * longest, "a letter takes 7.7 on average (Chromium, DejaVu Sans)"
    spec = replace(read_spec(spec_file), general_nouns={"cats": "animal"})
    few, many = replace(spec, methods=tuple(METHODS)[:8]), replace(spec, methods=tuple(METHODS)[:9])
    for one, found in ((few, "repeat(8, 1fr)"), (many, "repeat(9, minmax(110px, 1fr))")):
        results = Results(tmp_path / str(len(one.methods)), one)
        results.add(result("cats", "dreambooth", 0, 0.5), torch.rand(32, 32, 3))
        shown = pages.page(results, [result("cats", "dreambooth", 0, 0.5)])
        assert f'style="grid-template-columns: {found}"' in shown and ('class="rows many"' in shown) == (one is many)


ODD = (
    *("true", "false", "-1", "0", "1.5", "-0.0", "1e400", "nan", "inf", "-inf", "9223372036854775807", "10000000"),
    *('""', '"x"', '"\\u0000"', '"\\u200b"', "[]", "[[]]", "[1]", '["x"]', "[true]", "[1, 2, 3]", "[nan]", "{}"),
    *(
        "{ x = 1 }",
        '{ x = "y" }',
        "1979-05-27",
        "07:32:00",
        "1979-05-27T07:32:00Z",
        '["mudi", "mudi"]',
        '"' + "x" * 9000 + '"',
    ),
)
"""TOML values of every kind, most of which no key wants."""
KEYS = {
    "": (
        "name",
        "base",
        "combos",
        "methods",
        "prompts",
        "seeds",
        "seed",
        "general_nouns",
        "train",
        "generate",
        "judges",
        *("groups", "sorts", "concepts", "nouns", "adapter", "image_encoder", "published", "also_published"),
    ),
    "combos": ("cats",),
    "general_nouns": ("cats",),
    "judges": tuple(Judges.__dataclass_fields__),
    "train": tuple(name for name in TRAIN_SETTINGS if name not in ("method", "seed", "layout")),
    "generate": ("negative_prompt", "size", "steps", "guidance", "gamma"),
}


@pytest.mark.parametrize("table", KEYS)
def test_any_value_of_any_key_is_taken_or_refused_in_a_sentence(table: str, spec_file: Path) -> None:
    plain = {"name": "small", "base": "mini", "methods": ["mudi"], "prompts": ["{subjects}"], "seeds": 2, "seed": 0}
    read = refused = 0
    for key in KEYS[table]:
        for odd in ODD:
            lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items() if table or name != key]
            if not table:
                lines.append(f"{key} = {odd}")
            for other in ("combos", "general_nouns", "judges", "train", "generate"):
                if table or key != other:
                    lines += [
                        f"[{other}]",
                        *([f"{key} = {odd}"] if table == other else ["cats = 0"] * (other == "combos")),
                    ]
            spec_file.write_text("\n".join(lines), encoding="utf-8")
            try:
                spec = read_spec(spec_file)
                spec.train_config("mudi", 64), spec.as_json(), spec.cells()[:1]
                read += 1
            except BadSpec as error:
                assert str(error).endswith(".") and len(str(error)) < 1500, error
                refused += 1
    assert read and refused
