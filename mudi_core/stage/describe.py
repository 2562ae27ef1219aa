"""A more exact class noun than the user's own, offered by a language model (the paper's "descriptive class").

"fluffy brown corgi" tells two corgis apart where "corgi" does not. The answer is a text of anybody's, so it becomes a
class noun only as a few plain words, and only when the user takes it.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..levels import to_bytes
from ..types import LONGEST_NOUN, MudiError, misread_in_prompts, readable
from .ask import chat
from .endpoint import Endpoint

MOST_WORDS = 8
"""Most words of an offered class noun."""
SIDE = 512
"""Pixels: most of a side of the photo that a language model is shown."""
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_QUOTES = " \t\"'`*_“”‘’„«».,;!"


class NoClassNoun(MudiError):
    """An answer of a language model that is no class noun."""


def class_question(class_noun: str, captions: Sequence[str] = ()) -> str:
    """Return the question for a language model that sees a photo, whose answer `read_class` can read."""
    hints = "".join(f"\nIt is described as: {caption}" for caption in list(captions)[:3] if caption)
    return (
        f"What exactly is the {class_noun} in this picture? Answer with its kind and what sets it apart from others of "
        "its kind, in two to five plain words such as 'fluffy brown corgi' or 'silver-haired girl', and with nothing "
        f"else.{hints}"
    )


def read_class(answer: str) -> str:
    """Return the class noun in an answer. Raise `NoClassNoun` when it is anything else than a few plain words."""
    lines = [line.strip() for line in _THOUGHTS.sub("", answer).splitlines() if line.strip(_QUOTES)]
    noun = lines[0].rpartition(":")[2].strip(_QUOTES) if lines else ""
    noun = " ".join(re.sub(r"^(an?|the)\s+", "", noun, flags=re.IGNORECASE).split())
    is_plain = noun == readable(noun) and not misread_in_prompts(noun)
    if not noun or not is_plain or len(noun.split()) > MOST_WORDS or len(noun) > LONGEST_NOUN:
        excerpt = " ".join(answer.split())[:120]
        raise NoClassNoun(
            f"The language model's answer is no class noun: {excerpt!r}. Ask it for two to five plain words, such as "
            "'fluffy brown corgi', and nothing else."
        )
    return noun


def ask_class(
    image: Tensor,
    class_noun: str,
    captions: Sequence[str] = (),
    endpoint: Endpoint | None = None,
    on_wait: Callable[[], None] | None = None,
) -> str:
    """Show a language model one photo ``[h, w, 3]``, 0..1, made small; return the class noun that it offers.

    ``on_wait`` as in `ask.ask_layout`. Raise `BadEndpoint`, for example when the model cannot see, or `NoClassNoun`.
    """
    content: list[dict[str, Any]] = [
        {"type": "text", "text": class_question(class_noun, captions)},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_small(image)}"}},
    ]
    return read_class(chat(endpoint or Endpoint(), [{"role": "user", "content": content}], 0, on_wait))


def offer(class_noun: str, offered: str) -> str:
    """Return a sentence that offers a class noun to the user; "" when it says nothing new."""
    if offered.lower() == class_noun.lower():
        return ""
    return f"A language model offers the class noun '{offered}' instead of '{class_noun}'."


def _small(image: Tensor) -> str:
    from PIL import Image

    picture = Image.fromarray(to_bytes(image))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return base64.b64encode(file.getvalue()).decode()
