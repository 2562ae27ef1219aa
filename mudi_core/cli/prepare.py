"""`prepare`: photos of one subject into a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_base, add_command, add_device, add_models, device, load_detector, load_segmenter
from .talk import Answer, Talk


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "prepare",
        run,
        summary="photos of one subject into a dataset",
        description="Finds a subject in each of its photos, cuts it out, and adds it to a dataset folder. Run it once "
        "for each subject, with the same --out. Each photo must show the subject once; 3 to 5 photos in different "
        "surroundings are enough.",
        example="python -m mudi_core prepare photos/rex --token olis --class-noun dog --base mini --out dogs",
    )
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="folder of JPEG, PNG, WebP, AVIF, BMP or TIFF files of one subject"
    )
    parser.add_argument(
        "--token", required=True, metavar="WORD", help="rare word that will name the subject: olis, hta, ult, lun"
    )
    parser.add_argument(
        "--class-noun", required=True, metavar="NOUN", help="what the subject is, as exact as you like: corgi"
    )
    parser.add_argument(
        "--query", metavar="TEXT", help="what the detector looks for, a general word: dog (default: the class noun)"
    )
    add_base(parser, "mini, or your SDXL model: decides which detector and segmenter are used")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DATASET", help="dataset folder, new or with other subjects"
    )
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="masks drawn by hand, white on black, as mask_<photo>.png; then nothing is detected",
    )
    parser.add_argument(
        "--which",
        choices=("exactly-one", "best"),
        default="exactly-one",
        help="exactly-one (default): finding the subject twice is an error; best: take the most confident box",
    )
    parser.add_argument("--replace", action="store_true", help="replace the subject that has this token, if any")
    add_models(parser, "detector", "segmenter")
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..jobs.prepare import Wanted, prepare
    from ..subjects import find, storage

    photos = storage.read_photos(args.photos)
    if (args.out / storage.METADATA).exists():
        talk.on_disk = f"{args.out} is as it was."
    which: find.Which = "best" if args.which == "best" else "exactly one"
    if args.masks is not None:
        masks = storage.read_masks(args.masks, photos)
        subject = find.subject_from_masks(photos, masks, args.token, args.class_noun, which)
    else:
        wanted = Wanted(args.token, args.class_noun, args.query or "", args.threshold, which)
        on = device(args)
        subject = prepare(photos, wanted, load_detector(args, on, talk), load_segmenter(args, on, talk), talk.progress)
    together, folder = storage.add_subject(args.out, subject, args.replace)
    names = [tuple(name.split(maxsplit=1)) for name, _ in together]
    for doubt in find.name_doubts([(token, noun) for token, noun in names]):
        talk.say(f"Warning: {doubt}")
    listed = ", ".join(name for name, _ in together)
    return Answer(
        f"{args.out}: {len(photos)} photos of {subject.name} added. Subjects in it now: {listed}.",
        {
            "dataset": str(folder),
            "added": subject.token,
            "photos": len(photos),
            "coverage": [round(float((mask > 0.5).float().mean()), 4) for mask in subject.masks],
            "subjects": [
                {"token": token, "class_noun": noun, "photos": count}
                for (token, noun), (_, count) in zip(names, together, strict=True)
            ],
        },
    )
