"""Rivals in the benchmark: what acts in the attention of diffusers' U-Net, and LoRAs of single subjects."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fuse_job import tensors

from mudi_core.attention import unet
from mudi_core.attention.guidance import LayoutGuidance
from mudi_core.attention.lora import SeparateLoras
from mudi_core.attention.prompts import RegionalPrompts
from mudi_core.attention.references.worn import References
from mudi_core.attention.regions import Regions
from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.benchmark import singles
from mudi_core.benchmark import trained as learned
from mudi_core.benchmark.groups import Own
from mudi_core.benchmark.judges import Judges
from mudi_core.benchmark.methods import METHODS
from mudi_core.benchmark.page import page
from mudi_core.benchmark.results import Results
from mudi_core.benchmark.run import Worker
from mudi_core.benchmark.singles import changes_of, stacked
from mudi_core.benchmark.spec import BadSpec, Cell, Spec
from mudi_core.benchmark.spec_file import read_spec
from mudi_core.benchmark.table import table
from mudi_core.benchmark.worn import Wardrobe
from mudi_core.eyes import embedded as eyes
from mudi_core.jobs.from_loras import NoPictures, Painted, PicturesConfig
from mudi_core.jobs.train import Training
from mudi_core.lora.file import save_lora
from mudi_core.lora.reading import read_lora
from mudi_core.lora.wear import sizes_of
from mudi_core.stage.cutouts import cut_outs
from mudi_core.subjects.storage import read_subjects

SPECS = Path(__file__).parent.parent / "benchmarks"
HEIGHT, WIDTH = 20, 12


@pytest.fixture(scope="module")
def base(mini_weights: None) -> Checkpoint:
    return open_checkpoint("mini")


def asked(base: Checkpoint, parts: list[Any], prompt: str = "a red cat and a blue dog") -> torch.Tensor:
    """The U-Net's answers to noise for a negative and a positive prompt."""
    contexts, pooled = base.encode_text(["sticker", prompt])
    noise = torch.randn(1, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    sizes = torch.tensor([[192.0, 192.0, 0, 0, 192, 192]]).repeat(2, 1)
    with torch.no_grad(), unet.wearing(base.unet, parts, base.scheduler.alphas_cumprod, guided=True):
        found: torch.Tensor = base.unet(
            noise, torch.tensor(700), contexts, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
        ).sample
    return found


def halves() -> Regions:
    masks = torch.zeros(1, 2, HEIGHT, WIDTH)
    masks[:, 0, :, : WIDTH // 2] = masks[:, 1, :, WIDTH // 2 :] = 1
    return Regions(masks)


def whole() -> Regions:
    return Regions(torch.ones(1, 1, HEIGHT, WIDTH))


def test_regions_act_on_the_positive_prompt_alone_and_everywhere_they_are_that_prompt(base: Checkpoint) -> None:
    own = dict(base.unet.attn_processors)
    plain, other = asked(base, []), asked(base, [], "a bear")
    context = base.encode_text(["a bear"])[0].detach()
    changed = asked(base, [RegionalPrompts([context], whole())])
    pooled_counts = (changed[1] - other[1]).abs().max()  # the pooled vector stays the picture's own
    assert torch.allclose(changed[0], plain[0], atol=1e-5) and pooled_counts < (plain[1] - other[1]).abs().max()
    words = torch.zeros(77)
    words[2:4] = 1
    guided = asked(base, [LayoutGuidance([words], Regions(halves().masks[:, :1]))])
    assert torch.allclose(guided[0], plain[0], atol=1e-5) and not torch.allclose(guided[1], plain[1], atol=1e-3)
    none = asked(base, [LayoutGuidance([words], halves(), strength=0.0), RegionalPrompts([context], whole(), 0.0)])
    assert torch.allclose(none, plain, atol=1e-5)
    assert {name: id(one) for name, one in base.unet.attn_processors.items()} == {n: id(o) for n, o in own.items()}


def test_separate_loras_everywhere_are_stacked_ones_and_nowhere_none(base: Checkpoint, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, file in enumerate(files, 1):
        save_lora(file, tensors(base, seed, lambda name: "attentions" in name), {})
    plain = asked(base, [])
    with stacked(base, files):
        together = asked(base, [])
    changes = [changes_of(base, read_lora(file)) for file in files]
    everywhere = Regions(torch.ones(1, 2, HEIGHT, WIDTH))
    apart = asked(base, [SeparateLoras(changes, everywhere)])
    assert (together - plain).abs().max() > 0.05
    assert (apart - together).abs().max() < 1e-3 * (together - plain).abs().max()
    assert torch.allclose(asked(base, [SeparateLoras(changes, Regions(torch.zeros(1, 2, HEIGHT, WIDTH)))]), plain)
    first = asked(base, [SeparateLoras(changes, halves())])
    assert not torch.allclose(first, together, atol=1e-3) and not torch.allclose(first, plain, atol=1e-3)


def test_noise_levels_are_those_of_the_schedule_also_between_two(base: Checkpoint) -> None:
    alphas = base.scheduler.alphas_cumprod
    sigmas = ((1 - alphas) / alphas).sqrt()
    worn = unet._Worn([], sigmas.log(), [0])
    assert torch.allclose(worn._sigma(torch.tensor(700)), sigmas[700:701])
    between = worn._sigma(torch.tensor([700.5]))
    assert torch.allclose(between, (sigmas[700] * sigmas[701]).sqrt()[None])
    assert len(unet.cross_layers(base.unet)) == len(base.unet.attn_processors) // 2


def test_a_combo_may_have_a_strength_of_its_own_for_its_references(base: Checkpoint, drawn_dataset: Path) -> None:
    subjects = read_subjects(drawn_dataset)
    own = {"weaker": Own(strength=0.25), "placed": Own()}
    combos = dict.fromkeys(("usual", *own), str(drawn_dataset))
    spec = Spec("small", "mini", combos, ("references",), ("{subjects}",), 1, own=own)
    wardrobe = Wardrobe(spec, base, cut_outs(subjects, max_side=64))
    worn = {}
    for combo in combos:
        cell = Cell(combo, "references", 0, 0)
        part = wardrobe._part(cell, spec.generate_config(cell, subjects), ())
        assert isinstance(part, References)
        worn[combo] = part.strength
    assert worn == {"usual": wardrobe._adapter.scale, "weaker": 0.25, "placed": wardrobe._adapter.scale}


def test_every_rival_is_painted_alone_and_with_the_start(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: Counter[str] = Counter()
    train, given = learned.train_lora, read_subjects(drawn_dataset)

    def counted(*about: Any, **more: Any) -> Any:
        done["trained"] += 1
        return train(*about, **more)

    def painted(*about: Any, **more: Any) -> Painted:
        done["painted"] += 1
        return Painted(given, (), ())

    monkeypatch.setattr(learned, "train_lora", counted)
    monkeypatch.setattr(singles, "paint_subjects", painted)
    rivals = [name for name, rival in METHODS.items() if rival.wears or rival.singles or rival.residual]
    path = tmp_path / "rivals.toml"
    path.write_text(
        f"""
base = "mini"
methods = {["dreambooth", *rivals]}
prompts = ["a photo of {{subjects}} at sea"]
seeds = 1
[combos]
cats = "{drawn_dataset}"
[train]
steps = 1
rank = 2
learning_rate = 0.1
batch_size = 1
resolution = 64
crops_per_photo = 1
[generate]
steps = 2
size = [64, 64]
[fuse]
steps = 1
rows = 64
[residual]
steps = 1
batch_size = 1
resolution = 64
[decouple]
steps = 1
max_composites = 2
"""
    )
    spec = read_spec(path)
    results = Results(tmp_path / "out", spec)
    worker = Worker(results, eyes.load_detector(), eyes.load_embedder(), segmenter=eyes.load_segmenter())
    worker.run()
    assert done == {"trained": 4, "painted": 1}, "one of both, one of each, one on the fusion"
    cells = {cell.method: cell for cell in spec.cells()}
    assert len(cells) == 23 and all(results.is_done(cell) for cell in cells.values())
    pictures = {method: results.image(cell) for method, cell in cells.items()}
    names = list(pictures)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert not torch.equal(pictures[one], pictures[other]), f"{one} is {other}"
    rows = list(csv.DictReader(table([results.read(cell) for cell in cells.values()]).splitlines()))
    assert all(float(row["seconds"]) > 0 for row in rows)
    files = {path.name for path in (tmp_path / "out" / "cats").glob("*.safetensors")}
    apart = {f"singles.{name}.safetensors" for name in ("olis", "hta", "fused", "decoupled", "decoupled-whole")}
    residuals = {f"residual.{name}.safetensors" for name in ("olis", "hta")}
    assert files == {"dreambooth.safetensors"} | apart | residuals, "Cones 2 and its residual share the training"
    worker.run()
    assert done == {"trained": 4, "painted": 1}


def test_a_fusion_is_kept_apart_by_what_each_lora_paints_and_goes_on_where_it_was_stopped(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Training] = []
    painted: list[list[str]] = []
    train, paint = learned.train_lora, singles.paint_subjects

    def counted(training: Training, *about: Any, **more: Any) -> Any:
        trained.append(training)
        if len(trained) == 3:
            raise MemoryError
        return train(training, *about, **more)

    def counted_paint(concepts: Any, *about: Any) -> Painted:
        painted.append([f"{one.lora.name} {one.words}" for one in concepts])
        return paint(concepts, *about)

    monkeypatch.setattr(learned, "train_lora", counted)
    monkeypatch.setattr(learned, "PicturesConfig", partial(PicturesConfig, count=1, spare=0))
    monkeypatch.setattr(singles, "paint_subjects", counted_paint)
    short = {"steps": 2, "rank": 2, "batch_size": 1, "crops_per_photo": 1, "max_composites": 2}
    spec = Spec(
        "small", "mini", {"cats": str(drawn_dataset)}, ("fused", "decoupled"), ("{subjects}",), 1, seed=3, train=short,
        decouple={"steps": 3}, generate={"steps": 6}, fuse={"steps": 1, "rows": 64},
        judges=Judges("mini", "mini", 0.05),
    )  # fmt: skip
    assert spec.cuts_out and not replace(spec, methods=("fused",)).cuts_out
    results = Results(tmp_path / "out", spec)
    worker = Worker(results, eyes.load_detector(), eyes.load_embedder(), segmenter=eyes.load_segmenter())
    weights = worker._checkpoint.denoiser().fingerprint()
    with pytest.raises(MemoryError):
        worker.run()
    assert len(list((tmp_path / "out").rglob("decoupled/*.json"))) == 0
    worker.run()
    assert len(trained) == 4 and len(painted) == 1, "neither LoRAs nor pictures are made again"
    assert painted[0] == ["singles.olis.safetensors olis cat", "singles.hta.safetensors hta cat"]
    on_it = trained[-1]
    assert on_it.on is not None and on_it.on.name == "singles.fused.safetensors"
    shown = {subject.name: [photo.caption for photo in subject.photos] for subject in on_it.subjects}
    assert shown.keys() == {"olis cat", "hta cat"} and all(name in texts[0] for name, texts in shown.items())
    samples, learning = on_it.config.samples, on_it.config.learning
    assert (samples.method, samples.segmix_prob, samples.steps, samples.seed) == ("segmix", 1.0, 3, 3)
    assert (learning.kl_weight, learning.dco_beta, learning.rank) == (1.0, 0.0, 2)
    place = tmp_path / "out" / "cats"
    fusion, both = (read_lora(place / f"singles.{name}.safetensors") for name in ("fused", "decoupled-whole"))
    sizes = sizes_of(worker._checkpoint.unet)
    alone, more = (one.on(sizes, "mini").changes for one in (fusion, both))
    assert alone.keys() <= more.keys()
    one, other = (results.image(cell) for cell in spec.cells())
    assert not torch.equal(one, other) and worker._checkpoint.denoiser().fingerprint() == weights


def test_a_fusion_that_cannot_be_kept_apart_counts_as_it_is_and_that_is_told(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def nothing(*about: Any) -> Painted:
        asked.append(about)
        raise NoPictures("hta.safetensors does not paint 'hta cat'.")

    monkeypatch.setattr(singles, "paint_subjects", nothing)
    short = {"steps": 2, "rank": 2, "batch_size": 1, "crops_per_photo": 1, "max_composites": 2}
    spec = Spec(
        "small", "mini", {"cats": str(drawn_dataset)}, ("fused", "decoupled"), ("{subjects}",), 2, train=short,
        generate={"steps": 2}, fuse={"steps": 1, "rows": 64}, judges=Judges("mini", "mini", 0.05),
    )  # fmt: skip
    results = Results(tmp_path / "out", spec)
    worker = Worker(results, eyes.load_detector(), eyes.load_embedder(), segmenter=eyes.load_segmenter())
    worker.run()
    assert all(torch.equal(*(results.image(Cell("cats", how, 0, seed)) for how in spec.methods)) for seed in range(2))
    (told,) = results.remarks().items()
    assert told == (
        "cats/singles.decoupled",
        "cats/singles could not be decoupled, and counts as it was fused. hta.safetensors does not paint 'hta cat'.",
    )
    results.path(Cell("cats", "decoupled", 0, 1), ".json").unlink()
    Worker(results, eyes.load_detector(), eyes.load_embedder(), segmenter=eyes.load_segmenter()).run()
    assert len(asked) == 1, "what was found is not sought again"
    assert "could not be decoupled" in page(results, [results.read(cell) for cell in spec.cells()])


def test_rivals_that_a_base_model_cannot_have_are_told() -> None:
    spec = read_spec(SPECS / "rivals.toml")
    assert all(cell.training == 0 for cell in spec.cells() if METHODS[cell.method].zero_shot)
    with pytest.raises(BadSpec, match="'regions' acts in a U-Net's cross-attention, which mini-flux does not have"):
        replace(spec, base="mini-flux")
    with pytest.raises(BadSpec, match="'references' has an adapter for the base model 'mini' only"):
        replace(spec, base="/sdxl.safetensors")
