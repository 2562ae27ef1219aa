"""`prepare`: photos of one subject into a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_base, add_command, add_device, add_models, device, load_detector, load_segmenter
from .talk import Answer, Talk

if TYPE_CHECKING:
    from ..types import Photo


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "prepare",
        run,
        summary="photos of one subject into a dataset",
        description="Finds a subject in each of its photos, cuts it out, and adds it to a dataset folder. Run it once "
        "for each subject, with the same --out. Each photo must show the subject once; 3 to 5 photos in different "
        "surroundings are enough. A text file beside a photo, named like it, is its caption.",
        example="python -m mudi_core prepare photos/rex --token olis --class-noun dog --base mini --out dogs",
    )
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="folder of JPEG, PNG, WebP, AVIF, BMP or TIFF files of one subject"
    )
    parser.add_argument(
        "--token",
        metavar="WORD",
        help="rare word that will name the subject: olis, hta, ult, lun (default: that of a folder '10_olis dog')",
    )
    parser.add_argument(
        "--class-noun",
        metavar="NOUN",
        help="what the subject is, as exact as you like: corgi (default: that of such a folder)",
    )
    parser.set_defaults(refuse=parser.error)
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
    parser.add_argument(
        "--describe",
        choices=("offer", "take"),
        help="ask a language model, which sees one photo, for a more exact class noun, and print it (offer) or use it "
        "(take)",
    )
    parser.add_argument(
        "--llm",
        default="",
        metavar="URL",
        help="its OpenAI-compatible endpoint (default: $MUDI_LLM_URL, or Ollama's here)",
    )
    parser.add_argument("--llm-model", default="", metavar="NAME", help="its name there (default: the first listed)")
    parser.add_argument("--replace", action="store_true", help="replace the subject that has this token, if any")
    add_models(parser, "detector", "segmenter")
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..jobs.prepare import Wanted, prepare
    from ..subjects import captions, find, storage

    token, given = _names(args, talk)
    photos = storage.read_photos(args.photos, packed=True)
    noun = _class_noun(args, talk, photos, given)
    photos, remarks = captions.named(photos, token, noun)
    for remark in remarks:
        talk.say(f"Warning: {remark}")
    if (args.out / storage.METADATA).exists():
        talk.on_disk = f"{args.out} is as it was."
    which: find.Which = "best" if args.which == "best" else "exactly one"
    if args.masks is not None:
        masks = storage.read_masks(args.masks, photos, packed=True)
        subject = find.subject_from_masks(photos, masks, token, noun, which)
    else:
        wanted = Wanted(token, noun, args.query or given, args.threshold, which)
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
            "captions": sum(bool(photo.caption) for photo in photos),
            "coverage": [round(float((mask > 0.5).float().mean()), 4) for mask in subject.masks],
            "subjects": [
                {"token": token, "class_noun": noun, "photos": count}
                for (token, noun), (_, count) in zip(names, together, strict=True)
            ],
        },
    )


def _names(args: argparse.Namespace, talk: Talk) -> tuple[str, str]:
    """Return token and class noun as the user gave them, or else as the folder's name offers them, which is said."""
    from ..subjects.captions import offer_of

    offer = offer_of(args.photos.resolve().name)
    token, noun = args.token, args.class_noun
    if offer is not None:
        token = offer.token if token is None else token
        noun = (offer.class_noun or None) if noun is None else noun
    if token is None:
        args.refuse("the following arguments are required: --token")
    if noun is None:
        args.refuse("the following arguments are required: --class-noun")
    if offer is not None:
        talk.say(f"Note: {offer.words}")
    return str(token), str(noun)


def _class_noun(args: argparse.Namespace, talk: Talk, photos: Sequence[Photo], noun: str) -> str:
    """Return the class noun, or with ``--describe take`` a language model's, which is said."""
    from ..stage.describe import ask_class, offer
    from ..stage.endpoint import Endpoint

    if args.describe is None:
        return noun
    offered = ask_class(photos[0].image, noun, [photo.caption for photo in photos], Endpoint(args.llm, args.llm_model))
    words = offer(noun, offered)
    if not words:
        talk.say(f"Note: a language model, too, says '{noun}'.")
        return noun
    if args.describe == "take":
        talk.say(f"Note: {words} It is taken.")
        return offered
    talk.say(f"Note: {words} Give it as --class-noun, with --replace, to take it.")
    return noun
