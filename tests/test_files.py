"""Laws of text files: what editors of any system save is read alike by every reader; anything else is a sentence."""

from __future__ import annotations

import codecs
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from mudi_core.benchmark.spec_file import read_spec
from mudi_core.cli.generate import places
from mudi_core.files import LONGEST_TEXT, NotText, read_text
from mudi_core.subjects.storage import read_subjects, write_subjects
from mudi_core.types import MudiError, Photo, Subject, SubjectSet

TEXT = 'olis, "オリス" and café\r\n'
READ = {
    "utf-8": TEXT.encode(),
    "utf-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "utf-16 of this machine": TEXT.encode("utf-16"),
    "utf-16 little": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16 big": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
}
REFUSED = {
    "latin-1": b"\nolis caf\xe9 here",
    "utf-16 without a mark": ("\n" + TEXT).encode("utf-16-le"),
    "utf-32": "\nolis".encode("utf-32"),
    "half a letter": codecs.BOM_UTF16_LE + "\nolis \ud800".encode("utf-16-le", "surrogatepass"),
    "odd bytes": codecs.BOM_UTF16_LE + "\nolis".encode("utf-16-le") + b"\0",
    "a program": b"\n\x7fELF\0\0\1",
}


@pytest.mark.parametrize("encoding", READ)
def test_every_encoding_that_names_itself_is_read_alike(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(READ[encoding])
    assert read_text(file) == TEXT


@pytest.mark.parametrize("encoding", REFUSED)
def test_no_encoding_is_guessed(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(REFUSED[encoding])
    with pytest.raises(NotText, match=r"text, line \d is not UTF-8 text\. Save the file as UTF-8\."):
        read_text(file)


def test_the_sentence_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"one\ntwo\ncaf\xe9\n")
    with pytest.raises(NotText, match="line 3 "):
        read_text(file)


def test_a_text_is_not_endless(tmp_path: Path) -> None:
    file = tmp_path / "text"
    with file.open("wb") as sparse:
        sparse.truncate(LONGEST_TEXT + 1)
    with pytest.raises(NotText, match="16 MB"):
        read_text(file)


def _layout(file: Path) -> object:
    return places(Namespace(layout=str(file)), SubjectSet.__new__(SubjectSet), "", (64, 64))


SPEC = """base = "mini"
combos = { "オリス" = "set" }
methods = ["segmix"]
prompts = ["{subjects}"]
seeds = 1
"""
LAYOUT = '{"オリス": [0, 0.2, 0.45, 1]}'
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {"layout": (LAYOUT, _layout), "spec": (SPEC, read_spec)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("reader", READERS)
def test_readers_of_texts(reader: str, encoding: str, tmp_path: Path) -> None:
    text, read = READERS[reader]
    file = tmp_path / "text"
    file.write_text(text, encoding="utf-8")
    expected = str(read(file))
    file.write_bytes(text.encode(encoding))
    assert str(read(file)) == expected
    assert "オリス" in expected


@pytest.mark.parametrize("encoding", REFUSED)
@pytest.mark.parametrize("reader", READERS)
def test_readers_refuse_the_rest_in_a_sentence(reader: str, encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(REFUSED[encoding])
    with pytest.raises(MudiError, match=re.escape("is not UTF-8 text")):
        READERS[reader][1](file)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_set_is_read_from_metadata_of_any_encoding(encoding: str, tmp_path: Path, drawn_subjects: SubjectSet) -> None:
    first = drawn_subjects.subjects[0]
    named = Subject("オリス", "猫", (Photo("café.png", first.photos[0].image),), first.masks[:1])
    write_subjects(SubjectSet((named,)), tmp_path / "set")
    file = tmp_path / "set" / "metadata.jsonl"
    file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    (read,) = read_subjects(tmp_path / "set")
    assert (read.token, read.class_noun, read.photos[0].name) == ("オリス", "猫", "café.png")
