"""Laws of finding and fetching weights, against a server on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mudi_core.eyes import weights
from mudi_core.eyes.pins import TABLE, WeightFile, Weights
from mudi_core.eyes.weights import DownloadFailed, MissingWeights, UnknownWeights, WrongHash

CONTENT = bytes(range(256)) * 5000  # more than one block
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/absent":
            return self.send_error(404)
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(
            {"/cut": CONTENT[:1000], "/changed": CONTENT[::-1], "/endless": CONTENT * 50}.get(self.path, CONTENT)
        )

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def model(*urls: str, sha256: str | None = SHA256) -> Weights:
    files = tuple(WeightFile(f"part{i}.bin", url, sha256, len(CONTENT)) for i, url in enumerate(urls))
    return Weights("tiny", "https://example.org/tiny", files)


def everything_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_fetched_model_is_found_and_whole(server, tmp_path):
    steps = []
    path = weights.fetch(model(f"{server}/file"), tmp_path, lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "tiny" / "part0.bin" == weights.find(model("x"), [tmp_path])
    assert path.read_bytes() == CONTENT
    assert everything_in(tmp_path) == [path]
    assert steps[-1] == (len(CONTENT), len(CONTENT)) and steps == sorted(steps)


def test_several_files_are_given_as_their_folder_and_only_the_missing_are_fetched(server, tmp_path):
    wanted = model(f"{server}/absent", f"{server}/file")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "part0.bin").write_bytes(b"mine")
    assert weights.fetch(wanted, tmp_path) == tmp_path / "tiny"
    assert (tmp_path / "tiny" / "part0.bin").read_bytes() == b"mine"


@pytest.mark.parametrize("page, error", [("cut", DownloadFailed), ("changed", WrongHash), ("absent", DownloadFailed)])
def test_nothing_is_kept_of_a_failed_download(server, tmp_path, page, error):
    with pytest.raises(error, match="part0.bin|changed"):
        weights.fetch(model(f"{server}/{page}"), tmp_path)
    assert everything_in(tmp_path) == []


def test_a_download_that_does_not_end_is_ended(server, tmp_path):
    steps = []
    with pytest.raises(WrongHash, match="expected are 1280000 bytes"):
        weights.fetch(model(f"{server}/endless"), tmp_path, lambda done, total: steps.append(done))
    assert everything_in(tmp_path) == [] and max(steps, default=0) <= len(CONTENT)


def test_offline_names_the_link_and_the_folder(tmp_path):
    with pytest.raises(DownloadFailed) as error:
        weights.fetch(model("http://127.0.0.1:9/file"), tmp_path)
    assert "http://127.0.0.1:9/file" in str(error.value) and str(tmp_path / "tiny") in str(error.value)


def test_an_interrupted_download_leaves_nothing(server, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.fetch(model(f"{server}/file"), tmp_path, interrupt)
    assert everything_in(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("number", range(1, 12))
def test_what_a_killed_download_left_is_gone_after_the_next_look(server, tmp_path, monkeypatch, number):
    import kills

    monkeypatch.setitem(TABLE, "tiny", model(f"{server}/file"))

    def fetch():
        kills.die_before_a_file(number, tmp_path)
        weights.locate("tiny", [tmp_path], download=True)

    os.waitpid(kills.in_a_process(fetch), 0)
    found = weights.find(TABLE["tiny"], [tmp_path])
    assert found is None or found.read_bytes() == CONTENT
    with contextlib.suppress(MissingWeights):
        weights.locate("tiny", [tmp_path])
    assert not [path for path in everything_in(tmp_path) if path.suffix == ".part"]
    found = weights.locate("tiny", [tmp_path], download=True)
    assert found.read_bytes() == CONTENT and [path for path in everything_in(tmp_path) if path.suffix == ".part"] == []


def test_of_two_who_want_a_file_at_once_one_fetches_it_and_the_other_hears_cancel(server, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PAUSE", 0.01)
    begun, go_on = threading.Event(), threading.Event()
    heard = []

    def first(done, total):
        begun.set()
        go_on.wait(10)

    def second(done, total):
        heard.append(done)
        go_on.set()

    one = threading.Thread(target=weights.fetch, args=(model(f"{server}/file"), tmp_path, first))
    one.start()
    assert begun.wait(10)
    path = weights.fetch(model("http://127.0.0.1:9/nowhere"), tmp_path, second)
    one.join()
    assert path.read_bytes() == CONTENT and set(heard) == {0} and everything_in(tmp_path) == [path]


def test_a_folder_that_cannot_be_made_is_a_sentence(server, tmp_path):
    (tmp_path / "tiny").write_text("a file where the folder should be")
    with pytest.raises(DownloadFailed, match="tiny"):
        weights.fetch(model(f"{server}/file"), tmp_path)


def test_a_file_without_a_pinned_hash_is_never_downloaded(server, tmp_path):
    with pytest.raises(MissingWeights, match="no pinned hash.*/file"):
        weights.fetch(model(f"{server}/file", sha256=None), tmp_path)


def test_nothing_is_downloaded_unless_asked(server, tmp_path, monkeypatch):
    monkeypatch.setitem(TABLE, "tiny", model(f"{server}/file"))
    with pytest.raises(MissingWeights) as error:
        weights.locate("tiny", [tmp_path, tmp_path / "other"])
    for part in (str(tmp_path / "tiny"), str(tmp_path / "other"), f"{server}/file", "https://example.org/tiny"):
        assert part in str(error.value)
    assert everything_in(tmp_path) == []
    assert weights.locate("tiny", [tmp_path], download=True).read_bytes() == CONTENT
    assert weights.locate("tiny", [tmp_path / "other", tmp_path]).read_bytes() == CONTENT


def test_a_file_may_lie_in_the_folder_itself(tmp_path):
    (tmp_path / "part0.bin").touch()
    assert weights.find(model("x"), [tmp_path]) == tmp_path / "part0.bin"
    assert weights.find(model("x", "y"), [tmp_path]) is None


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(UnknownWeights, match="'sam3'.*sam-vit-b"):
        weights.locate("sam3", [tmp_path])


def test_the_default_folder_can_be_set(monkeypatch, tmp_path):
    monkeypatch.setenv("MUDI_MODELS", str(tmp_path))
    assert weights.default_folder() == tmp_path
    monkeypatch.delenv("MUDI_MODELS")
    assert weights.default_folder().name == "mudi"


@pytest.mark.parametrize("name", TABLE)
def test_every_pin_is_complete(name):
    for file in TABLE[name].files:
        assert file.sha256 is not None and re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.url.startswith("https://") and file.url.endswith(file.name) and file.size > 0
        if "huggingface.co" in file.url:
            assert re.search("/resolve/[0-9a-f]{40}/", file.url)
