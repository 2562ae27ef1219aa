"""A layout from the prompt: a language model behind an OpenAI-compatible endpoint is asked for it.

The endpoint is the user's own: by default Ollama's on this machine. The key is read from the environment alone, and
sent to no endpoint but the one that the environment names.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from .layout_text import BadPlaces, Place, parse_places
from .types import MudiError

log = logging.getLogger(__name__)

URL_VARIABLE, KEY_VARIABLE = "MUDI_LLM_URL", "MUDI_LLM_KEY"
LOCAL = "http://127.0.0.1:11434/v1"
"""Ollama's address."""
LARGEST_ANSWER = 1_000_000
"""Bytes."""
_POLL = 0.1
"""Seconds between two looks whether the user has lost patience."""


class BadEndpoint(MudiError):
    """An endpoint that is no http address, does not answer in time, or refuses."""


class NoPrompt(MudiError):
    """Nothing to plan a composition for."""


class BadReply(MudiError):
    """A language model that answered twice, but with no layout."""


@dataclass(frozen=True)
class Endpoint:
    """Where a language model is asked. Raises `BadEndpoint` for an address that is not http or https."""

    url: str = ""
    """Up to "/v1"; empty: that of the environment variable MUDI_LLM_URL, or else Ollama's on this machine."""
    model: str = ""
    """Its name there; empty: the first that the endpoint lists."""
    timeout: float = 60.0
    """Seconds for each answer."""

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.address)
        except ValueError:
            parts = urllib.parse.urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadEndpoint(f"{self.address!r} is no address of a language model; it should look like {LOCAL}.")

    @property
    def address(self) -> str:
        return (self.url.strip() or os.environ.get(URL_VARIABLE) or LOCAL).rstrip("/")

    @property
    def key(self) -> str:
        """MUDI_LLM_KEY, for the endpoint that MUDI_LLM_URL names; nothing for any other."""
        own = os.environ.get(URL_VARIABLE, "").rstrip("/")
        return os.environ.get(KEY_VARIABLE, "") if own and own == self.address else ""


def question(names: Sequence[str], prompt: str, size: tuple[int, int]) -> str:
    """What a language model is asked, so that `parse_places` can read its answer.

    ``names``: token and class noun of each subject; ``size``: width and height of the picture in pixels. Raises
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
    """A place for each subject, by token, that a language model finds right for the prompt.

    A reply that is no layout of these subjects is sent back once, with what is wrong. ``on_wait`` is called while the
    model thinks; an exception from it ends the waiting. Raises `NoPrompt`, `BadEndpoint`, `BadReply`.
    """
    endpoint = endpoint or Endpoint()
    messages = [{"role": "user", "content": question(names, prompt, size)}]
    model = endpoint.model.strip() or _first_model(endpoint, on_wait)
    for is_last in (False, True):
        body = {"model": model, "messages": messages, "seed": seed % 2**31, "stream": False}
        answer = _call(endpoint, "/chat/completions", body, on_wait)
        try:
            reply = str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise BadEndpoint(f"{endpoint.address} answered, but not as OpenAI's chat completions do.") from None
        try:
            return _all_of(parse_places(reply), [name.split()[0] for name in names])
        except BadPlaces as error:
            if is_last:
                said = " ".join(reply.split())[:200]
                raise BadReply(f"{model} gave no layout, also when asked again: {error} It said: {said!r}") from None
            log.info("%s is asked again: %s", model, error)
            messages += [
                {"role": "assistant", "content": reply},
                {"role": "user", "content": f"{error} Answer with the JSON object alone."},
            ]
    raise AssertionError("unreachable")


def _all_of(places: dict[str, Place], tokens: Sequence[str]) -> dict[str, Place]:
    """Raises `BadPlaces` unless these are places of exactly these tokens."""
    strange, missing = sorted(places.keys() - set(tokens)), [token for token in tokens if token not in places]
    if strange or missing:
        wrong = f"'{strange[0]}' is none of them." if strange else f"'{missing[0]}' has no place."
        raise BadPlaces(f"The names are {', '.join(tokens)}: {wrong}")
    return places


def _first_model(endpoint: Endpoint, on_wait: Callable[[], None] | None) -> str:
    try:
        return str(_call(endpoint, "/models", None, on_wait)["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise BadEndpoint(f"{endpoint.address} lists no model. Load one there, or name it.") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *request: Any) -> None:
        return None


def _call(endpoint: Endpoint, path: str, body: dict[str, Any] | None, on_wait: Callable[[], None] | None) -> Any:
    """The JSON answer to a request, made in a thread of its own so that the waiting can be ended."""
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(endpoint.address + path, data, headers)
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if _is_this_machine(endpoint.address):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    answers: queue.Queue[bytes | BaseException] = queue.Queue()

    def fetch() -> None:
        try:
            with opener.open(request, timeout=endpoint.timeout) as answer:
                answers.put(answer.read(LARGEST_ANSWER))
        except BaseException as error:  # handed to the thread that waits
            answers.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    waited = 0.0
    while True:
        try:
            answer = answers.get(timeout=_POLL)
            break
        except queue.Empty:
            waited += _POLL
            if on_wait is not None:
                on_wait()
            if waited > endpoint.timeout:  # an answer that drips never times out by itself
                answer = TimeoutError("timed out")
                break
    if isinstance(answer, BaseException):
        _explain(endpoint, answer)
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        raise BadEndpoint(f"{endpoint.address}{path} answered with something else than JSON.") from None


def _explain(endpoint: Endpoint, error: BaseException) -> NoReturn:
    """The failure of a request as a sentence."""
    if isinstance(error, urllib.error.HTTPError):
        with error:
            told = " ".join(error.read(500).decode(errors="replace").split())
        hint = f" The key is read from {KEY_VARIABLE}, for the {URL_VARIABLE} beside it." if error.code == 401 else ""
        raise BadEndpoint(f"{endpoint.address} refused with {error.code} {error.reason}: {told}{hint}") from None
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        raise BadEndpoint(
            f"{endpoint.address} gave no answer within {endpoint.timeout:g} s. Allow more, or take a smaller model."
        ) from None
    if isinstance(reason, OSError | ValueError) or type(error).__module__ == "http.client":
        raise BadEndpoint(
            f"No language model can be reached at {endpoint.address} ({reason}). Start one there, or set "
            f"{URL_VARIABLE}."
        ) from None
    raise error


def _is_this_machine(address: str) -> bool:
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
