"""A language model's layout, from a stub of an OpenAI-compatible endpoint on this machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mudi_core.ask import LOCAL, BadEndpoint, BadReply, Endpoint, NoPrompt, ask_layout, question
from mudi_core.layout_text import Place

NAMES = ("olis corgi", "hta chow chow")
GOOD = '{"olis": [0, 200, 450, 1000], "hta": {"box": [500, 200, 1000, 1000], "depth": 1}}'
PLACES = {"olis": Place((0.0, 0.2, 0.45, 1.0)), "hta": Place((0.5, 0.2, 1.0, 1.0), depth=1)}


class Stub(ThreadingHTTPServer):
    """Answers in turn with ``replies``: a model's words, or (status, headers, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self._send(200, {}, json.dumps({"data": [{"id": "first"}, {"id": "second"}]}))

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        time.sleep(self.server.delay)
        reply = self.server.replies.pop(0)
        if isinstance(reply, str):
            reply = 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]})
        self._send(*reply)

    def _send(self, status: int, headers: dict[str, str], body: str) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())
        except BrokenPipeError:
            pass

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    for name in ("MUDI_LLM_URL", "MUDI_LLM_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = Stub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(stub: Stub, **more: Any) -> dict[str, Place]:
    return ask_layout(NAMES, "in the snow", (1024, 768), Endpoint(stub.url, timeout=5.0), **more)


def test_the_answer_is_the_layout(stub: Stub) -> None:
    stub.replies = [GOOD]
    assert ask(stub, seed=7) == PLACES
    (asked,) = stub.asked
    assert asked["model"] == "first" and asked["seed"] == 7
    (message,) = asked["messages"]
    assert message["content"] == question(NAMES, "in the snow", (1024, 768))
    assert all(word in message["content"] for word in ("olis corgi", "hta chow chow", "in the snow", "1024", "768"))


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("I would put olis on the left.", "not valid JSON"),
        ('{"olis": [0, 0, 1, 1]}', "'hta' has no place"),
        (GOOD.replace("hta", "rex"), "'rex' is none of them"),
        ('{"olis": [0, 0, 1, 1], "hta": [5, 5, 5, 5]}', "should go from its top left"),
        ("", "not valid JSON"),
    ],
)
def test_a_bad_reply_is_sent_back_once_with_what_is_wrong(stub: Stub, bad: str, complaint: str) -> None:
    stub.replies = [bad, GOOD]
    assert ask(stub) == PLACES
    roles = [message["role"] for message in stub.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"] and complaint in stub.asked[1]["messages"][2]["content"]
    stub.replies = [bad, bad]
    with pytest.raises(BadReply, match=f"first gave no layout, also when asked again: .*{complaint}"):
        ask(stub)
    assert stub.replies == []


def test_the_key_goes_to_its_own_endpoint_alone(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUDI_LLM_KEY", "secret")
    stub.replies = [GOOD, GOOD, GOOD]
    ask(stub)
    monkeypatch.setenv("MUDI_LLM_URL", "http://elsewhere.example/v1")
    ask(stub)
    assert stub.keys == [None, None]
    monkeypatch.setenv("MUDI_LLM_URL", stub.url + "/")
    assert ask_layout(NAMES, "at sea", (64, 64), Endpoint()) == PLACES
    assert stub.keys[2] == "Bearer secret"


def test_a_redirect_is_not_followed(stub: Stub) -> None:
    stub.replies = [(307, {"Location": stub.url + "/chat/completions"}, ""), GOOD]
    with pytest.raises(BadEndpoint, match="refused with 307"):
        ask(stub)
    assert len(stub.asked) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {}, "no such key"), "refused with 401 .*no such key.*MUDI_LLM_KEY"),
        ((500, {}, "out of memory"), "refused with 500 .*out of memory"),
        ((200, {}, "<html>"), "something else than JSON"),
        ((200, {}, '{"choices": []}'), "not as OpenAI's"),
        ((200, {}, "[]"), "not as OpenAI's"),
    ],
)
def test_an_endpoint_that_fails_is_told(stub: Stub, reply: Any, words: str) -> None:
    stub.replies = [reply]
    with pytest.raises(BadEndpoint, match=words):
        ask(stub)


def test_an_endpoint_that_is_down_or_slow_is_told(stub: Stub) -> None:
    with pytest.raises(BadEndpoint, match=r"No language model can be reached at http://127.0.0.1:9/v1 .*MUDI_LLM_URL"):
        ask_layout(NAMES, "at sea", (64, 64), Endpoint("http://127.0.0.1:9/v1"))
    stub.replies, stub.delay = [GOOD], 2.0
    begun = time.monotonic()
    with pytest.raises(BadEndpoint, match="no answer within 0.3 s"):
        ask_layout(NAMES, "at sea", (64, 64), Endpoint(stub.url, "m", timeout=0.3))
    assert time.monotonic() - begun < 1.5


def test_waiting_can_be_ended(stub: Stub) -> None:
    stub.replies, stub.delay = [GOOD], 2.0

    def lose_patience() -> None:
        raise InterruptedError

    begun = time.monotonic()
    with pytest.raises(InterruptedError):
        ask_layout(NAMES, "at sea", (64, 64), Endpoint(stub.url, "m"), on_wait=lose_patience)
    assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/v1", "localhost:1234", "http:///v1", "http://[v1"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(BadEndpoint, match="no address of a language model"):
        Endpoint(url)


def test_an_empty_prompt_is_told(stub: Stub) -> None:
    with pytest.raises(NoPrompt, match="prompt is empty"):
        ask_layout(NAMES, " ", (64, 64), Endpoint(stub.url, "m"))
    assert stub.asked == []


def test_the_default_is_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUDI_LLM_URL", raising=False)
    assert Endpoint().address == LOCAL and LOCAL.startswith("http://127.0.0.1")
