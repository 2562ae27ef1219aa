"""How many pictures a second Detect-and-Compare scores: this project against one by one.

    python benchmarks/compare.py            # the embedded detector and embedder
    python benchmarks/compare.py --full     # OWLv2-base and DINOv2-base of true size with random weights

One by one means what the official evaluation does: for every picture the photos of all subjects are embedded again, one
at a time, and so are the crops. Both take turns on the same pictures in one process on one thread and are charged by
CPU time, so a busy machine changes the numbers little and the ratio less. The detector's work is the same in both. With
true-size models it is the larger part of it all, and bounds the ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mudi_core.eyes import Detector, Embedder  # noqa: E402
from mudi_core.eyes import embedded as eyes
from mudi_core.score.compare import References, compare, compare_all  # noqa: E402
from mudi_core.toy import world  # noqa: E402
from mudi_core.toy.world import PAIRS, photo  # noqa: E402
from mudi_core.types import Photo, Subject, SubjectSet  # noqa: E402
from mudi_core.vocabulary import tokenizer

Eyes = tuple[Detector, Embedder]
Scores = list[float]


def drawn_subjects(photos: int, side: int) -> SubjectSet:
    """Return two drawn characters with this many photos each."""
    subjects = []
    for spec in PAIRS[0]:
        shots = [photo(spec.character, random.Random(f"{spec.token} {i}"), side) for i in range(photos)]
        files = tuple(Photo(f"{i}.png", _pixels(shot.image)) for i, shot in enumerate(shots))
        masks = tuple(torch.from_numpy(shot.masks[0]).float() for shot in shots)
        subjects.append(Subject(spec.token, spec.class_noun, files, masks))
    return SubjectSet(tuple(subjects))


def drawn_pictures(side: int) -> Iterator[Tensor]:
    """Scenes of two characters, without end, each drawn when it is wanted."""
    rng = random.Random(0)
    while True:
        yield _pixels(world.render(world.random_scene(rng, count=2), side).image)


def ours(pictures: Sequence[Tensor], subjects: SubjectSet, eyes: Eyes) -> Scores:
    references = References(subjects, eyes[1])
    return [result.score for result in compare_all(pictures, references, *eyes)]


def one_by_one(pictures: Sequence[Tensor], subjects: SubjectSet, eyes: Eyes) -> Scores:
    detector, embedder = eyes

    def alone(images: Sequence[Tensor]) -> Tensor:
        return torch.cat([embedder([image]) for image in images])

    return [compare(picture, References(subjects, alone), detector, alone).score for picture in pictures]


def measure(pictures: Sequence[Tensor], subjects: SubjectSet, eyes: Eyes, rounds: int) -> dict[str, float]:
    """Return pictures per CPU second of both ways (medians over rounds), their ratio, and the difference of scores."""
    ways: dict[str, Callable[..., Scores]] = {"ours": ours, "one by one": one_by_one}
    scores = {name: way(pictures[:2], subjects, eyes) for name, way in ways.items()}  # the first call pays for loading
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            scores[name] = way(pictures, subjects, eyes)
            seconds[name].append(time.process_time() - begun)
    rate = {name: len(pictures) / statistics.median(times) for name, times in seconds.items()}
    differences = [abs(a - b) for a, b in zip(*scores.values(), strict=True)]
    return {**rate, "ratio": rate["ours"] / rate["one by one"], "largest difference": max(differences)}


def memory(subjects: SubjectSet, eyes: Eyes, counts: Sequence[int], side: int) -> dict[str, float]:
    """Return the peak memory of the process in MB after each of these numbers of pictures, of a side in pixels."""
    references, peaks = References(subjects, eyes[1]), {}
    for count in counts:
        for _ in compare_all(islice(drawn_pictures(side), count), references, *eyes):
            pass
        peaks[f"after {count} pictures"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return peaks


def full_size() -> Eyes:
    """Return OWLv2-base and DINOv2-base with random weights: as slow as the real ones."""
    from transformers import Dinov2Config, Dinov2Model, Owlv2Config, Owlv2ForObjectDetection

    from mudi_core.eyes.dinov2 import Dinov2Embedder
    from mudi_core.eyes.owlv2 import Owlv2Detector

    vision = {"hidden_size": 768, "image_size": 960, "patch_size": 16}
    cpu = torch.device("cpu")
    owlv2 = Owlv2ForObjectDetection(Owlv2Config(vision_config=vision))
    dinov2 = Dinov2Model(Dinov2Config(image_size=518, patch_size=14))
    return Owlv2Detector(owlv2, tokenizer("!", 16), cpu), Dinov2Embedder(dinov2, cpu)


def _pixels(drawn: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(drawn)).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="models of true size with random weights (slow)")
    parser.add_argument("--pictures", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--photos", type=int, default=5, help="of each of the two subjects (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = full_size() if options.full else (eyes.load_detector(), eyes.load_embedder())
    subjects = drawn_subjects(options.photos, 512)
    speed = measure(list(islice(drawn_pictures(256), options.pictures)), subjects, models, options.rounds)
    peaks = {} if options.full else memory(subjects, models, (100, 300, 900), 512)
    if options.json:
        print(json.dumps({"speed": speed, "peak_mb": peaks}, indent=2))
        return
    print(f"{options.pictures} pictures, {options.photos} photos of each of two subjects, one thread, CPU time")
    print(
        f"ours {speed['ours']:.1f} pictures a second, one by one {speed['one by one']:.1f}: {speed['ratio']:.1f} times"
    )
    print(f"scores differ by {speed['largest difference']:.1e} at most")
    if peaks:
        print("peak memory with pictures of 512 px: " + ", ".join(f"{mb:.0f} MB {n}" for n, mb in peaks.items()))


if __name__ == "__main__":
    main()
