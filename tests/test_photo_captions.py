"""Captions of photos: text files beside them, kohya's folders, the name that they must say, and offered class nouns."""

from __future__ import annotations

import base64
import codecs
import io
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_ask import Stub, stub
from test_cli import photos, prepare, simple_eyes

from mudi_core.cli import main
from mudi_core.stage.describe import NoClassNoun, ask_class, class_question, read_class
from mudi_core.stage.endpoint import BadEndpoint, Endpoint
from mudi_core.subjects import captions
from mudi_core.subjects.captions import BadCaption, named, offer_of, read_caption, too_long
from mudi_core.subjects.photos import passed_over, read_photos
from mudi_core.subjects.storage import read_subjects
from mudi_core.types import Photo

__all__ = ["photos", "simple_eyes", "stub"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, two of which have a caption."""
    for name in ("1.png", "2.png", "3.png"):
        Image.new("RGB", (48, 48)).save(tmp_path / name)
    (tmp_path / "1.txt").write_text("1girl, solo,\n  red hat\n", encoding="utf-8")
    (tmp_path / "3.caption").write_text("olis dog on a sofa", encoding="utf-8")
    return tmp_path


def test_text_beside_a_photo_is_its_caption(folder: Path) -> None:
    assert [photo.caption for photo in read_photos(folder)] == ["1girl, solo, red hat", "", "olis dog on a sofa"]
    assert passed_over(folder) == ""
    (folder / "3.txt").write_text("the first of two", encoding="utf-8")
    assert read_photos(folder)[2].caption == "the first of two"
    assert "3.caption (second captions of a photo" in passed_over(folder)


@pytest.mark.parametrize(
    "data",
    [
        "ein Hündchen 犬".encode(),
        codecs.BOM_UTF8 + "ein Hündchen 犬".encode(),
        codecs.BOM_UTF16_LE + "ein Hündchen 犬".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "ein Hündchen 犬".encode("utf-16-be"),
        "ein Hündchen\r\n  犬 \n\n".encode(),
    ],
)
def test_captions_have_any_encoding_that_says_what_it_is(folder: Path, data: bytes) -> None:
    (folder / "2.txt").write_bytes(data)
    assert read_caption(folder / "2.png") == "ein Hündchen 犬"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("ein Hündchen".encode("latin-1"), "2.txt, line 1 is not UTF-8 text. Save the file as UTF-8"),
        ("a dog".encode("utf-16-le"), "2.txt, line 1 is not UTF-8 text"),
        (b"\x89PNG\0", "2.txt, line 1 is not UTF-8 text"),
        (b"x" * 4001, "2.txt is too long for a caption, which has up to 4000 letters. Shorten it"),
        ("犬".encode() * 200_000, "2.txt is too long for a caption"),
    ],
)
def test_a_file_that_is_no_caption_is_told_by_its_name(folder: Path, data: bytes, words: str) -> None:
    (folder / "2.txt").write_bytes(data)
    with pytest.raises(BadCaption, match=words):
        read_photos(folder)


def test_an_empty_file_is_no_caption_and_a_folder_neither(folder: Path) -> None:
    (folder / "2.txt").write_text(" \n")
    assert read_caption(folder / "2.png") == ""
    (folder / "2.txt").unlink()
    (folder / "2.txt").mkdir()
    assert read_caption(folder / "2.png") == ""


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_elsewhere_is_not_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("password")
    (folder / "2.txt").symlink_to(secret)
    assert read_caption(folder / "2.png") == "password"  # on the command line paths are the user's own
    with pytest.raises(BadCaption, match="2.txt is a link that leads out of"):
        read_photos(folder, within=folder)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("10_olis dog", ("olis", "dog", 10)),
        ("1_hta chow chow", ("hta", "chow chow", 1)),
        ("20_olis", ("olis", "", 20)),
        ("my_corgi", None),
        ("2024_summer trip", None),
        ("10_", None),
        ("10_<lora:x:1> dog", None),
        ("olis dog", None),
        ("5_" + "x" * 101, None),
    ],
)
def test_a_folder_in_kohyas_form_offers_names(name: str, found: tuple[str, str, int] | None) -> None:
    offer = offer_of(name)
    assert (offer and (offer.token, offer.class_noun, offer.repeats)) == found
    if offer is not None:
        assert f"token '{offer.token}'" in offer.words and f"{offer.repeats}, is ignored" in offer.words


def photo(name: str, caption: str) -> Photo:
    return Photo(name, torch.zeros(16, 16, 3), caption)


def test_every_caption_says_the_token_and_what_was_put_in_is_told() -> None:
    given = [photo("a.png", "1girl, smile, hat"), photo("b.png", "olis at sea"), photo("c.png", "")]
    told, remarks = named(given, "olis", "girl")
    assert [one.caption for one in told] == ["olis, 1girl, smile, hat", "olis at sea", ""]
    assert remarks == [
        "The captions of a.png did not say 'olis', so they would not have taught that name: it was put in.",
        "Without a caption: c.png. Training writes one with the name alone.",
    ]
    assert named(given[1:2], "olis", "girl") == (tuple(given[1:2]), [])
    assert named([photo("c.png", "")], "olis", "girl")[1] == []


def test_tags_that_nobody_reads_to_the_end_are_told() -> None:
    tags = ", ".join(f"tag{number}" for number in range(40))
    (said,) = too_long([photo("a.png", tags), photo("b.png", "olis, " + "smile, " * 5), photo("c.png", "")])
    assert said.startswith("a.png: its caption has ") and "read the first 75. Put what matters first" in said
    assert named([photo("a.png", f"olis, {tags}")], "olis", "girl")[1][0].startswith("a.png: its caption has ")
    assert captions.READ_AT_MOST == 75


def test_prepare_reads_captions_and_a_folders_name(
    simple_eyes: None, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named_so = photos.rename(tmp_path / "10_rex fluffy cat")
    first, second = sorted(named_so.iterdir())
    first.with_suffix(".txt").write_text("cat, grass, sky", encoding="utf-8")
    assert main(["prepare", str(named_so), "--base", "mini", "--out", str(tmp_path / "set"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["captions"] == 1
    assert "offers the token 'rex' and the class noun 'fluffy cat'. Its number, 10, is ignored" in said.err
    assert f"The captions of {first.name} did not say 'rex'" in said.err
    (subject,) = read_subjects(tmp_path / "set")
    assert subject.name == "rex fluffy cat"
    assert [one.caption for one in subject.photos] == ["rex fluffy cat, cat, grass, sky", ""]
    # What the user says goes before what the folder offers.
    assert prepare(named_so, tmp_path / "other") == 0
    assert [one.name for one in read_subjects(tmp_path / "other")] == ["olis cat"]
    second.with_suffix(".txt").write_bytes(b"\xff\xfe\xff")
    assert prepare(named_so, tmp_path / "third") == 1
    assert f"{second.stem}.txt" in capsys.readouterr().err and not (tmp_path / "third").exists()


def test_prepare_offers_or_takes_a_more_exact_class_noun(
    simple_eyes: None, photos: Path, tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = ("--llm", stub.url, "--llm-model", "eye")
    stub.replies = ["grey tabby cat", "**Grey tabby cat.**", "cat"]
    assert prepare(photos, tmp_path / "offer", "--describe", "offer", *llm) == 0
    said = "".join(capsys.readouterr())
    assert "offers the class noun 'grey tabby cat' instead of 'cat'. Give it as --class-noun" in said
    assert [one.name for one in read_subjects(tmp_path / "offer")] == ["olis cat"]
    assert prepare(photos, tmp_path / "take", "--describe", "take", *llm) == 0
    assert "It is taken." in "".join(capsys.readouterr())
    assert [one.name for one in read_subjects(tmp_path / "take")] == ["olis Grey tabby cat"]
    assert prepare(photos, tmp_path / "same", "--describe", "take", *llm) == 0
    assert [one.name for one in read_subjects(tmp_path / "same")] == ["olis cat"]


@pytest.mark.parametrize(
    ("answer", "noun"),
    [
        ("fluffy brown corgi", "fluffy brown corgi"),
        ('"A fluffy brown corgi."', "fluffy brown corgi"),
        ("<think>hmm: it is\na dog</think>\n\nClass noun: **silver-haired girl**", "silver-haired girl"),
        ("`red monster plush`\nIt has one eye.", "red monster plush"),
    ],
)
def test_a_class_noun_is_read_out_of_an_answer(answer: str, noun: str) -> None:
    assert read_class(answer) == noun


@pytest.mark.parametrize(
    "answer",
    ["", "  \n", "...", "<think>dog</think>", "I am sorry, but I cannot tell you what is in this picture",
     "a dog (red:1.5)", "<lora:x>", "x" * 300, "dog {a|b}"],
)  # fmt: skip
def test_an_answer_that_is_no_class_noun_is_told(answer: str) -> None:
    with pytest.raises(NoClassNoun, match="is no class noun: .*Ask it for two to five plain words"):
        read_class(answer)


def test_a_language_model_sees_one_small_photo(stub: Stub) -> None:
    stub.replies = ["brown corgi", (400, {}, "this model does not support images")]
    where = Endpoint(stub.url, "eye", 5.0)
    assert ask_class(torch.rand(900, 1200, 3), "dog", ["olis dog on grass"], where) == "brown corgi"
    (message,) = stub.asked[0]["messages"]
    text, picture = message["content"]
    assert text["text"] == class_question("dog", ["olis dog on grass"]) and "olis dog on grass" in text["text"]
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == (512, 384)
    with pytest.raises(BadEndpoint, match="refused with 400 .*does not support images"):
        ask_class(torch.rand(64, 64, 3), "dog", [], where)
