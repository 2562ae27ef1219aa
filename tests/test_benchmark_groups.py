"""Combos that rules make: the papers' sets have their published sizes, and run with the embedded model."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sd_file import tiny_sd
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mudi_core.attention.references.projector import ImageProjector
from mudi_core.bases import embedded
from mudi_core.benchmark import page as pages
from mudi_core.benchmark import photos
from mudi_core.benchmark.judges import BadSpec, Judges
from mudi_core.benchmark.methods import METHODS
from mudi_core.benchmark.page import _published, page
from mudi_core.benchmark.photos import NoNoun, joined
from mudi_core.benchmark.results import Results
from mudi_core.benchmark.run import Worker
from mudi_core.benchmark.spec import Cell
from mudi_core.benchmark.spec_file import read_spec
from mudi_core.benchmark.table import summary, table
from mudi_core.benchmark.whole import WholePictures
from mudi_core.benchmark.wording import NotNumbered, alone, orders, worded
from mudi_core.benchmark.worn import OtherEncoder
from mudi_core.cli import main
from mudi_core.eyes import embedded as eyes
from mudi_core.score.fidelity import similarities
from mudi_core.score.vectors import photo_means
from mudi_core.stage.layout_text import Place
from mudi_core.types import Subject, SubjectSet

SPECS = Path(__file__).parent.parent / "benchmarks"
HEAD = 'base = "mini"\nseeds = 1\n'
QUICK = "[generate]\nsteps = 2\nsize = [64, 64]\n"


def named(subjects: SubjectSet, *class_nouns: str) -> SubjectSet:
    """A set with the photos of the first of `subjects`, and other class nouns."""
    first = next(iter(subjects))
    return SubjectSet(tuple(Subject(f"t{i}", noun, first.photos, first.masks) for i, noun in enumerate(class_nouns)))


def test_a_table_of_sd_2_has_its_methods_and_figures() -> None:
    spec = read_spec(SPECS / "table3.toml")
    assert len(spec.cells()) == 8 * 5 * 10 * len(spec.methods) and set(spec.published) == set(spec.methods)
    assert spec.published["cones2"] == {
        "D&C-DS": 0.408, "D&C-DINO": 0.429, "ImageReward": 0.607, "CLIPs": 0.254, "Times": 9.2,
    }  # fmt: skip
    shown = _published(spec)
    assert "0.688" in shown and "Mix-of-Show with a canny ControlNet" in shown and "0.692" in shown


def test_two_to_five_subjects_have_600_pictures_of_each_number_dealt_evenly(drawn_subjects: SubjectSet) -> None:
    spec = read_spec(SPECS / "figure26.toml")
    cells = spec.cells()
    assert len(set(cells)) == len(cells)
    sizes = {combo: len(where) for combo, where in spec.combos.items() if isinstance(where, tuple)}
    assert Counter(sizes.values()) == {2: 20, 3: 20, 4: 10, 5: 2}
    assert Counter((sizes[cell.combo], cell.method) for cell in cells) == {
        (size, method): 600 for size in (2, 3, 4, 5) for method in ("dreambooth", "mudi")
    }
    for size in (2, 3, 4, 5):
        of_prompt = Counter((cell.combo, cell.prompt) for cell in cells if sizes[cell.combo] == size)
        assert max(of_prompt.values()) - min(of_prompt.values()) <= 2, "one more for each of two methods"
        assert len(of_prompt) == sum(len(spec.prompts_of(combo)) for combo in sizes if sizes[combo] == size)
    assert spec.prompts_of("dog 1 + cat") == (
        "2 animals: {0} and {1} are in the jungle",
        "2 animals: {1} and {0} are in the jungle",
        "2 animals: {0} and {1} are playing together in the pool",
        "2 animals: {1} and {0} are playing together in the pool",
    )
    pair, four = named(drawn_subjects, "dog", "cat"), named(drawn_subjects, "dog", "dog", "dog", "cat")
    made = spec.generate_config(Cell("dog 1 + cat", "mudi", 1, 0), pair)
    assert (made.prompt, made.gamma) == ("2 animals: t1 cat and t0 dog are in the jungle", 2.0)
    assert spec.generate_config(Cell("dog 1 + dog 2 + dog 3 + cat", "mudi", 0, 0), four).gamma == 3.0


def test_ms_bench_is_made_from_its_lists(drawn_subjects: SubjectSet) -> None:
    spec = read_spec(SPECS / "msbench.toml")
    assert len(spec.combos) == 1148 and sum(len(spec.prompts_of(combo)) for combo in spec.combos) == 4488
    kinds = Counter(
        " ".join(Path(one).parent.name for one in where) for where in spec.combos.values() if isinstance(where, tuple)
    )
    assert kinds == {
        "living living": 45, "living object": 100, "object object": 45, "living upwearing": 50, "living midwearing": 60,
        "living wholewearing": 20, "midwearing downwearing": 18, "living scene": 40, "object scene": 40,
        "living living living": 120, "object object object": 120, "living object scene": 400,
        "upwearing midwearing downwearing": 90,
    }  # fmt: skip
    assert len(spec.cells()) == 4488 * 5 * len(spec.methods) and len(spec.nouns) == 40
    subjects = named(drawn_subjects, "dog", "hat")
    made = spec.generate_config(Cell("dog5 + hat1", "references", 1, 0), subjects)
    assert made.prompt == "a dog wearing a hat in the snow"
    assert made.places == {"t0": Place((0.25, 0.25, 0.75, 0.75)), "t1": Place((0.25, 0, 0.75, 0.25))}
    weaker = {combo: own.strength for combo, own in spec.own.items() if own.strength is not None}
    assert set(weaker.values()) == {0.4} and len(weaker) == 40 + 40 + 400, "as the authors do it for a scene"
    assert {combo for combo, own in spec.as_json()["own"].items() if "strength" in own} == weaker.keys()
    assert spec.judges.whole == ("clip-b32", "dino-s16") and spec.judges.text_scorer == "clip-b32"
    shown = _published(spec)
    assert "M-DINO" in shown and "0.108" in shown and "SSR-Encoder" in shown


def test_cones_2_has_80_pictures_of_each_number_of_subjects() -> None:
    spec = read_spec(SPECS / "cones2.toml")
    sizes = {combo: len(where) for combo, where in spec.combos.items() if isinstance(where, tuple)}
    made = Counter((sizes[cell.combo], cell.method) for cell in spec.cells())
    assert made == {(size, method): 80 for size in (2, 3, 4) for method in spec.methods}
    assert {one for where in spec.combos.values() if isinstance(where, tuple) for one in where} == set(spec.nouns)
    assert spec.published["cones2"]["image, 4"] == 0.673 and "0.299" in _published(spec)


def test_concept101_is_read_from_a_copy(tmp_path: Path, drawn_subjects: SubjectSet) -> None:
    shutil.copy(SPECS / "concept101.toml", tmp_path)
    with pytest.raises(BadSpec, match="is no whole copy of CustomConcept101"):
        read_spec(tmp_path / "concept101.toml")
    copy = tmp_path / "customconcept101"
    (copy / "prompts").mkdir(parents=True)
    for kind in ("pet_pet", "scene_pet"):  # as many lines as theirs have, one with spaces and an empty one at the end
        lines = ["A photo of {0} with {0}.", *(f"{{1}} and {{0}} in place {i}. " for i in range(1, 12))]
        (copy / "prompts" / f"{kind}.txt").write_text("\n".join(lines) + "\n\n")
    pairs = [(f"pet_dog{i}", f"pet_cat{j}") for i in range(10) for j in range(10)] + [("pet_dog0", "pet_cat0")]
    about = [
        [
            *({"class_prompt": name[4:7], "instance_data_dir": f"./benchmark_dataset/{name}"} for name in pair),
            {"prompt_filename_compose": f"prompts/{'pet_pet' if number % 2 else 'scene_pet'}.txt"},
        ]
        for number, pair in enumerate(pairs)
    ]
    (copy / "dataset_multiconcept.json").write_text(json.dumps(about))
    spec = read_spec(tmp_path / "concept101.toml")
    assert len(spec.combos) == 101 and sum(len(spec.prompts_of(combo)) for combo in spec.combos) == 1212
    assert len(spec.cells()) == 1212 * len(spec.methods)
    assert spec.nouns[str(copy / "benchmark_dataset" / "pet_cat3")] == "cat"
    made = spec.generate_config(Cell("100 pet_dog0 + pet_cat0", "merge", 3, 0), named(drawn_subjects, "dog", "cat"))
    assert made.prompt == "cat and dog in place 3." and spec.judges.text_scorer == "clip-b32-2.5"
    assert "0.694" in _published(spec) and "FastComposer" in _published(spec)
    for odd in ("{2} and {0}", "nobody"):
        (copy / "prompts" / "pet_pet.txt").write_text(odd)
        with pytest.raises(BadSpec, match="names other subjects than the two"):
            read_spec(tmp_path / "concept101.toml")
    (copy / "dataset_multiconcept.json").write_text("[[1, 2, 3]]")
    with pytest.raises(BadSpec, match="is not the list of CustomConcept101"):
        read_spec(tmp_path / "concept101.toml")


GROUP = """
methods = ["mudi"]
[sorts.pets]
"a/cat.png" = "cat"
"a/dog.png" = "dog"
"a/owl.png" = "owl"
[sorts.hats]
"a/cap.png" = "cap"
[groups.all]
of = ["pets", "hats", "pets"]
prompts = ["{0} and {2} share {1}"]
boxes = [[0, 0, 0.5, 1], [0, 0, 1, 1], [0.5, 0, 1, 1]]
"""


def test_a_sort_that_is_named_twice_gives_every_pair_once_in_the_places_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(HEAD + GROUP)
    spec = read_spec(path)
    assert list(spec.combos) == [f"{a} + cap + {b}" for a, b in combinations(("cat", "dog", "owl"), 2)]
    assert spec.combos["cat + cap + owl"] == tuple(str(tmp_path / "a" / f"{one}.png") for one in ("cat", "cap", "owl"))
    assert spec.own["cat + cap + owl"].boxes[1] == (0, 0, 1, 1)
    plain = spec.as_json()
    assert plain["own"]["cat + cap + owl"] == {
        "prompts": ("{0} and {2} share {1}",),
        "boxes": spec.own["cat + cap + owl"].boxes,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"hats", "pets"]', '"shoes", "pets"]'), r"\[groups.all\] names the sort 'shoes'; there are: pets, hats"),
        (("[0, 0, 1, 1], ", ""), "has 2 boxes for 3 subjects"),
        (("[0, 0, 1, 1]", "[0, 0, 1, 2]"), "must be x0, y0, x1, y1 inside 0..1"),
        (("share {1}", "share"), "does not name each of 3 subjects"),
        (("share {1}", "share {3}"), "does not name each of 3 subjects"),
        (("of = ", "every_order = true\nof = "), "needs {subjects}"),
        (("of = ", "pictures = -1\nof = "), "pictures is 0 or more"),
        (("of = ", "strength = -0.1\nof = "), "has the strength -0.1; it must be 0 or more"),
        (('prompts = ["{0} and {2} share {1}"]', ""), r"\[groups.all\] does not say 'prompts'"),
        (("[groups.all]", "[groups.all]\nmood = 1"), r"\[groups.all\] has no 'mood'"),
        (('"a/dog.png"', '"b/cat.png"'), "which is made already"),
        (('methods = ["mudi"]', 'methods = ["mudi"]\nown = 1'), "has no 'own'"),
    ],
)
def test_a_group_with_a_mistake_is_told_in_a_sentence(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    text = HEAD + GROUP
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(BadSpec, match=words):
        read_spec(path)


def test_prompts_name_subjects_together_or_by_number(drawn_subjects: SubjectSet) -> None:
    assert worded(["a cat", "a dog"], "{subjects} at sea") == "a cat and a dog at sea"
    assert worded(["cat", "dog"], "the {1} on a {0}, {1}") == "the dog on a cat, dog"
    assert alone("olis cat", "{subjects} at sea") == "olis cat at sea"
    assert alone("olis cat", "a {0} on a {1}") == "a photo of olis cat"
    subjects = named(drawn_subjects, "cat", "dog")
    assert orders(subjects, "a {1} on a {0}") == ["a dog on a cat"]
    assert orders(subjects, "{subjects}") == ["cat and dog", "dog and cat"]
    with pytest.raises(NotNumbered, match="names subject 2, but there are 0 to 1"):
        worded(["cat", "dog"], "{2}")


def test_equal_tokens_are_given_anew_and_different_ones_stay(drawn_subjects: SubjectSet) -> None:
    one, other = drawn_subjects
    assert joined([one, other]).tokens == (one.token, other.token)
    assert joined([other, other, one]).tokens == ("olis", "hta", "ult")


def test_the_table_of_sd_2_runs_with_a_small_sd_2(mini_weights: None, drawn_dataset: Path, tmp_path: Path) -> None:
    """All of its methods, on a base model of SD 2's build in a few channels."""
    tiny_sd(tmp_path / "sd2", "v2")
    short = {"steps": 1, "batch_size": 1, "resolution": 64}
    spec = replace(
        read_spec(SPECS / "table3.toml"), base=str(tmp_path / "sd2"), combos={"cats": str(drawn_dataset)},
        prompts=("a photo of {subjects} at sea",), seeds=1, priors=0, residual=short,
        train={"dco_beta": 0.0, "rank": 2, "learning_rate": 0.1, "crops_per_photo": 1, **short},
        generate={"steps": 2, "size": (64, 64)}, fuse={"steps": 1, "rows": 64}, judges=Judges("mini", "mini"),
    )  # fmt: skip
    results = Results(tmp_path / "out", spec)
    Worker(results, eyes.load_detector(), eyes.load_embedder()).run()
    done = [results.read(cell) for cell in spec.cells()]
    assert [one.cell.method for one in done] == list(spec.methods) and all(one.seconds for one in done)
    shown = page(results, done)
    assert "As published" in shown and shown.index("As published") > shown.index(METHODS["cones2"].title)


@pytest.fixture
def own_photos(drawn_dataset: Path, tmp_path: Path) -> Path:
    """Plain photos of two subjects: one picture, and a folder."""
    (tmp_path / "photos" / "second").mkdir(parents=True)
    shutil.copy(drawn_dataset / "olis_0.png", tmp_path / "photos" / "first.png")
    for i in range(2):
        shutil.copy(drawn_dataset / f"hta_{i}.png", tmp_path / "photos" / "second" / f"{i}.png")
    return tmp_path / "photos"


def worker(path: Path, out: Path) -> Worker:
    spec = read_spec(path)
    whole = {name: eyes.load_embedder() for name in spec.judges.whole}
    look, alike, cut = eyes.load_detector(), eyes.load_embedder(), eyes.load_segmenter()
    return Worker(Results(out, spec), look, alike, WholePictures(embedders=whole), cut)


def test_combos_of_plain_photos_run_with_boxes_numbers_and_further_embedders(
    mini_weights: None, own_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[str] = []
    prepare = photos.prepare

    def counted(given: Any, wanted: Any, *more: Any) -> Any:
        prepared.append(given[0].name)
        return prepare(given, wanted, *more)

    monkeypatch.setattr(photos, "prepare", counted)
    path = tmp_path / "small.toml"
    path.write_text(
        HEAD
        + """
methods = ["references", "merge", "references_start"]
[sorts.a]
"photos/first.png" = "cat"
[sorts.b]
"photos/second" = "cat"
[groups.ab]
of = ["a", "b"]
prompts = ["a {0} beside a {1}", "a {1} at sea with a {0}"]
boxes = [[0, 0.25, 0.5, 1], [0.5, 0.25, 1, 1]]
pictures = 3
[judges]
whole = ["mini"]
"""
        + QUICK
    )
    work = worker(path, tmp_path / "out")
    work.run()
    spec, results = work.spec, work.results
    assert sorted(prepared) == ["0.png", "1.png", "first.png"], "each photo once, for three methods"
    done = [results.read(cell) for cell in spec.cells()]
    assert len(done) == 9 and {one.cell.seed for one in done} == {0, 1}
    embed = eyes.load_embedder()
    means = photo_means(work._subjects("first + second"), embed)
    for one in done:  # the photos as they are: for the similarities beside D&C these eyes see cut-outs
        (expected,) = similarities([results.image(one.cell)], means, embed).tolist()
        assert one.whole["mini"] == pytest.approx(expected, abs=0.01) != pytest.approx(one.similarities, abs=0.01)
    rows = list(csv.DictReader(table(done).splitlines()))
    for row, one in zip(rows, done, strict=True):
        first, second = one.whole["mini"]
        assert float(row["mini"]) == pytest.approx((first + second) / 2, abs=1e-5)
        assert float(row["mini product"]) == pytest.approx(max(first, 0) * max(second, 0), abs=1e-5)
    own = [one for one in done if one.cell.method == "merge"]
    means = [sum(one.whole["mini"]) / 2 for one in own]
    assert summary(own).whole["mini"][0] == pytest.approx(sum(means) / len(means), abs=1e-6)
    shown = page(results, done)
    assert "<th>mini</th><th>its product</th>" in shown and "a {1} at sea with a {0}" in shown
    assert not worker(path, tmp_path / "out")._open_parts()
    monkeypatch.setattr(pages, "MOST_SHOWN", 8)
    short = page(results, done)
    assert "9 pictures are too many for a page" in short and "<th>mini</th>" in short and "<img" not in short
    assert main(["benchmark", str(path), "--out", str(tmp_path / "out"), "--so-far"]) == 0


def test_what_no_detector_finds_is_the_whole_photo(
    mini_weights: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (96, 96), (90, 160, 90)).save(tmp_path / "meadow.png")
    path = tmp_path / "small.toml"
    path.write_text(
        HEAD
        + 'methods = ["dreambooth"]\nprompts = ["{subjects}"]\n'
        + '[combos]\nmeadow = ["meadow.png"]\n[nouns]\n"meadow.png" = "cat"\n'
    )
    (only,) = worker(path, tmp_path / "out")._subjects("meadow")
    assert float(only.masks[0].min()) == 1 and only.class_noun == "cat" and "The whole photo counts as" in caplog.text
    path.write_text(path.read_text().split("[nouns]")[0])
    with pytest.raises(NoNoun, match="is no dataset, and"):
        worker(path, tmp_path / "other")._subjects("meadow")


def test_another_adapter_is_worn_with_its_own_eye(mini_weights: None, own_photos: Path, tmp_path: Path) -> None:
    """An IP-Adapter of random weights, with a CLIP that sees vectors of its size; with another it is refused."""
    torch.manual_seed(0)
    for name, width in (("eye", 24), ("other", 40)):
        config = CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28,
            patch_size=14, projection_dim=width,
        )  # fmt: skip
        CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / name)
    known = load_file(embedded.WEIGHTS / "reference.safetensors")
    context = next(value.shape[1] for name, value in known.items() if name.endswith("to_k_ip.weight"))
    state = {f"image_proj.{name}": value for name, value in ImageProjector(24, 4, context).state_dict().items()}
    state |= {f"ip_adapter.{name.split('.', 1)[1]}": value.float() for name, value in known.items() if "_ip." in name}
    save_file(state, tmp_path / "ip.safetensors")
    text = (
        HEAD
        + 'methods = ["references", "merge"]\nprompts = ["{subjects} at sea"]\nadapter = "ip.safetensors"\n'
        + 'image_encoder = "eye"\n[judges]\nwhole = ["mini"]\n[combos]\nboth = ["photos/first.png", "photos/second"]\n'
        + '[nouns]\n"photos/first.png" = "cat"\n"photos/second" = "cat"\n'
        + QUICK
    )
    path = tmp_path / "small.toml"
    path.write_text(text)
    assert main(["benchmark", str(path), "--out", str(tmp_path / "out")]) == 0
    results = Results(tmp_path / "out", read_spec(path))
    (first, second) = (results.image(cell) for cell in results.spec.cells())
    assert not torch.equal(first, second)
    path.write_text(text.replace('"eye"', '"other"'))
    with pytest.raises(OtherEncoder, match="reads 24 channels, and the image encoder gives 40"):
        worker(path, tmp_path / "refused").run()


def test_an_unknown_embedder_of_whole_pictures_is_told_those_there_are() -> None:
    with pytest.raises(BadSpec, match=r"\[judges\] whole: there is no 'eyes'; there are: dinov2"):
        Judges(whole=("eyes",))
    assert "whole" not in Judges().as_json() and Judges(whole=("clip",)).as_json()["whole"] == ("clip",)
