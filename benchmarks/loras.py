"""LoRAs of single characters in one picture: stacked, fused, decoupled, separate, taught to compose, and MuDI.

    COMFYUI_DIR=~/ComfyUI python benchmarks/loras.py --out OUT
    COMFYUI_DIR=~/ComfyUI python benchmarks/loras.py --out OUT --table

Drawn pairs of the embedded model, each trained several times. All methods have the same photos, seeds, places, start
and sampler; pictures are painted by ComfyUI's nodes. Every LoRA and every picture is a file: the same command goes on
where it was stopped, and prints the table of what is there. A training whose pictures are all judged has a file of
results, which is all that a table needs of it, and all that goes on elsewhere needs. `--dev` takes the pairs on which
settings are chosen.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from init_latent import pack  # noqa: E402

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "stacked": ("stacked", ("a", "b")),
    "fused": ("stacked", ("fused",)),
    "decoupled": ("stacked", ("decoupled-whole",)),
    "separate": ("separate", ("a", "b")),
    "composing, stacked": ("stacked", ("a-composing", "b-composing")),
    "composing, separate": ("separate", ("a-composing", "b-composing")),
    "MuDI": ("stacked", ("both",)),
}
"""How LoRAs are put on, and which files of a training."""
RESULTS = "results.jsonl"
"""In the folder of a training: a row for each picture."""
PROMPTS = ("{} in the meadow", "{} on the beach", "{} in the snow", "{} simple background")
Names = dict[str, str]
"""Subjects by "a" and "b"."""


def commands(place: Path, pair: Path, seed: int, quick: bool) -> Iterator[tuple[Path, list[str]]]:
    """Yield the files of a training and the command that makes each, in their order."""
    short = ["--steps", "2", "--batch", "1", "--rank", "2"] if quick else []
    fast = ["--steps", "2", "--rows", "400"] if quick else []
    few = ["--count", "1", "--spare", "0"] if quick else []
    for one in "ab":
        crowd, other = pair / f"crowd-{one}", (pair / "other-nouns.txt").read_text(encoding="utf-8").split("\n")
        count = ["--count", "1"] if quick else ["--count", "12"]
        yield crowd, ["priors", str(pair / one), "--out", str(crowd), "--also", *other, *count]
        train = ["train", str(pair / one), "--seed", str(seed), *short]
        plain, composing = place / f"{one}.safetensors", place / f"{one}-composing.safetensors"
        yield plain, [*train, "--method", "dreambooth", "--out", str(plain)]
        yield composing, [*train, "--others", str(crowd), "--segmix-prob", "0.5", "--out", str(composing)]
    singles = [str(place / f"{one}.safetensors") for one in "ab"]
    fused, painted, apart, both = (place / name for name in ("fused", "painted", "decoupled", "both"))
    fusion = fused.with_suffix(".safetensors")
    yield fusion, ["fuse", *singles, "--out", str(fusion), "--seed", str(seed), *fast]
    yield painted, ["from-loras", *singles, "--out", str(painted), "--seed", str(seed), *few]
    train = ["train", str(painted), "--on", str(fusion), "--preset", "decouple", "--seed", str(seed), *short]
    yield place / "decoupled-whole.safetensors", [*train, "--out", f"{apart}.safetensors"]
    train = ["train", str(pair / "both"), "--seed", str(seed), *short]
    yield place / "both.safetensors", [*train, "--out", f"{both}.safetensors"]


def photos(pair: Path, specs: Any) -> None:
    """Draw and prepare the photos of a pair: one set of both, and one of each."""
    from mudi_core.demo.job import draw_photos, prepare_photos
    from mudi_core.demo.settings import DemoSettings
    from mudi_core.subjects.storage import write_subjects
    from mudi_core.toy.world import PAIRS
    from mudi_core.types import SubjectSet

    if (pair / "other-nouns.txt").exists():
        return
    settings = DemoSettings()
    subjects = prepare_photos([draw_photos(pair / "photos", one, 0, settings) for one in specs], specs, settings)
    write_subjects(subjects, pair / "both")
    for name, subject in zip("ab", subjects, strict=True):
        write_subjects(SubjectSet((subject,)), pair / name)
    own = {subject.class_noun for subject in subjects}
    nouns = dict.fromkeys(spec.class_noun for every in PAIRS for spec in every if spec.class_noun not in own)
    (pair / "other-nouns.txt").write_text("\n".join(list(nouns)[:3]), encoding="utf-8")


def train(place: Path, pair: Path, seed: int, quick: bool) -> None:
    """Make every file of a training that is not there."""
    from mudi_core.cli import main as command

    place.mkdir(parents=True, exist_ok=True)
    for path, words in commands(place, pair, seed, quick):
        stopped = path.with_name(path.name.replace("-whole", "")).with_suffix(".stopped.safetensors")
        more = ["--resume"] if words[0] == "train" and stopped.exists() else []
        if not path.exists() and command([*words, "--base", "mini", *more]):
            sys.exit(f"{' '.join(words)} failed.")


class Painter:
    """Paints with the nodes of ComfyUI, and judges by the embedded eyes."""

    def __init__(self, load: Callable[[str], Any], pair: Path, steps: int) -> None:
        from mudi_core.eyes import load_detector, load_embedder
        from mudi_core.score.compare import References
        from mudi_core.subjects.storage import read_subjects

        self.load, self.steps = load, steps
        self.stock = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
        self.model, self.clip, self.vae = load("nodes.mini").MiniCheckpoint.execute().result
        self.subjects = load("mudi_core.subjects.storage").read_subjects(pair / "both")
        cpu = importlib.import_module("torch").device("cpu")
        self.detector, self.embedder = load_detector("mini", None, cpu), load_embedder("mini", None, cpu)
        self.references = References(read_subjects(pair / "both"), self.embedder, True)

    def paint(self, method: str, place: Path, number: int) -> Any:
        """Return a picture ``[h, w, 3]``."""
        how, files = METHODS[method]
        loras, start_of = [place / f"{name}.safetensors" for name in files], self.load("nodes.init_latent").InitLatent
        layout = self.load("nodes.generate").MakeLayout.execute(self.subjects, 192, 192, "random", number, "", 0.2)
        start = start_of.execute(layout.result[0], self.vae, -1.0, 1, number).result[0]
        model, clip = self.model, self.clip
        if how == "separate":
            given = self.load("nodes.sockets").SubjectLora
            own = tuple(given(path, name, 1.0, 1.0) for path, name in zip(loras, self.subjects.tokens, strict=True))
            separate = self.load("nodes.separate_loras").SeparateLoras.execute
            model, clip, _ = separate(model, clip, own, 1.0, 0.0, layout.result[0]).result
        else:
            for path in loras:
                tensors = importlib.import_module("comfy.utils").load_torch_file(str(path), safe_load=True)
                model, clip = importlib.import_module("comfy.sd").load_lora_for_models(model, clip, tensors, 1.0, 1.0)
        names = " and ".join(subject.name for subject in self.subjects)
        text = f"a photo of {PROMPTS[number % len(PROMPTS)].format(names)}"
        encode = self.stock["CLIPTextEncode"]().encode
        said, nothing = encode(clip, text)[0], encode(clip, "")[0]
        latent = self.stock["KSampler"]().sample(
            model, number, self.steps, 5.0, "euler", "ddim_uniform", said, nothing, start, denoise=1.0
        )[0]
        return self.stock["VAEDecode"]().decode(self.vae, latent)[0][0]

    def judge(self, image: Any) -> dict[str, Any]:
        """Return the score and the strict verdict of a picture."""
        from mudi_core.score.compare import compare

        found = compare(image, self.references, self.detector, self.embedder, threshold=0.05)
        return {"score": found.score, "sound": found.success, "boxes": found.detections.xyxy.tolist()}


def paint_all(load: Callable[[str], Any], pair: Path, place: Path, options: argparse.Namespace) -> None:
    """Paint and judge every picture of a training that is not there."""
    import torch
    from PIL import Image

    painter: Painter | None = None
    for method in METHODS:
        folder = place / "pictures" / method
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(options.pictures):
            path = folder / f"{number:03d}.json"
            if path.exists():
                continue
            painter = painter or Painter(load, pair, options.steps)
            with torch.inference_mode():
                image = painter.paint(method, place, number).float().cpu().clone()
            levels = (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()
            Image.fromarray(levels).save(path.with_suffix(".png"))
            part = path.with_suffix(".part")
            part.write_text(json.dumps(painter.judge(image)), encoding="utf-8")
            part.replace(path)


class Looks:
    """The judge that reads every look of every figure, where its weights are part of the checkout."""

    def __init__(self) -> None:
        from workshop import looks

        self.there = (looks.WEIGHTS / "looks.safetensors").is_file()
        self._reader = looks.load() if self.there else None

    def of(self, specs: Any, path: Path, row: dict[str, Any]) -> dict[str, float]:
        """Return the shares of right and leaked looks of a picture."""
        import torch

        from mudi_core.subjects.storage import read_photo
        from workshop import looks

        if self._reader is None:
            return {}
        figures = looks.read(self._reader, read_photo(path).image, torch.tensor(row["boxes"]).reshape(-1, 4))
        seen = looks.seen(figures, [spec.character for spec in specs])
        return {"right": seen.right, "leaked": seen.leaked}


def rows_of(place: Path, specs: Any, looks: Looks, kept: str = RESULTS) -> Iterator[dict[str, Any]]:
    """Yield what was found in each picture of a training, with its method and name."""
    if (place / kept).is_file():
        yield from map(json.loads, (place / kept).read_text(encoding="utf-8").splitlines())
        return
    for path in sorted(place.glob("pictures/*/*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        seen = looks.of(specs, path.with_suffix(".png"), row)
        yield {
            "method": path.parent.name,
            "picture": path.stem,
            "score": row["score"],
            "sound": row["sound"],
            **seen,
        }


def keep(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the file of results of a training whose pictures are all there."""
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(path)


def table(out: Path, pairs: Mapping[str, Any], seeds: int, methods: Iterable[str], kept: str = RESULTS) -> str:
    """Return the table of what is there: means, with intervals over pairs, trainings and pictures; and how far each is
    above the first of the methods, picture by picture from the same noise.

    A training's folder is ``out / pair / training-SEED``, a picture's file ``pictures / method / NUMBER.json`` in it;
    ``kept`` is its file of results.
    """
    looks = Looks()
    columns = {"score": "D&C", "sound": "both as themselves"}
    columns |= {"right": "looks right", "leaked": "looks leaked"} if looks.there else {}
    methods = list(methods)
    heads = ("method", "pictures", *columns.values(), f"D&C above {methods[0]}")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    found: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for pair, specs in pairs.items():
        for seed in range(seeds):
            for row in rows_of(out / pair / f"training-{seed}", specs, looks, kept):
                found.setdefault(row["method"], {}).setdefault(pair, {}).setdefault(str(seed), []).append(row)
    first = {(pair, seed, row["picture"]): row["score"] for pair, seed, row in _each(found.get(methods[0], {}))}
    for method in methods:
        rows = list(_each(found.get(method, {})))
        if not rows:
            continue
        cells = [method, str(len(rows))]
        for name in columns:
            cells.append(_cell([(pair, seed, float(row[name])) for pair, seed, row in rows]))
        above = [(p, s, row["score"] - first[at]) for p, s, row in rows if (at := (p, s, row["picture"])) in first]
        cells.append(_cell(above) if method != methods[0] else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _each(rows: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield pair, training and row of each picture of a method."""
    for pair, group in rows.items():
        for seed, own in group.items():
            yield from ((pair, seed, row) for row in own)


def _cell(values: list[tuple[str, str, float]]) -> str:
    """Return the mean of values of pairs and trainings, and its interval over them."""
    from mudi_core.report.statistics import hierarchical_interval

    nested: dict[str, dict[str, list[float]]] = {}
    for pair, seed, value in values:
        nested.setdefault(pair, {}).setdefault(seed, []).append(value)
    if not values:
        return "–"
    low, high = hierarchical_interval(nested)
    return f"{sum(value for *_, value in values) / len(values):.2f} ({low:.2f} to {high:.2f})"


@contextmanager
def nodes_of(comfyui: Path) -> Iterator[Callable[[str], Any]]:
    """Yield the pack's modules by name, in a ComfyUI without a server."""
    with tempfile.TemporaryDirectory() as base:
        yield pack(comfyui, Path(base), True)


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """Add what says which pairs, how many trainings of each, and whether anything is made."""
    parser.add_argument("--out", type=Path, required=True, help="folder of all files")
    parser.add_argument("--pairs", type=int, default=4, help="of held-out characters (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of these pairs, from 0")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each pair (default: %(default)s)")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="of the trainings, from 0: to share them among processes"
    )
    parser.add_argument("--dev", action="store_true", help="the pairs on which settings are chosen")
    parser.add_argument("--quick", action="store_true", help="trainings of a step or two, to try the program itself")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and make nothing")


def pairs_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the characters of each pair that the options say, by the name of its folder."""
    from mudi_core.toy.world import DEV_PAIRS, PAIRS

    every = list(enumerate(DEV_PAIRS if options.dev else PAIRS))
    return {f"pair-{i}": specs for i, specs in every[options.first : options.first + options.pairs]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pairs(parser)
    parser.add_argument("--pictures", type=int, default=32, help="of each training and method (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (default: %(default)s)")
    options = parser.parse_args()
    options.comfyui = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "ComfyUI").expanduser()
    pairs = pairs_of(options)
    if not options.table:
        if not (options.comfyui / "comfy" / "sd.py").is_file():
            sys.exit(f"No ComfyUI in {options.comfyui}: set COMFYUI_DIR to a checkout.")
        with nodes_of(options.comfyui) as load:
            for seed in range(options.first_seed, options.seeds):
                for name, specs in pairs.items():
                    pair = options.out / name
                    place = pair / f"training-{seed}"
                    if (place / RESULTS).is_file():
                        continue
                    photos(pair, specs)
                    train(place, pair, seed, options.quick)
                    paint_all(load, pair, place, options)
                    keep(rows_of(place, specs, Looks()), place / RESULTS)
    print(table(options.out, pairs, options.seeds, METHODS))


if __name__ == "__main__":
    main()
