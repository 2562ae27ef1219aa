"""A layout for a prompt, from a language model behind an OpenAI-compatible endpoint.

The user chooses the endpoint; the default is Ollama on this machine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..types import MudiError
from .endpoint import BadEndpoint, Endpoint, call
from .layout_text import BadPlaces, Place, parse_places

log = logging.getLogger(__name__)


class NoPrompt(MudiError):
    """An empty prompt: there is nothing to plan a layout for."""


class BadReply(MudiError):
    """A language model that answered twice, but not with a layout."""


def question(names: Sequence[str], prompt: str, size: tuple[int, int]) -> str:
    """Return the question for a language model, whose answer `parse_places` can read.

    ``names``: token and class noun of each subject; ``size``: width and height of the picture in pixels. Raise
    `NoPrompt` for an empty prompt.
    """
    if not prompt.strip():
        raise NoPrompt("The prompt is empty. Say what the picture shows.")
    keys = [name.split()[0] for name in names]
    example = json.dumps({key: {"box": [0, 0, 0, 0], "mirror": False, "depth": 0} for key in keys})
    return (
        f"Plan the composition of a picture, {size[0]} pixels wide and {size[1]} high: {prompt}\n"
        f"It shows {', '.join(names)}; the first word of each is a name.\n"
        "Give each of them a box [left, top, right, bottom] in whole numbers from 0 to 1000, where 1000 is the whole "
        "width or height. Boxes should be large, of sizes that suit each other, and overlap little; mirror turns a "
        "figure round; a greater depth is further back.\n"
        f"Answer with one JSON object and nothing else, with exactly these keys: {example}"
    )


def ask_layout(
    names: Sequence[str],
    prompt: str,
    size: tuple[int, int],
    endpoint: Endpoint | None = None,
    seed: int = 0,
    on_wait: Callable[[], None] | None = None,
) -> dict[str, Place]:
    """Ask a language model for a layout that suits the prompt; return a place for each subject, by token.

    A reply that is not a layout of these subjects is sent back once, with what is wrong. ``on_wait`` is called while
    the model works; an exception from it ends the request. Raise `NoPrompt`, `BadEndpoint` or `BadReply`.
    """
    endpoint = endpoint or Endpoint()
    messages: list[dict[str, Any]] = [{"role": "user", "content": question(names, prompt, size)}]
    endpoint = replace(endpoint, model=endpoint.model.strip() or _first_model(endpoint, on_wait))
    for is_last in (False, True):
        reply = chat(endpoint, messages, seed, on_wait)
        try:
            return _all_of(parse_places(reply), [name.split()[0] for name in names])
        except BadPlaces as error:
            if is_last:
                excerpt = " ".join(reply.split())[:200]
                raise BadReply(
                    f"{endpoint.model} gave no layout, even when asked again: {error} It answered: {excerpt!r}"
                ) from None
            log.info("%s is asked again: %s", endpoint.model, error)
            messages += [
                {"role": "assistant", "content": reply},
                {"role": "user", "content": f"{error} Answer with the JSON object alone."},
            ]
    raise AssertionError("unreachable")


def chat(
    endpoint: Endpoint, messages: list[dict[str, Any]], seed: int, on_wait: Callable[[], None] | None = None
) -> str:
    """Return the reply of a language model to these messages, in OpenAI's chat format. Raise `BadEndpoint`."""
    model = endpoint.model.strip() or _first_model(endpoint, on_wait)
    body = {"model": model, "messages": messages, "seed": seed % 2**31, "stream": False}
    answer = call(endpoint, "/chat/completions", body, on_wait)
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        raise BadEndpoint(
            f"{endpoint.address} answered, but not in OpenAI's chat format. Use another endpoint."
        ) from None


def _all_of(places: dict[str, Place], tokens: Sequence[str]) -> dict[str, Place]:
    """Return the places. Raise `BadPlaces` unless they are places of exactly these tokens."""
    strange, missing = sorted(places.keys() - set(tokens)), [token for token in tokens if token not in places]
    if strange or missing:
        wrong = f"'{strange[0]}' is none of them." if strange else f"'{missing[0]}' has no place."
        raise BadPlaces(f"The names are {', '.join(tokens)}: {wrong}")
    return places


def _first_model(endpoint: Endpoint, on_wait: Callable[[], None] | None) -> str:
    try:
        return str(call(endpoint, "/models", None, on_wait)["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise BadEndpoint(f"{endpoint.address} lists no model. Load a model there, or give its name.") from None
