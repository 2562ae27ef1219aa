"""`python -m workshop.ready_lora`: train the LoRA that the quickstart draws with before anything is trained.

It is for the first of the reported pairs, with the demo's settings but half the rank, so that the file is small, on
photos that are drawn as Mini Photos draws them. Run it again whenever the U-Net has new weights: its file says which
ones it was made for.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.embedded.ready_lora import MADE_FOR, READY_LORA
from mudi_core.bases.families import EMBEDDED
from mudi_core.cli.talk import Talk
from mudi_core.demo.job import draw_photos, prepare_photos
from mudi_core.demo.settings import DemoSettings
from mudi_core.jobs.train import LoraFiles, Training, train_lora
from mudi_core.lora.file import save_lora
from mudi_core.toy.world import PAIRS

RANK = 8


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workshop.ready_lora", description=__doc__)
    parser.add_argument("--out", type=Path, default=READY_LORA, help="the file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    talk, settings, pair = Talk(), DemoSettings(rank=RANK), PAIRS[0]
    with tempfile.TemporaryDirectory() as folder:
        subjects = prepare_photos([draw_photos(Path(folder), one, 0, settings) for one in pair], pair, settings)
    training = Training(open_checkpoint(EMBEDDED), subjects, settings.train_config("segmix", args.seed))
    plan = training.plan(talk.progress)
    result = train_lora(training, plan, LoraFiles(None), talk.progress)
    about = {**training.about(plan), MADE_FOR: training.base.denoiser().fingerprint()}
    save_lora(args.out, result.state, about)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
