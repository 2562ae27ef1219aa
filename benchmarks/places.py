"""Whether subjects stand where the start puts them, and how many of those asked for come, with the embedded model.

    python -m mudi_core demo --out DEMO
    python benchmarks/places.py sides DEMO --json sides.json
    python benchmarks/places.py numbers FOLDER --json numbers.json
    python benchmarks/places.py plot sides.json numbers.json docs/places.svg

*sides* takes the demo's pair and its Seg-Mix LoRA and puts one subject left and the other right, then the other way
round, with the same seeds and the same prompt, at several gammas. A subject is on its side when a figure whose middle
lies in its half is more like it than like the other. *numbers* draws five characters, trains them in one LoRA (Seg-Mix,
half as many steps again as the demo) and asks for the first 2, 3, 4 and 5 of them, at random places and from plain
noise; a subject is found when some figure is that subject's, by the verdicts of Detect-and-Compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from mudi_core.bases.families import EMBEDDED  # noqa: E402
from mudi_core.demo.job import draw_photos, prepare_photos  # noqa: E402
from mudi_core.demo.settings import DemoSettings  # noqa: E402
from mudi_core.eyes import load_detector, load_embedder  # noqa: E402
from mudi_core.jobs.generate import GenerateConfig, Picture, default_prompt, generate  # noqa: E402
from mudi_core.lora.adapter import apply_lora
from mudi_core.lora.file import load_lora, save_lora
from mudi_core.lora.metadata import lora_metadata  # noqa: E402
from mudi_core.score.compare import References, compare_all  # noqa: E402
from mudi_core.stage.cutouts import cut_outs  # noqa: E402
from mudi_core.stage.layout_text import Place  # noqa: E402
from mudi_core.start.init_latent import default_gamma  # noqa: E402
from mudi_core.subjects import storage  # noqa: E402
from mudi_core.subjects.prompt import write_prompt  # noqa: E402
from mudi_core.toy.world import PAIRS  # noqa: E402
from mudi_core.train.loop import train  # noqa: E402
from mudi_core.train.plan import make_plan  # noqa: E402
from mudi_core.types import Comparison, SubjectSet  # noqa: E402

GAMMAS = (0.0, 1.0, 2.0, 3.0, 4.0)
LEFT, RIGHT = (0.02, 0.08, 0.48, 0.98), (0.52, 0.08, 0.98, 0.98)
ASKED = (2, 3, 4, 5)
SETTINGS = DemoSettings()
CAST = (*PAIRS[0], *PAIRS[2], PAIRS[3][0])
"""Five characters of the reported pairs, with a token each."""


class Judge:
    """Which figures of a picture are whose."""

    def __init__(self, subjects: SubjectSet) -> None:
        cpu = torch.device("cpu")
        self.detector, self.embedder = load_detector(EMBEDDED, None, cpu), load_embedder(EMBEDDED, None, cpu)
        self.references = References(subjects, self.embedder, SETTINGS.cut_out_references)

    def __call__(self, pictures: Sequence[Picture]) -> list[Comparison]:
        images = [picture.image for picture in pictures]
        return list(compare_all(images, self.references, self.detector, self.embedder, threshold=SETTINGS.threshold))


def on_its_side(comparison: Comparison, token: str, left: bool, width: int) -> bool:
    """Return whether a figure most similar to this subject has its middle in the left, or right, half."""
    k = comparison.tokens.index(token)
    middles = comparison.detections.xyxy[:, [0, 2]].mean(1)
    owners = comparison.s_dc.argmax(1) if len(comparison.s_dc) else torch.zeros(0)
    return any(
        int(owner) == k and (float(middle) < width / 2) == left for owner, middle in zip(owners, middles, strict=True)
    )


def sides(demo: Path, seeds: int) -> dict[str, Any]:
    """By gamma: pictures, and of how many subjects in them each stands on its side, of how many both do."""
    subjects = storage.read_subjects(demo / "dataset")
    cutouts, judge, checkpoint = cut_outs(subjects, SETTINGS.size), Judge(subjects), open_checkpoint(EMBEDDED)
    apply_lora(checkpoint.unet, load_lora(demo / "segmix.safetensors")[0])
    config = replace(SETTINGS.generate_config(default_prompt(subjects), True, 0), count=seeds)
    results: dict[str, dict[str, int]] = {}
    for gamma in GAMMAS:
        tally = {"pictures": 0, "subjects": 0, "both": 0}
        for tokens in (subjects.tokens, subjects.tokens[::-1]):
            places = dict(zip(tokens, (Place(LEFT), Place(RIGHT)), strict=True))
            pictures = list(generate(checkpoint, cutouts, replace(config, gamma=gamma, places=places)))
            for comparison in judge(pictures):
                right = [on_its_side(comparison, token, token == tokens[0], SETTINGS.size) for token in tokens]
                tally["pictures"] += 1
                tally["subjects"] += sum(right)
                tally["both"] += all(right)
        results[f"{gamma:g}"] = tally
        print(
            f"gamma {gamma:g}: {tally['subjects'] / 2 / tally['pictures']:.0%} of the subjects on their side, "
            f"both in {tally['both']} of {tally['pictures']} pictures",
            flush=True,
        )
    return {"seeds": seeds, "prompt": config.prompt, "gammas": results}


def five(folder: Path, checkpoint: Checkpoint) -> SubjectSet:
    """The cast, cut out, and its LoRA beside it; what is in the folder already is not made again."""
    dataset, lora = folder / "dataset", folder / "segmix.safetensors"
    if not lora.is_file():
        photos = [draw_photos(folder / "photos", spec, 0, SETTINGS) for spec in CAST]
        subjects = SubjectSet(
            tuple(
                subject
                for spec, place in zip(CAST, photos, strict=True)
                for subject in prepare_photos([place], (spec,), SETTINGS)  # type: ignore[arg-type]
            )
        )
        storage.write_subjects(subjects, dataset)
        config = replace(SETTINGS, train_steps=SETTINGS.train_steps * 3 // 2).train_config("segmix", 0)
        plan = make_plan(subjects, config.samples, checkpoint.encode_image, checkpoint.condition)
        result = train(checkpoint.denoiser(), plan, config)
        about = lora_metadata(config.described(), subjects, base=checkpoint.name, plan_hash=plan.plan_hash)
        save_lora(lora, result.state, about)
    return storage.read_subjects(dataset)


def numbers(folder: Path, seeds: int) -> dict[str, Any]:
    """By number asked, with and without the start: pictures, subjects found in them, pictures with all, figures."""
    checkpoint = open_checkpoint(EMBEDDED)
    everybody = five(folder, checkpoint)
    apply_lora(checkpoint.unet, load_lora(folder / "segmix.safetensors")[0])
    results: dict[str, dict[str, dict[str, int]]] = {}
    for asked in ASKED:
        subjects = SubjectSet(everybody.subjects[:asked])
        cutouts, judge = cut_outs(subjects, SETTINGS.size), Judge(subjects)
        prompt = write_prompt([subject.name for subject in subjects])
        config: GenerateConfig = replace(SETTINGS.generate_config(prompt, True, 0), count=seeds)
        results[str(asked)] = {}
        for name, gamma in (("start", default_gamma(asked)), ("noise", 0.0)):
            found = judge(list(generate(checkpoint, cutouts, replace(config, gamma=gamma))))
            present = [sum(verdict.status != "missing" for verdict in one.verdicts) for one in found]
            results[str(asked)][name] = {
                "pictures": len(found),
                "found": sum(present),
                "all": sum(count == asked for count in present),
                "figures": sum(len(one.detections) for one in found),
            }
            print(
                f"{asked} asked, gamma {gamma:g}: {sum(present) / len(found):.2f} found, all of them in "
                f"{results[str(asked)][name]['all']} of {len(found)} pictures, "
                f"{results[str(asked)][name]['figures'] / len(found):.2f} figures",
                flush=True,
            )
    return {"seeds": seeds, "asked": results}


def plot(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results of `sides` and `numbers`, next to each other, as SVG."""
    height, top, bottom, margin, panel = 300, 48, 48, 56, 360
    ink, grid, blue, orange = "#333", "#ddd", "#0072b2", "#d55e00"
    parts: list[str] = []

    def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = ink) -> None:
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>')

    def line(points: Sequence[tuple[float, float]], colour: str, more: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {more}/>')

    def level(share: float) -> float:
        return height - bottom - share * (height - top - bottom)

    def axes(left: float, ticks: Mapping[float, str], title: str, below: str) -> None:
        text(left + panel / 2, 24, title)
        text(left + panel / 2, height - 8, below)
        for share, words in ticks.items():
            line([(left, level(share)), (left + panel, level(share))], grid)
            text(left - 8, level(share) + 4, words, "end")

    def draw_sides(left: float, by_gamma: Mapping[str, Mapping[str, int]]) -> None:
        axes(left, {i / 5: f"{i * 20} %" for i in range(6)}, "subjects on the side they were put", "gamma")
        line([(left, level(0.8)), (left + panel, level(0.8))], ink, 'stroke-dasharray="4 4"')
        curve = []
        for i, (gamma, tally) in enumerate(by_gamma.items()):
            x, share = left + 36 + i * (panel - 72) / (len(by_gamma) - 1), tally["subjects"] / 2 / tally["pictures"]
            curve.append((x, level(share)))
            parts.append(f'<circle cx="{x:.1f}" cy="{level(share):.1f}" r="4" fill="{blue}"/>')
            text(x, level(share) - 10, f"{share:.0%}")
            text(x, height - bottom + 18, gamma)
        line(curve, blue, 'stroke-width="2"')

    def draw_numbers(left: float, by_number: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
        most = max(map(int, by_number))
        axes(
            left, {i / most: str(i) for i in range(most + 1)}, "subjects found in a picture, mean", "subjects asked for"
        )
        for i, (asked, arms) in enumerate(by_number.items()):
            middle = left + 52 + i * (panel - 104) / (len(by_number) - 1)
            text(middle, height - bottom + 18, asked)
            for name, colour, x in (("noise", orange, middle - 30), ("start", blue, middle + 2)):
                mean = arms[name]["found"] / arms[name]["pictures"]
                tall = level(0) - level(mean / most)
                parts.append(
                    f'<rect x="{x:.1f}" y="{level(mean / most):.1f}" width="28" height="{tall:.1f}" fill="{colour}"/>'
                )
                text(x + 14, level(mean / most) - 6, f"{mean:.1f}")
        text(left + 8, top + 14, "from the layout's start", "start", blue)
        text(left + 8, top + 32, "from plain noise", "start", orange)

    for number, result in enumerate(results):
        left = margin + number * (panel + margin)
        if "gammas" in result:
            draw_sides(left, result["gammas"])
        else:
            draw_numbers(left, result["asked"])
    return _svg(parts, len(results) * (panel + margin) + 16, height)


def _svg(parts: Sequence[str], width: int, height: int) -> str:
    """A picture of these parts on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("sides", "the folder that the demo wrote"), ("numbers", "a folder for photos and LoRA")):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path, help=about)
        command.add_argument("--seeds", type=int, default=64, help="pictures of each kind (default: %(default)s)")
        command.add_argument("--json", type=Path, help="file to write the counts to")
    command = commands.add_parser("plot")
    command.add_argument("counts", type=Path, nargs="+", help="what --json of the others has written")
    command.add_argument("svg", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "plot":
        read = [json.loads(file.read_text(encoding="utf-8")) for file in options.counts]
        options.svg.write_text(plot(read), encoding="utf-8")
        return
    counts = (sides if options.command == "sides" else numbers)(options.folder, options.seeds)
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
