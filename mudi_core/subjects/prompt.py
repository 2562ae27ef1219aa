"""The subjects in words: prompts that name all of them.

Appendix B of the paper: a prompt names each subject by its token and its class noun, a start such as "2 dogs:" helps
with more subjects, and the negative prompt is "sticker, collage" because Seg-Mix's training images are collages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..types import MudiError, listed

SUBJECTS = "{subjects}"
"""The place of the names in a text."""
TEXT = f"a photo of {SUBJECTS}"
NEGATIVE = "sticker, collage"
MOST_ORDERS = 120
"""The orders of five subjects."""


class TooManyOrders(MudiError):
    """More orders of the subjects than anybody would make pictures of."""


def write_prompt(names: Sequence[str], text: str = TEXT, kind: str = "") -> str:
    """Write a prompt: "2 dogs: a photo of olis corgi and hta chow chow playing in the snow" (paper, appendix B).

    ``names``: token and class noun of each subject. ``text`` has ``{subjects}`` where the names go, or is only what
    they do ("playing in the snow"). ``kind``: a word for all of them ("dogs"), or "" for no such start.
    """
    text = text.strip()
    if SUBJECTS not in text:
        text = f"{TEXT} {text}".strip()
    counted = f"{len(names)} {kind.strip()}: " if kind.strip() else ""
    return counted + text.replace(SUBJECTS, listed(names))


def write_prompts(names: Sequence[str], text: str = TEXT, kind: str = "", every_order: bool = False) -> list[str]:
    """Return one prompt, or with ``every_order`` one for each order of the subjects, as the paper averages its scores.

    Raise `TooManyOrders` for more than five subjects.
    """
    orders = math.factorial(len(names)) if every_order else 1
    if orders > MOST_ORDERS:
        raise TooManyOrders(f"{len(names)} subjects have {orders} orders. Up to five subjects can have every order.")
    return [write_prompt(order, text, kind) for order in itertools.islice(itertools.permutations(names), orders)]
