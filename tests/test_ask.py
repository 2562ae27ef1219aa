"""A language model's layout, from a stub of an OpenAI-compatible endpoint on this machine."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mudi_core.stage.ask import BadReply, NoPrompt, ask_layout, question
from mudi_core.stage.connection import BadProxy
from mudi_core.stage.endpoint import LOCAL, BadEndpoint, BadKey, Endpoint, StrangeEndpoint, check_named
from mudi_core.stage.layout_text import Place

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
        self.seen: list[str] = []
        """Of requests for tunnels: their line and headers."""
        self.delay = 0.0
        self.drips = 0.0
        self.hung_up = threading.Event()

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

    def do_CONNECT(self) -> None:
        self.server.seen.append(f"{self.requestline}\n{self.headers}")
        self._send(502, {}, "")

    def _drip(self, seconds: float) -> None:
        """A byte now and then, until nobody listens."""
        ends = time.monotonic() + seconds
        try:
            while time.monotonic() < ends:
                self.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            self.server.hung_up.set()

    def _send(self, status: int, headers: dict[str, str], body: str) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.server.drips:
                self._drip(self.server.drips)
            self.wfile.write(body.encode())
        except OSError:
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
    with pytest.raises(BadReply, match=f"first gave no layout, even when asked again: .*{complaint}"):
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


def test_of_several_addresses_the_first_is_asked_and_gets_the_key(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUDI_LLM_KEY", "secret")
    stub.replies = [GOOD, GOOD]
    monkeypatch.setenv("MUDI_LLM_URL", f" {stub.url}/ \n http://elsewhere.example/v1")
    assert ask_layout(NAMES, "at sea", (64, 64), Endpoint()) == PLACES
    monkeypatch.setenv("MUDI_LLM_URL", f"http://elsewhere.example/v1 {stub.url}")
    assert ask(stub) == PLACES
    assert stub.keys == ["Bearer secret", None]


@pytest.mark.parametrize(
    ("url", "named", "allowed"),
    [
        ("", "", True),
        ("", "https://models.example/v1", True),
        ("http://127.0.0.1:1234/v1", "", True),
        ("http://127.8.8.8/v1", "", True),
        ("http://[::1]:11434/v1", "", True),
        ("http://LocalHost:8080", "", True),
        ("https://models.example/v1/", "http://other.example https://models.example/v1", True),
        ("https://models.example/v1", "", False),
        ("https://models.example/v1", "https://models.example/v2", False),
        ("https://models.example:444/v1", "https://models.example/v1", False),
        ("http://models.example/v1", "https://models.example/v1", False),
        ("http://192.168.1.5:11434/v1", "", False),
        ("http://169.254.169.254/latest", "", False),
        ("http://0.0.0.0:8188", "", False),
        ("http://localhost.evil.example/v1", "", False),
        ("http://127.0.0.1.evil.example/v1", "", False),
        ("http://2130706433/v1", "", False),
    ],
)
def test_a_workflow_asks_this_machine_or_whom_its_user_has_named(
    monkeypatch: pytest.MonkeyPatch, url: str, named: str, allowed: bool
) -> None:
    monkeypatch.setenv("MUDI_LLM_URL", named)
    if allowed:
        check_named(Endpoint(url))
    else:
        with pytest.raises(
            StrangeEndpoint, match=f"wants to send your prompt to {url.rstrip('/')}\\. .*add it to MUDI_LLM_URL"
        ):
            check_named(Endpoint(url))


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Answers nobody until it is set."""
    answers, real = threading.Event(), socket.getaddrinfo

    def find(*about: Any, **more: Any) -> Any:
        assert answers.wait(30)
        return real(*about, **more)

    monkeypatch.setattr(socket, "getaddrinfo", find)
    yield answers
    answers.set()


@pytest.mark.parametrize("cancels", [True, False])
def test_a_name_server_that_does_not_answer_is_left_behind_and_nothing_is_sent_later(
    stub: Stub, name_server: threading.Event, cancels: bool
) -> None:
    stub.replies = [GOOD]

    def lose_patience() -> None:
        if cancels:
            raise InterruptedError

    begun = time.monotonic()
    for _ in range(4):
        with pytest.raises(InterruptedError if cancels else BadEndpoint):
            ask_layout(NAMES, "at sea", (64, 64), Endpoint(stub.url, "m", timeout=0.2), on_wait=lose_patience)
    assert time.monotonic() - begun < 4
    left = [thread for thread in threading.enumerate() if thread.name == "mudi language model"]
    assert len(left) == 4 and all(thread.daemon for thread in left)
    with pytest.raises(BadEndpoint, match="4 earlier requests still look up the address"):
        ask(stub)
    name_server.set()
    for thread in left:
        thread.join(5)
        assert not thread.is_alive()
    assert stub.asked == [] and ask(stub) == PLACES


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
        ((200, {}, "<html>"), "did not answer with JSON"),
        ((200, {}, '{"choices": []}'), "not in OpenAI's chat format"),
        ((200, {}, "[]"), "not in OpenAI's chat format"),
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
    with pytest.raises(BadEndpoint, match="is not an address of a language model"):
        Endpoint(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/" + "a" * 100_000, "http://" + "a." * 50_000 + "example"])
def test_an_address_of_any_length_is_told_in_short(url: str) -> None:
    with pytest.raises(BadEndpoint, match="is not an address of a language model") as told:
        Endpoint(url)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    "proxy",
    [
        *("http://user:pa55@proxy:abc", "http://[::1", "http://proxy:99999", "http://", "http://pro xy:80"),
        *("socks5://user:pa55@127.0.0.1:9", ":8080"),
    ],
)
def test_a_proxy_that_is_none_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(BadProxy, match="HTTPS_PROXY is not the address") as told:
        ask_layout(NAMES, "at sea", (64, 64), Endpoint("https://model.invalid/v1", "m"))
    assert "pa55" not in str(told.value)


@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize("cancels", [False, True])
def test_a_handshake_that_drips_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, cancels: bool, proxied: bool) -> None:
    """A TLS record of 16 kB, a byte at a time; with a proxy, its answer to the tunnel."""
    hung_up = threading.Event()

    def drip() -> None:
        line, _ = server.accept()
        with line, suppress(OSError):
            line.recv(4096)
            line.sendall(b"HTTP/1.1 200 OK\r\nX: " if proxied else b"\x16\x03\x03\x40\x00")
            while True:
                line.sendall(b"\x02")
                time.sleep(0.05)
        hung_up.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, daemon=True).start()
        here = f"127.0.0.1:{server.getsockname()[1]}"
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://{here}" if proxied else "")
        monkeypatch.delenv("no_proxy", raising=False)
        begun = time.monotonic()

        def wait() -> None:
            if cancels and time.monotonic() - begun > 0.3:
                raise InterruptedError

        address = "https://model.invalid/v1" if proxied else f"https://{here}/v1"
        with pytest.raises(InterruptedError if cancels else BadEndpoint):
            ask_layout(NAMES, "at sea", (64, 64), Endpoint(address, "m", timeout=30.0 if cancels else 0.7), 0, wait)
        assert time.monotonic() - begun < 5 and hung_up.wait(5)
    assert not any(thread.name == "mudi language model" for thread in threading.enumerate())


@pytest.mark.parametrize(
    "suffix", ["#", "?", "?x=", "/interrupt#", "/v1;x=1?", "/a b", "/v1\r\nX: y", "/..", "/%23", "/\\x", "/v1#/../.."]
)
def test_an_address_that_makes_the_path_free_is_told(stub: Stub, suffix: str) -> None:
    with pytest.raises(BadEndpoint, match="is not an address of a language model"):
        ask_layout(NAMES, "at sea", (64, 64), Endpoint(stub.url + suffix, "m"))
    assert stub.asked == []


def test_a_password_in_an_address_stands_in_no_sentence() -> None:
    with pytest.raises(BadEndpoint) as told:
        Endpoint("http://user:pa55@127.0.0.1:9/v1")
    assert "pa55" not in str(told.value)


@pytest.mark.parametrize(
    "key",
    ["sk-very\nsecret", "sk-very\r\nX-Evil: secret", "sk-very secret", "sk-verysécret", "sk-very\x7fsecret", "secret‮"],
)
def test_no_part_of_a_key_that_is_none_is_told(stub: Stub, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MUDI_LLM_URL", stub.url)
    monkeypatch.setenv("MUDI_LLM_KEY", key)
    with pytest.raises(BadKey, match="MUDI_LLM_KEY contains a space") as told:
        ask(stub)
    assert not any(part in repr(told.value) for part in ("sk-", "secret", "Evil")) and stub.asked == []


def test_a_line_break_behind_a_key_is_none_of_it(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUDI_LLM_URL", stub.url + "\n")
    monkeypatch.setenv("MUDI_LLM_KEY", "sk-very-secret\r\n")
    stub.replies = [GOOD]
    assert ask(stub) == PLACES and stub.keys == ["Bearer sk-very-secret"]


@pytest.mark.parametrize(
    "reply",
    [
        (401, {}, "Incorrect API key provided: sk-ve**cret"),
        (500, {}, "Bearer sk-very-secret failed"),
        "sk-very-secret",
        (200, {}, '{"sk-very-secret'),
        (200, {}, '{"choices": [{"message": {"content": "\\u0073k-very-secret"}}]}'),
    ],
)
def test_a_key_that_the_endpoint_quotes_is_not_told(stub: Stub, monkeypatch: pytest.MonkeyPatch, reply: Any) -> None:
    monkeypatch.setenv("MUDI_LLM_URL", stub.url)
    monkeypatch.setenv("MUDI_LLM_KEY", "sk-very-secret")
    stub.replies = [reply, reply]
    with pytest.raises((BadEndpoint, BadReply)) as told:
        ask(stub)
    assert stub.keys[0] == "Bearer sk-very-secret"
    assert "sk-ve" not in str(told.value) and "secret" not in str(told.value)


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("cancels", [False, True])
def test_an_answer_that_drips_is_hung_up_on(stub: Stub, status: int, cancels: bool) -> None:
    stub.replies, stub.drips = [(status, {}, "")], 20.0
    begun = time.monotonic()

    def wait() -> None:
        if cancels and time.monotonic() - begun > 0.3:
            raise InterruptedError

    with pytest.raises(InterruptedError if cancels else BadEndpoint, match=None if cancels else "within 0.7 s"):
        ask_layout(NAMES, "at sea", (64, 64), Endpoint(stub.url, "m", timeout=0.7), on_wait=wait)
    assert time.monotonic() - begun < 5
    assert stub.hung_up.wait(5)
    assert not any(thread.name == "mudi language model" for thread in threading.enumerate())


def test_an_answer_without_end_is_told(stub: Stub) -> None:
    stub.replies = [(200, {}, " " * 3_000_000)]
    with pytest.raises(BadEndpoint, match="more than 1,000,000 bytes"):
        ask_layout(NAMES, "at sea", (64, 64), Endpoint(stub.url, "m"))


def test_no_proxy_sees_the_key_of_an_http_address(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub is the proxy: an http address is asked directly, an https one only through a tunnel."""
    monkeypatch.setenv("MUDI_LLM_KEY", "sk-very-secret")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, stub.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    for address in ("http://model.invalid/v1", "https://model.invalid/v1"):
        monkeypatch.setenv("MUDI_LLM_URL", address)
        with pytest.raises(BadEndpoint, match="can be reached"):
            ask_layout(NAMES, "at sea", (64, 64), Endpoint("", "m", timeout=5.0))
    (line,) = stub.seen
    assert line.startswith("CONNECT model.invalid:443") and stub.asked == [] and "secret" not in line


def test_an_empty_prompt_is_told(stub: Stub) -> None:
    with pytest.raises(NoPrompt, match="prompt is empty"):
        ask_layout(NAMES, " ", (64, 64), Endpoint(stub.url, "m"))
    assert stub.asked == []


def test_the_default_is_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUDI_LLM_URL", raising=False)
    assert Endpoint().address == LOCAL and LOCAL.startswith("http://127.0.0.1")
