"""One request to the endpoint of a language model: limited in time and size, and ended when the user stops it.

The key comes only from the environment. It is sent only to the first endpoint that the environment names, never through
a proxy that could read it, and never appears in a message.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..types import MudiError
from .connection import connection_to

URL_VARIABLE, KEY_VARIABLE = "MUDI_LLM_URL", "MUDI_LLM_KEY"
LOCAL = "http://127.0.0.1:11434/v1"
"""Ollama's address."""
LARGEST_ANSWER = 1_000_000
"""Most bytes of an answer."""
LARGEST_REFUSAL = 500
"""Most bytes of an error's text."""
_POLL = 0.1
"""Seconds between two checks whether the user has stopped."""
_FAREWELL = 1.0
"""Seconds to wait for the end of a stopped request."""
_MOST_LEFT = 4
"""Most threads that may be left behind at a time: nothing ends the system's look-up of an address, or a connecting."""
_PATH = re.compile(r"(/[\w.~:@+-]+)*", re.ASCII)
"""What may stand between the host and the path of a request: nothing that would end that path."""
_KEY = re.compile(r"[!-~]+")
_LONGEST = 500
"""Most letters of an address."""


class BadEndpoint(MudiError):
    """An endpoint that is not a plain http address, does not answer in time, or refuses."""


class StrangeEndpoint(MudiError):
    """An address in a workflow that the user of this machine has not allowed."""


class BadKey(MudiError):
    """A key with letters that no header can contain."""


@dataclass(frozen=True)
class Endpoint:
    """Where a language model answers. Raises `BadEndpoint` for an address that is not exactly host and path."""

    url: str = ""
    """Up to "/v1"; empty: the first in the environment variable MUDI_LLM_URL, or else Ollama on this machine."""
    model: str = ""
    """The name of the model there; empty: the first that the endpoint lists."""
    timeout: float = 60.0
    """Seconds for each answer, from sending the request to reading the last byte."""

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.address)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            parts, usable = urllib.parse.urlsplit(""), False
        if "@" in parts.netloc:
            raise BadEndpoint(
                f"The address of the language model contains a password. Put the password into {KEY_VARIABLE}."
            )
        is_whole = "?" not in self.address and "#" not in self.address and _PATH.fullmatch(parts.path)
        is_odd = re.search(r"[\s\x00-\x1f\\]", self.address) or "/.." in parts.path or len(self.address) > _LONGEST
        if not usable or not is_whole or is_odd:
            shown = repr(self.address if len(self.address) <= _LONGEST else f"{self.address[:40]}...")
            raise BadEndpoint(f"{shown} is not an address of a language model. It should look like {LOCAL}.")

    @property
    def address(self) -> str:
        """The address of the endpoint without a slash at its end; the default when `url` is empty."""
        return self.url.strip().rstrip("/") or next(iter(_named()), LOCAL)

    @property
    def key(self) -> str:
        """MUDI_LLM_KEY for the first endpoint in MUDI_LLM_URL, "" for any other. Raise `BadKey`."""
        key = os.environ.get(KEY_VARIABLE, "").strip() if self.address in _named()[:1] else ""
        if key and not _KEY.fullmatch(key):
            raise BadKey(
                f"{KEY_VARIABLE} contains a space, a line break or a letter that a key cannot have. Set it again."
            )
        return key


def _named() -> list[str]:
    """Return the addresses in MUDI_LLM_URL, which has spaces between them."""
    return [address.rstrip("/") for address in os.environ.get(URL_VARIABLE, "").split()]


def check_named(endpoint: Endpoint) -> None:
    """Raise `StrangeEndpoint` for an address that is neither on this machine nor in MUDI_LLM_URL.

    A workflow from anybody may contain such an address.
    """
    host = urllib.parse.urlsplit(endpoint.address).hostname or ""
    try:
        is_here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = False
    if not is_here and endpoint.address not in _named():
        raise StrangeEndpoint(
            f"This workflow wants to send your prompt to {endpoint.address}. If you trust that address, add it to "
            f"{URL_VARIABLE} in ComfyUI's environment (with spaces between several) and restart ComfyUI; otherwise "
            "leave 'endpoint' empty."
        )


def call(endpoint: Endpoint, path: str, body: dict[str, Any] | None, on_wait: Callable[[], None] | None) -> Any:
    """Send a POST with ``body``, or a GET when it is None, and return the JSON answer of the endpoint.

    ``on_wait`` is called while waiting; an exception from it ends the request. Raise `BadEndpoint` or `BadKey`.
    """
    if sum(isinstance(thread, _Request) for thread in threading.enumerate()) >= _MOST_LEFT:
        raise BadEndpoint(
            f"{_MOST_LEFT} earlier requests still look up the address of their language model, or connect to it. Wait "
            "a minute, and check the address and whether the network's name server answers."
        )
    request = _Request(endpoint, path, None if body is None else json.dumps(body).encode())
    ends = time.monotonic() + endpoint.timeout
    request.start()
    try:
        while request.is_alive():
            request.join(_POLL)
            if on_wait is not None:
                on_wait()
            if (
                request.is_alive() and time.monotonic() > ends
            ):  # an answer that comes very slowly never times out by itself
                raise _late(endpoint)
    finally:
        request.stop()
    if request.error is not None:
        raise request.sentence(request.error) from None
    if request.status >= 300:  # also a redirect: it would send the key to another address
        raise request.refusal()
    if len(request.answer) > LARGEST_ANSWER:
        raise BadEndpoint(f"{endpoint.address} answered with more than {LARGEST_ANSWER:,} bytes. Use another model.")
    try:
        return request.hidden_in(json.loads(request.answer.decode()))
    except (ValueError, RecursionError):
        raise BadEndpoint(f"{endpoint.address}{path} did not answer with JSON. Check the address.") from None


def _late(endpoint: Endpoint) -> BadEndpoint:
    return BadEndpoint(
        f"{endpoint.address} gave no answer within {endpoint.timeout:g} s. Allow more time, or use a smaller model."
    )


class _Request(threading.Thread):
    """A request in a thread, so that the waiting can be ended; `stop` closes its socket, which ends the request.

    While the system looks up the address or connects there is no socket, and nothing can end that. Such a thread is
    left behind: it sends nothing any more and does not keep the process alive.
    """

    def __init__(self, endpoint: Endpoint, path: str, data: bytes | None) -> None:
        super().__init__(name="mudi language model", daemon=True)
        self.endpoint, self.key, self.data = endpoint, endpoint.key, data
        self.path = urllib.parse.urlsplit(endpoint.address).path + path
        self.connection = connection_to(endpoint.address, endpoint.timeout)
        self.socket: socket.socket | None = None
        self.stopped = False
        self.status, self.reason, self.answer = 0, "", b""
        self.error: BaseException | None = None

    def run(self) -> None:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            self.connection.connect()
            self.socket = self.connection.sock  # the connection drops it while an answer is read
            if self.stopped:
                return
            self.socket.settimeout(self.endpoint.timeout)
            self.connection.request("GET" if self.data is None else "POST", self.path, self.data, headers)
            answer = self.connection.getresponse()
            self.answer = answer.read(LARGEST_ANSWER + 1 if answer.status < 300 else LARGEST_REFUSAL)
            self.status, self.reason = answer.status, answer.reason
        except BaseException as error:  # raised in the thread that waits
            self.error = error
        finally:
            self.connection.close()

    def stop(self) -> None:
        """Close the socket, if there is one, until the thread has ended."""
        self.stopped = True
        ends = time.monotonic() + _FAREWELL
        while self.is_alive() and time.monotonic() < ends and (open_one := self._open_one()):
            with suppress(OSError):
                open_one.shutdown(socket.SHUT_RDWR)
            self.join(_POLL / 2)

    def _open_one(self) -> socket.socket | None:
        return getattr(self.connection, "wire", None) or self.socket or self.connection.sock

    def hidden_in(self, answer: Any) -> Any:
        """Return an answer with `hidden` texts; JSON may spell the key in other letters than the key's own."""
        if isinstance(answer, dict):
            return {self.hidden(name): self.hidden_in(one) for name, one in answer.items()}
        if isinstance(answer, list):
            return [self.hidden_in(one) for one in answer]
        return self.hidden(answer) if isinstance(answer, str) else answer

    def hidden(self, text: str) -> str:
        """Return a text of the endpoint without the key, which the endpoint knows."""
        return text.replace(self.key, "…") if self.key else text

    def refusal(self) -> BadEndpoint:
        # An endpoint that refuses a key may quote it, whole or in part.
        detail = "" if self.key and self.status in (401, 403) else self.answer.decode(errors="replace")
        said = self.hidden(f"{self.status} {self.reason}: {' '.join(detail.split())}")
        hint = f" The key is read from {KEY_VARIABLE}, for the {URL_VARIABLE} beside it." if self.status == 401 else ""
        return BadEndpoint(f"{self.endpoint.address} refused with {said}{hint}")

    def sentence(self, error: BaseException) -> BaseException:
        """Return an error on the way as a sentence for the user, where there is one."""
        if isinstance(error, TimeoutError):
            return _late(self.endpoint)
        if isinstance(error, OSError | ValueError | http.client.HTTPException):
            return BadEndpoint(
                f"No language model can be reached at {self.endpoint.address} ({self.hidden(str(error))}). Start one "
                f"there, or set {URL_VARIABLE}."
            )
        return error
