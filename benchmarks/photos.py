"""Memory of `prepare` with photos of a phone's size: its peak, against one copy of all photos in float32.

    python benchmarks/photos.py --width 5712 --height 4284 --photos 5

Two subjects of so many photos are drawn, and prepared one after the other into one dataset.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from mudi_core.toy.world import PAIRS, photo  # noqa: E402


def prepared(folder: Path, token: str) -> float:
    """Return the highest MB so far of any `prepare` that ran."""
    command = [sys.executable, "-m", "mudi_core", "prepare", str(folder / token), "--token", token]
    command += ["--class-noun", "cat", "--base", "mini", "--threshold", "0", "--which", "best"]
    subprocess.run([*command, "--out", str(folder / "set")], check=True, capture_output=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=5712)
    parser.add_argument("--height", type=int, default=4284)
    parser.add_argument("--photos", type=int, default=5, help="of each of two subjects")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for number, spec in enumerate(PAIRS[0], start=1):
            folder = Path(place) / spec.token
            folder.mkdir()
            for n in range(args.photos):
                drawn = Image.fromarray(photo(spec.character, random.Random(f"{spec.token}/{n}"), 512).image)
                drawn.resize((args.width, args.height)).save(folder / f"{n}.jpg", quality=85)
            peak = prepared(Path(place), spec.token)
            floats = number * args.photos * args.width * args.height * 12 / 1e6
            share = f"{peak / floats:.2f} of their float32 ({floats:.0f} MB)"
            print(f"{number * args.photos} photos: peak {peak:.0f} MB, {share}", flush=True)


if __name__ == "__main__":
    main()
