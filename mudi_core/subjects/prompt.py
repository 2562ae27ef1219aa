"""The subjects in words: prompts that name all of them.

Appendix B of the paper: a prompt names each subject by its token and its class noun, a start such as "2 dogs:" helps
with more subjects, and the negative prompt is "sticker, collage" because Seg-Mix's training images are collages.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from ..stage.captions import SENTENCE, TAGS, tag_of
from ..stage.counting import count_tags
from ..types import MudiError, listed

SUBJECTS = "{subjects}"
"""The place of the names in a text."""
TEXT = f"a photo of {SUBJECTS}"
NEGATIVE = "sticker, collage"
SCENES = ("on the beach", "in the meadow", "in the desert", "in the snow", "at night", "in a room", "simple background")
"""What follows the names in simple prompts that any model can draw, the embedded one too."""
MANY_SCENES = (
    "watching birds from a window sill", "sitting on a sofa", "walking through a forest", "standing on a beach",
    "in a flower garden", "on a city street", "in a kitchen", "under an apple tree", "beside a campfire",
    "on a wooden bridge", "in a library", "in a snowy village", "at a picnic on the grass", "in front of a castle",
    "on a farm", "in a field of sunflowers", "at a market", "by a lake", "in a playground", "on a mountain path",
)  # fmt: skip
"""The same for models that know the world: simple prompts for pictures of one's own (paper, C.3; the first is its)."""
OTHER_SCENES = (
    "on a train", "in the desert at sunset", "in a cafe", "on a boat", "in the rain", "in a museum", "on a rooftop",
    "in an autumn park",
)  # fmt: skip
"""More of these, to see whether what was learned holds elsewhere."""
_COUNTED = re.compile(r"(?<!\w)(\d\+?(girl|boy|other)s?|multiple (girls|boys|others)|no humans)(?!\w)")
MOST_ORDERS = 120
"""The orders of five subjects."""


class TooManyOrders(MudiError):
    """More orders of the subjects than anybody would make pictures of."""


def write_prompt(names: Sequence[str], text: str = TEXT, kind: str = "", style: str = SENTENCE) -> str:
    """Write a prompt: "2 dogs: a photo of olis corgi and hta chow chow playing in the snow" (paper, appendix B).

    ``names``: token and class noun of each subject. ``text`` has ``{subjects}`` where the names go, or is only what
    they do ("playing in the snow"). ``kind``: a word for all of them ("dogs"), or "" for no such start. ``style``: of
    the captions that the LoRA was trained with; tags are counted ("2girls, olis, hta, playing in the snow") unless the
    text does that itself.
    """
    text = text.strip()
    if style == TAGS:
        return _tags(names, text, kind.strip())
    if SUBJECTS not in text:
        text = f"{TEXT} {text}".strip()
    counted = f"{len(names)} {kind.strip()}: " if kind.strip() else ""
    return counted + text.replace(SUBJECTS, listed(names))


def with_article(noun: str) -> str:
    """Return "a cat" or "an owl": what a subject is called where no token means it."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _tags(names: Sequence[str], text: str, kind: str) -> str:
    if text.startswith(TEXT) or SUBJECTS not in text:
        text = ", ".join(filter(None, [SUBJECTS, text.removeprefix(TEXT).strip(" ,")]))
    parted = [(token, noun) for token, _, noun in (name.partition(" ") for name in names)]
    counted = [f"{len(names)}{kind}"] if kind else count_tags([noun for _, noun in parted])
    if not kind and _COUNTED.search(text):
        counted = []
    return text.replace(SUBJECTS, ", ".join([*counted, *map(tag_of, parted)]))


def write_prompts(
    names: Sequence[str], text: str = TEXT, kind: str = "", every_order: bool = False, style: str = SENTENCE
) -> list[str]:
    """Return one prompt, or with ``every_order`` one for each order of the subjects, as the paper averages its scores.

    Raise `TooManyOrders` for more than five subjects.
    """
    orders = math.factorial(len(names)) if every_order else 1
    if orders > MOST_ORDERS:
        raise TooManyOrders(f"{len(names)} subjects have {orders} orders. Up to five subjects can have every order.")
    every = itertools.islice(itertools.permutations(names), orders)
    return [write_prompt(order, text, kind, style) for order in every]
