"""Does the verdict "both are themselves" pass right pictures, and no mix? Seen on drawn pictures, whose truth is known.

    python benchmarks/verdicts.py             # the embedded limits and the lax ones, on pairs that chose nothing
    python benchmarks/verdicts.py --choose    # every limit of a grid, on the development pairs

Two characters stand side by side as they are, or one look is swapped between them, or one borrows it from the other.
A third of the pictures is as drawn, a third went through the base model's VAE, and a third was painted over by the base
model, whose hand is softer. Wanted: right pictures pass in 95 of 100 cases, every kind of mix in 5 or fewer.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.auroc import draw, pixels, subjects_of  # noqa: E402
from mudi_core.eyes import embedded as eyes
from mudi_core.score.compare import References, compare  # noqa: E402
from mudi_core.score.verdicts import LAX, judge  # noqa: E402
from mudi_core.toy import world  # noqa: E402
from mudi_core.toy.pairs import Pair, drawn  # noqa: E402
from mudi_core.toy.world import HELD_OUT_IDENTITIES, Character  # noqa: E402
from mudi_core.types import Comparison, SubjectSet, VerdictLimits  # noqa: E402
from workshop.brush import Brush  # noqa: E402
from workshop.train.text import read, tokenized  # noqa: E402

LOOKS = {
    "species": ("species",),
    "body colour": ("color",),
    "pattern": ("pattern",),
    "headwear": ("headwear", "headwear_color"),
    "neckwear": ("neckwear", "neckwear_color"),
    "glasses": ("glasses",),
    "all clothes": ("headwear", "headwear_color", "neckwear", "neckwear_color", "glasses"),
    "colour and pattern": ("color", "pattern"),
}
"""What is swapped or borrowed together."""
HANDS = ("drawn", "through the VAE", "painted over")
"""Who made a picture."""
NOISE, GUIDANCE = 300, 5.0
"""Of painting over: the looks are still those that were drawn."""
HALF = len(HELD_OUT_IDENTITIES) // 2
THRESHOLD = 0.25
OWN = (0.6, 2 / 3, 0.75, 0.8, 0.85, 0.9)
ALIKE = (2 / 3, 0.75, 0.8, 0.83, 0.86, 0.88, 0.9, 0.92)


def pairs_of(side: str, count: int) -> tuple[Pair, ...]:
    """Return pairs of held-out characters: those of the two sides have nobody in common.

    To each side belong six built-in pairs; of the drawn ones every second is turned into one of two species.
    """
    own, characters = (
        (world.DEV_PAIRS, HELD_OUT_IDENTITIES[:HALF])
        if side == "development"
        else (world.PAIRS, HELD_OUT_IDENTITIES[HALF:])
    )
    same = drawn(0, count, characters)
    crossed = [(a, replace(b, token=f"{a.token}2")) for (_, a), (b, _) in zip(same, same[1:], strict=False)]
    return (*own, *same[0::2], *((a, b) for a, b in crossed[0::2] if a.class_noun != b.class_noun))


def mixes(pair: Pair) -> Iterator[tuple[str, Character, Character]]:
    """Yield every picture of a pair by its kind, with who stands in it; kinds that change nothing are left out."""
    a, b = (spec.character for spec in pair)
    yield "right", a, b
    for look, fields in LOOKS.items():
        of_a, of_b = ({name: getattr(one, name) for name in fields} for one in (a, b))
        if of_a != of_b:
            yield f"{look}: swapped", replace(a, **of_b), replace(b, **of_a)
            yield f"{look}: borrowed", replace(a, **of_b), b
            yield f"{look}: borrowed", a, replace(b, **of_a)


def by_hand(brush: Brush, image: Tensor, hand: str, cast: Sequence[Character], seed: int) -> Tensor:
    """Return a picture ``[h, w, 3]``, 0..1, as one of `HANDS` makes it."""
    if hand == "drawn":
        return image
    z = brush.encoded(image[None])
    if hand == "painted over":
        caption = "a photo of " + " and ".join(f"a {one.describe()}" for one in cast)
        line, _ = tokenized(read(caption, {}).words)
        z = brush.over(z, [line], GUIDANCE, NOISE, torch.Generator().manual_seed(seed))
    return brush.decoded(z)[0]


@dataclass(frozen=True)
class Drawn:
    """One drawn picture of a pair, compared."""

    pair: int
    kind: str
    hand: str
    subjects: SubjectSet
    compared: Comparison

    def passes(self, limits: VerdictLimits) -> bool:
        """Return whether both subjects are themselves by these limits, and nobody else is there."""
        verdicts = judge(self.subjects, self.compared.s_gt, self.compared.s_dc, limits=limits)
        return self.compared.count_is_right and all(one.status == "found" for one in verdicts)


def compared(pairs: Sequence[Pair], each: int, only: Sequence[str] = (), hands: Sequence[str] = HANDS) -> list[Drawn]:
    """Make ``each`` pictures of every kind (or ``only`` of these) for every pair, by these hands in turns, compared by
    the embedded models."""
    detector, embedder, brush = eyes.load_detector(), eyes.load_embedder(), Brush(torch.device("cpu"))
    results = []
    for number, pair in enumerate(pairs):
        subjects = subjects_of(pair)
        references = References(subjects, embedder, cut_out=True)
        kinds = [one for one in mixes(pair) if one[0] in only or not only]
        for i, (kind, *cast) in product(range(each), kinds):
            hand = hands[(number + i) % len(hands)]
            image = pixels(draw(cast, random.Random(f"{number} {kind} {i}")))
            image = by_hand(brush, image, hand, cast, seed=number * each + i)
            found = compare(image, references, detector, embedder, threshold=THRESHOLD)
            results.append(Drawn(number, kind, hand, subjects, found))
    return results


def shares(results: Sequence[Drawn], limits: VerdictLimits) -> dict[str, float]:
    """Return the share of the pictures of each kind that pass."""
    kinds = dict.fromkeys(one.kind for one in results)
    passed = {kind: [one.passes(limits) for one in results if one.kind == kind] for kind in kinds}
    return {kind: sum(values) / len(values) for kind, values in passed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="a grid of limits, on the development pairs")
    parser.add_argument("--pairs", type=int, default=20, help="drawn before the built-in ones (default: %(default)s)")
    parser.add_argument("--each", type=int, default=2, help="pictures of each kind and pair (default: %(default)s)")
    options = parser.parse_args()
    begun = time.monotonic()
    pairs = pairs_of("development" if options.choose else "others", options.pairs)
    results = compared(pairs, options.each)
    print(f"{len(results)} pictures of {len(pairs)} pairs; {time.monotonic() - begun:.0f} s\n")
    if options.choose:
        print(f"{'own share':>9} {'likeness':>9} {'right':>6} {'worst mix':>10}  all kinds in this order")
        for own, alike in product(OWN, ALIKE):
            right, *wrong = shares(results, VerdictLimits(own, alike)).values()
            print(f"{own:9.2f} {alike:9.2f} {right:6.2f} {max(wrong):10.2f}  {' '.join(f'{w:.2f}' for w in wrong)}")
            hands = [[one for one in results if one.hand == hand and one.kind == "right"] for hand in HANDS]
            print(
                " " * 27, *(f"{shares(some, VerdictLimits(own, alike))['right']:.2f} {some[0].hand};" for some in hands)
            )
        print("\n" + "\n".join(list(shares(results, eyes.VERDICT_LIMITS))[1:]))
    else:
        print(f"{'passes by':32}{'these limits':>14}{'the lax ones':>14}")
        lax = shares(results, LAX)
        for kind, share in shares(results, eyes.VERDICT_LIMITS).items():
            print(f"{kind:32}{share:14.2f}{lax[kind]:14.2f}  of {sum(one.kind == kind for one in results)}")
        for hand in HANDS:
            some = [one for one in results if one.hand == hand and one.kind == "right"]
            ours, before = (shares(some, limits)["right"] for limits in (eyes.VERDICT_LIMITS, LAX))
            print(f"{'right, ' + hand:32}{ours:14.2f}{before:14.2f}  of {len(some)}")


if __name__ == "__main__":
    main()
