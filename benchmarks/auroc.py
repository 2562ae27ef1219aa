"""Does the Detect-and-Compare score tell good pictures from bad ones, when the truth about them is known?

    python benchmarks/auroc.py

Each held-out pair is painted correctly, and wrongly in five ways: each has the other's clothes, one is there twice, one
is missing, somebody else is there too, or two strangers of the same species are there. AUROC is the probability that a
good picture scores higher than a bad one; ties count half. The 95 % interval is a bootstrap over the pairs of
characters, since pictures of one pair are similar. The table also has the plain similarities that the score should
improve on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mudi_core.bases import embedded as family
from mudi_core.eyes import embedded as eyes
from mudi_core.score.compare import References, compare  # noqa: E402
from mudi_core.toy import world  # noqa: E402
from mudi_core.toy.world import DEV_PAIRS, PAIRS, Actor, Character, Rendered, Scene, SubjectSpec  # noqa: E402
from mudi_core.types import Photo, Subject, SubjectSet  # noqa: E402
from workshop.figures import auroc  # noqa: E402

Pair = tuple[SubjectSpec, SubjectSpec]
KINDS = ("right", "mixed", "duplicate", "missing", "extra", "strangers")
"""What a picture shows; the first is good, the others are bad."""
SCORES = {
    "score": "D&C score",
    "spectral": "D&C score, spectral",
    "picture": "mean similarity of the picture",
    "crops": "mean similarity of the crops",
    "best": "mean similarity of each subject's best crop",
}
PHOTOS = 5


@dataclass(frozen=True)
class Judged:
    """One drawn picture and what was made of it."""

    pair: int
    kind: str
    scores: dict[str, float]
    """By the names of `SCORES`."""


def cast(pair: Pair, kind: str, rng: random.Random) -> list[Character]:
    """Return who stands in a picture of this kind."""
    a, b = (spec.character for spec in pair)
    if kind == "mixed":
        worn = ("headwear", "headwear_color", "neckwear", "neckwear_color", "glasses")
        of_a, of_b = ({name: getattr(one, name) for name in worn} for one in (a, b))
        return [replace(a, **of_b), replace(b, **of_a)]
    if kind == "duplicate":
        return [rng.choice((a, b))] * 2
    if kind == "missing":
        return [rng.choice((a, b))]
    strangers = rng.sample([one for one in world.HELD_OUT_IDENTITIES if one.species == a.species], 2)
    if kind == "strangers":
        return strangers
    return [a, b, strangers[0]] if kind == "extra" else [a, b]


def draw(characters: Sequence[Character], rng: random.Random) -> Rendered:
    """Paint the characters side by side in random poses, sizes, places and order."""
    actors = []
    for i, character in enumerate(rng.sample(characters, len(characters))):
        pose, slot = world.random_pose(rng), 0.96 / len(characters)
        height = min(rng.uniform(0.5, 0.75), slot / world.aspect(character, pose))
        width = height * world.aspect(character, pose)
        x0, floor = 0.02 + i * slot + rng.uniform(0, slot - width), rng.uniform(0.8, 0.96)
        actors.append(Actor(character, pose, (x0, floor - height, x0 + width, floor)))
    return world.render(Scene(*world.random_background(rng), tuple(actors)), family.SIZE)


def subjects_of(pair: Pair) -> SubjectSet:
    """Return photos of both with their true masks."""
    subjects = []
    for spec in pair:
        shots = [world.photo(spec.character, random.Random(f"{spec.character} {i}"), 320) for i in range(PHOTOS)]
        photos = tuple(Photo(f"{i}.png", pixels(shot)) for i, shot in enumerate(shots))
        masks = tuple(torch.from_numpy(shot.masks[0]).float() for shot in shots)
        subjects.append(Subject(spec.token, spec.class_noun, photos, masks))
    return SubjectSet(tuple(subjects))


def pixels(drawn: Rendered) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(drawn.image)).float() / 255


def judged(pairs: Sequence[Pair], each: int, threshold: float, cut_out: bool) -> list[Judged]:
    """``each`` pictures of every kind for every pair, scored with the embedded detector and embedder."""
    detector, embedder = eyes.load_detector(), eyes.load_embedder()
    results = []
    for number, pair in enumerate(pairs):
        references = References(subjects_of(pair), embedder, cut_out)
        for kind in KINDS:
            for i in range(each):
                rng = random.Random(f"{number} {kind} {i}")
                image = pixels(draw(cast(pair, kind, rng), rng))
                result = compare(image, references, detector, embedder, threshold=threshold)
                whole, crops = embedder([image]) @ references.means.T, result.s_dc
                scores = {
                    "score": result.score,
                    "spectral": result.score_spectral,
                    "picture": float(whole.mean()),
                    "crops": float(crops.mean()) if len(crops) else 0.0,
                    "best": float(crops.amax(0).mean()) if len(crops) else 0.0,
                }
                results.append(Judged(number, kind, scores))
    return results


def aurocs(results: Sequence[Judged], name: str) -> dict[str, float]:
    """Compare good pictures with those of each bad kind, and with ``all`` of them."""
    by_kind = {kind: [one.scores[name] for one in results if one.kind == kind] for kind in KINDS}
    good, *bad = by_kind.values()
    return {
        "all": auroc(good, [score for scores in bad for score in scores]),
        **{kind: auroc(good, by_kind[kind]) for kind in KINDS[1:]},
    }


def interval(results: Sequence[Judged], name: str, draws: int = 1000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the AUROC against all, over pairs of characters."""
    pairs = sorted({one.pair for one in results})
    of_pair = {pair: [one for one in results if one.pair == pair] for pair in pairs}
    rng, values = random.Random(0), []
    for _ in range(draws):
        drawn = [one for pair in rng.choices(pairs, k=len(pairs)) for one in of_pair[pair]]
        good = [one.scores[name] for one in drawn if one.kind == KINDS[0]]
        values.append(auroc(good, [one.scores[name] for one in drawn if one.kind != KINDS[0]]))
    bounds: NDArray[np.float64] = np.quantile(values, [0.025, 0.975])
    return float(bounds[0]), float(bounds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=6, help="pictures of each kind and pair (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.25, help="of the detector (default: %(default)s)")
    parser.add_argument("--whole", action="store_true", help="whole reference photos instead of cut-outs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    results = judged(PAIRS + DEV_PAIRS, options.each, options.threshold, not options.whole)
    if options.json:
        table = {name: {**aurocs(results, name), "interval": interval(results, name)} for name in SCORES}
        print(json.dumps(table, indent=2))
        return
    pairs, shown = (
        len({one.pair for one in results}),
        {kind: sum(one.kind == kind for one in results) for kind in KINDS},
    )
    print(f"{len(results)} pictures of {pairs} pairs ({', '.join(f'{n} {kind}' for kind, n in shown.items())})")
    print(f"AUROC, right against each kind and against all; {time.monotonic() - begun:.0f} s\n")
    print(f"{'':46}{'all (95 % interval)':22}" + "".join(f"{kind:>11}" for kind in KINDS[1:]))
    for name, title in SCORES.items():
        values = aurocs(results, name)
        low, high = interval(results, name)
        row = "".join(f"{values[kind]:>11.3f}" for kind in KINDS[1:])
        overall = f"{values['all']:.3f} ({low:.3f} to {high:.3f})"
        print(f"{title:46}{overall:22}{row}")


if __name__ == "__main__":
    main()
