"""The subjects in words: prompts that name them all.

Appendix B of the paper: each subject is named by its token and its class noun, a start such as "2 dogs:" helps with
more subjects, and the negative prompt is "sticker, collage", since Seg-Mix's training images are collages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..types import MudiError, listed

SUBJECTS = "{subjects}"
"""Where a text has the subjects' names."""
TEXT = f"a photo of {SUBJECTS}"
NEGATIVE = "sticker, collage"
MOST_ORDERS = 120
"""Of five subjects."""


class TooManyOrders(MudiError):
    """More orders of the subjects than anybody would make pictures of."""


def write_prompt(names: Sequence[str], text: str = TEXT, kind: str = "") -> str:
    """ "2 dogs: a photo of olis corgi and hta chow chow playing in the snow".

    ``names``: each subject's token and class noun; ``text`` has ``{subjects}`` where they stand, or it is only what
    they do ("playing in the snow"); ``kind``: what they are together ("dogs"), if that is to be said.
    """
    text = text.strip()
    if SUBJECTS not in text:
        text = f"{TEXT} {text}".strip()
    counted = f"{len(names)} {kind.strip()}: " if kind.strip() else ""
    return counted + text.replace(SUBJECTS, listed(names))


def write_prompts(names: Sequence[str], text: str = TEXT, kind: str = "", every_order: bool = False) -> list[str]:
    """One prompt, or one for every order of the subjects, as the paper's scores are averaged over. `TooManyOrders`."""
    orders = math.factorial(len(names)) if every_order else 1
    if orders > MOST_ORDERS:
        raise TooManyOrders(f"{len(names)} subjects have {orders} orders. Up to five subjects can have every order.")
    return [write_prompt(order, text, kind) for order in itertools.islice(itertools.permutations(names), orders)]
