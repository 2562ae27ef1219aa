"""Laws of the dataset folder: nothing is lost on the way, and a folder is never left half written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mudi_core.subjects import photos, storage
from mudi_core.subjects.storage import BadDataset, CannotWrite, read_priors, read_subjects, write_subjects
from mudi_core.types import MAX_SUBJECTS, BadSubject, Photo, Subject, SubjectSet

BENCHMARK = Path(__file__).parents[2] / "shared" / "benchmark"


def levels(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random values that 8 bits hold exactly."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).float() / 255


def subject(token: str, *names: str, noun: str = "red monster plush", seed: int = 0, caption: str = "") -> Subject:
    photos = tuple(Photo(name, levels(40, 50 + i, 3, seed=seed + i), caption) for i, name in enumerate(names))
    return Subject(token, noun, photos, tuple(levels(*photo.image.shape[:2], seed=9) for photo in photos))


def same(one: SubjectSet, other: SubjectSet, names: bool = True) -> bool:
    return one.tokens == other.tokens and all(
        (a.class_noun, len(a.photos)) == (b.class_noun, len(b.photos))
        and all(torch.equal(m, n) for m, n in zip(a.masks, b.masks, strict=True))
        and all(
            torch.equal(p.image, q.image) and p.caption == q.caption and (p.name == q.name or not names)
            for p, q in zip(a.photos, b.photos, strict=True)
        )
        for a, b in zip(one, other, strict=True)
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TWO = SubjectSet((subject("olis", "b.png", "a.png", noun="bear"), subject("hta", "sub/c.png", seed=5, caption="où?")))


def test_what_is_written_is_read_again(tmp_path):
    folder = write_subjects(TWO, tmp_path / "new" / "set")
    assert same(read_subjects(folder), TWO)
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("count", [1, MAX_SUBJECTS])
def test_one_subject_and_eleven_make_the_trip(tmp_path, count):
    many = SubjectSet(tuple(subject(f"t{i}", "photo.png", seed=i) for i in range(count)))
    again = read_subjects(write_subjects(many, tmp_path / "set"))
    assert same(again, many, names=False)
    assert len({photo.name for s in again for photo in s.photos}) == count
    assert again.subjects[0].photos[0].name == "photo.png"


def test_the_file_is_that_of_the_official_code(tmp_path):
    folder = write_subjects(TWO, tmp_path / "set")
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [len(line.pop("crc32")) for line in lines] == [1, 3, 3, 3]
    assert lines[0] == {"id": {"a": "olis bear", "b": "hta red monster plush"}}
    assert lines[1] == {"id": "a", "file_name": "b.png", "mask_path": "mask_b.png", "text": "a photo of olis bear"}
    assert lines[3] == {"id": "b", "file_name": "sub/c.png", "mask_path": "sub/mask_c.png", "text": "où?"}
    assert Image.open(folder / "mask_b.png").mode == "L"


@pytest.fixture
def with_files(tmp_path):
    """A set whose photo is a JPEG that a camera stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = Image.fromarray((levels(40, 60, 3) * 255).byte().numpy())
    pixels.save(tmp_path / "IMG_1.JPG", exif=exif, quality=80)
    photo = storage.read_photo(tmp_path / "IMG_1.JPG")
    return SubjectSet((Subject("olis", "bear", (photo,), (levels(60, 40),)),))


def test_an_unchanged_photo_is_copied_byte_for_byte(tmp_path, with_files):
    folder = write_subjects(with_files, tmp_path / "set")
    assert (folder / "IMG_1.JPG").read_bytes() == (tmp_path / "IMG_1.JPG").read_bytes()
    assert same(read_subjects(folder), with_files)


@pytest.mark.parametrize("change", ["pixels", "file gone", "file replaced"])
def test_a_changed_photo_is_written_as_it_is_in_memory(tmp_path, with_files, change):
    (olis,) = with_files
    (photo,) = olis.photos
    if change == "pixels":
        photo = replace(photo, image=levels(60, 40, 3, seed=3))
    elif change == "file gone":
        (tmp_path / "IMG_1.JPG").unlink()
    else:
        Image.new("RGB", (60, 40)).save(tmp_path / "IMG_1.JPG")
    changed = SubjectSet((replace(olis, photos=(photo,)),))
    again = read_subjects(write_subjects(changed, tmp_path / "set"))
    assert same(again, changed, names=False)
    assert again.subjects[0].photos[0].name == "IMG_1.png"


def test_a_set_of_packed_photos_is_the_same_set(tmp_path, with_files, monkeypatch):
    monkeypatch.setattr(photos, "MOST_PIXELS_DECODED", 0)
    together = SubjectSet((replace(with_files.subjects[0], token="lun"), *TWO))
    folder = write_subjects(together, tmp_path / "set")
    packed = read_subjects(folder, packed=True)
    assert same(packed, together, names=False)
    assert tree(write_subjects(packed, tmp_path / "again")) == tree(folder)


@pytest.mark.parametrize("name", [".mudi-complete/a.png", ".mudi-stage-1/a.png", ".mudi-lock", "a/.mudi-copy"])
def test_a_photo_that_is_called_like_a_writers_file_stays(tmp_path, name):
    odd = SubjectSet((subject("olis", name, "b.png"),))
    folder = write_subjects(odd, tmp_path / "set")
    for _ in range(2):  # whoever opens the folder tidies up what writers left
        assert same(read_subjects(folder), odd, names=False)
    assert same(read_subjects(write_subjects(read_subjects(folder), folder)), odd, names=False)


@pytest.mark.parametrize("key", ["id", "file_name", "mask_path", "text"])
def test_what_a_file_says_at_length_is_not_quoted_in_full(tmp_path, key):
    line = {**json.loads(PHOTO), key: ["x" * 3_000_000] if key == "text" else "x" * 3_000_000}
    folder = metadata(tmp_path, LINE_1, json.dumps(line))
    with pytest.raises(BadDataset, match="line 2.* x*") as error:
        read_subjects(folder)
    assert len(str(error.value)) < 5000 and str(error.value)[-1] == "." or key == "id"


def test_names_that_would_meet_are_kept_apart(tmp_path):
    crowd = SubjectSet(
        (subject("olis", "A.png", "a.jpg", "mask_a.png", "metadata.jsonl"), subject("hta", "a.png", "x", seed=7))
    )
    folder = write_subjects(crowd, tmp_path / "set")
    assert same(read_subjects(folder), crowd, names=False)
    files = [path.name.casefold() for path in folder.iterdir()]
    assert len(set(files)) == len(files) == 13


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "C:\\a.png", "..\\a.png", "b/../../a.png"])
def test_no_name_leaves_the_folder_on_writing(tmp_path, name):
    with pytest.raises(CannotWrite, match="name"):
        write_subjects(SubjectSet((subject("olis", name),)), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_replaced_and_other_files_stay(tmp_path):
    folder = write_subjects(TWO, tmp_path / "set")
    (folder / "lora").mkdir()
    (folder / "lora" / "mine.safetensors").write_bytes(b"90 minutes of training")
    fewer = SubjectSet((subject("lun", "a.png", seed=11),))
    assert write_subjects(fewer, folder) == folder
    assert same(read_subjects(folder), fewer)
    assert (folder / "lora" / "mine.safetensors").read_bytes() == b"90 minutes of training"
    assert (folder / "b.png").exists()  # a photo, perhaps the only copy
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_can_be_written_over_the_folder_it_was_read_from(tmp_path):
    folder = write_subjects(TWO, tmp_path / "set")
    read = read_subjects(folder)
    before = tree(folder)
    write_subjects(read, folder)
    assert tree(folder) == before
    write_subjects(SubjectSet((*read, subject("lun", "d.png", seed=20))), folder)
    assert same(SubjectSet(read_subjects(folder).subjects[:2]), TWO)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["copyfile", "_write_png", "read_metadata", "rename"])
def test_a_failed_write_changes_nothing(tmp_path, monkeypatch, step, error):
    folder = write_subjects(TWO, tmp_path / "set")
    read, before = read_subjects(folder), tree(tmp_path)
    rename = Path.rename

    def fail(*args, **settings):
        raise error

    def fail_into_place(path, target):
        return fail() if path.name.startswith(".mudi-stage-") else rename(path, target)

    if step == "rename":
        monkeypatch.setattr(Path, "rename", fail_into_place)
    elif step == "copyfile":
        monkeypatch.setattr(shutil, "copyfile", fail)
    else:
        monkeypatch.setattr(storage, step, fail)
    with pytest.raises((CannotWrite, KeyboardInterrupt)):
        write_subjects(SubjectSet(read.subjects[::-1]), folder)
    assert tree(tmp_path) == before


def test_each_photo_is_told_and_a_stop_between_two_changes_nothing(tmp_path):
    told = []
    folder = write_subjects(TWO, tmp_path / "set", lambda done, total: told.append((done, total)))
    assert same(read_subjects(folder, lambda done, total: told.append((done, total))), TWO)
    assert told == [(1, 3), (2, 3), (3, 3)] * 2
    before = tree(tmp_path)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_subjects(SubjectSet(TWO.subjects[:1]), folder, stop)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("there", ["a file", "other files", "a file above"])
def test_what_is_no_dataset_is_never_overwritten(tmp_path, there):
    target = tmp_path / "out"
    if there == "other files":
        target.mkdir()
        (target / "holiday.jpg").write_bytes(b"precious")
    else:
        target.write_bytes(b"precious")
    before = tree(tmp_path)
    with pytest.raises(CannotWrite, match="out"):
        write_subjects(TWO, target / "set" if there == "a file above" else target)
    assert tree(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "set").mkdir()
    assert same(read_subjects(write_subjects(TWO, tmp_path / "set")), TWO)


LINE_1 = '{"id": {"a": "olis bear"}}'
PHOTO = '{"id": "a", "file_name": "b.png", "mask_path": "mask_b.png", "text": "t"}'


def metadata(tmp_path, *lines: str | bytes) -> Path:
    folder = write_subjects(TWO, tmp_path / "set")
    text = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    (folder / "metadata.jsonl").write_bytes(text)
    return folder


@pytest.mark.parametrize(
    "lines, number, word",
    [
        (["{"], 1, "JSON"),
        (["[]"], 1, "braces"),
        (['{"id": "a"}'], 1, "name the subjects"),
        (['{"id": {}}'], 1, "name the subjects"),
        (['{"id": {"a": "olis"}}'], 1, "<class noun>"),
        (['{"id": {"a": 3}}'], 1, "<class noun>"),
        ([LINE_1, PHOTO, '{"id": "a", "file_name": '], 3, "JSON"),
        ([LINE_1, "", "", PHOTO, "nonsense"], 5, "JSON"),
        ([LINE_1, b'{"id": "\xff"}'], 2, "UTF-8"),
        ([LINE_1, PHOTO.replace('"a"', '"z"')], 2, "no subject 'z'"),
        ([LINE_1, PHOTO.replace('"a"', "[1]")], 2, "no subject"),
        ([LINE_1, '{"id": "a", "mask_path": "mask_b.png"}'], 2, "file_name"),
        ([LINE_1, '{"id": "a", "file_name": "b.png"}'], 2, "mask_path"),
        ([LINE_1, PHOTO.replace('"t"', "7")], 2, "text"),
        ([LINE_1, PHOTO.replace("mask_b.png", "gone.png")], 2, "gone.png"),
        ([LINE_1, PHOTO, PHOTO], 3, "twice"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, lines, number, word):
    with pytest.raises(BadDataset, match=rf"metadata.jsonl, line {number}\b.*{word}"):
        read_subjects(metadata(tmp_path, *lines))


@pytest.mark.parametrize("key", ["b.png", "mask_b.png"])
@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "..\\\\secret.png", "C:/secret.png", "x/../../s", "", 5]
)
def test_no_file_name_leaves_the_folder_on_reading(tmp_path, key, name):
    Image.new("RGB", (50, 40)).save(tmp_path / "secret.png")
    line = PHOTO.replace(f'"{key}"', f'"{name}"' if isinstance(name, str) else str(name))
    with pytest.raises(BadDataset, match="line 2.*leads out of"):
        read_subjects(metadata(tmp_path, LINE_1, line))


def test_other_peoples_spelling_is_read(tmp_path):
    line = PHOTO.replace("b.png", ".\\\\b.png", 1).replace(', "text": "t"', "")
    (olis,) = read_subjects(metadata(tmp_path, b"\xef\xbb\xbf" + LINE_1.encode() + b"\r", "  ", line))
    assert (olis.photos[0].name, olis.photos[0].caption) == ("b.png", "")


def test_a_subject_without_photos_and_a_token_twice_are_refused(tmp_path):
    with pytest.raises(BadSubject, match="'hta' has no photos"):
        read_subjects(metadata(tmp_path, '{"id": {"a": "olis bear", "b": "hta bear"}}', PHOTO))
    twice = '{"id": {"a": "olis bear", "b": "olis cat"}}'
    with pytest.raises(BadSubject, match="'olis' is used by two"):
        read_subjects(metadata(tmp_path, twice, PHOTO, PHOTO.replace('"a"', '"b"')))


@pytest.mark.parametrize("there", ["nothing", "folder", "empty file"])
def test_a_folder_that_is_no_dataset_is_named(tmp_path, there):
    folder = tmp_path / "set"
    if there != "nothing":
        folder.mkdir()
    if there == "empty file":
        (folder / "metadata.jsonl").touch()
    with pytest.raises(BadDataset, match="set"):
        read_subjects(folder)


@pytest.mark.skipif(not BENCHMARK.is_dir(), reason="the benchmark photos are not here")
@pytest.mark.parametrize("combo", sorted(path.name for path in BENCHMARK.glob("*")))
def test_the_official_datasets_make_the_trip_unchanged(tmp_path, combo):
    read = read_subjects(BENCHMARK / combo)
    folder = write_subjects(read, tmp_path / combo)
    assert same(read_subjects(folder), read)
    for path in (BENCHMARK / combo).glob("[ab]*.jpg"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    theirs, ours = ((f / combo / "metadata.jsonl").read_text().splitlines() for f in (BENCHMARK, tmp_path))
    lines = [json.loads(line) for line in ours]
    assert all(line.pop("crc32") for line in lines) and lines == [json.loads(line) for line in theirs]


@pytest.mark.parametrize("name", ["class_metadata.jsonl", "metadata.jsonl"])
@pytest.mark.parametrize("classes", [("toy knight figure", "Corgi"), ("dog", "cat"), ("red plush toy", "white Corgi")])
def test_the_official_codes_priors_are_classes_without_tokens(tmp_path, name, classes):
    reg = tmp_path / "reg"
    reg.mkdir()
    lines = [{"id": dict(zip("ab", classes, strict=True))}]
    for id, noun in zip("ab", classes, strict=True):
        for file in (f"{id}.jpg", f"mask_{id}.jpg"):
            Image.new("RGB", (60, 60), "white").save(reg / file)
        lines.append(
            {"id": id, "file_name": f"{id}.jpg", "mask_path": f"mask_{id}.jpg", "text": f"A photo of a {noun}"}
        )
    (reg / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    photo = Photo("a.png", torch.zeros(60, 60, 3))
    own = SubjectSet((Subject("olis", classes[0], (photo,), (torch.ones(60, 60),)),))
    priors = read_priors(reg, own)
    assert tuple(subject.class_noun for subject in priors) == classes
    assert [subject.photos[0].caption for subject in priors] == [f"A photo of a {noun}" for noun in classes]


def test_priors_of_our_own_keep_their_tokens(tmp_path):
    photo = Photo("a.png", torch.zeros(60, 60, 3))
    own = SubjectSet((Subject("olis", "red corgi", (photo,), (torch.ones(60, 60),)),))
    priors = read_priors(write_subjects(own, tmp_path / "priors"), own)
    assert priors.tokens == ("olis",) and priors["olis"].class_noun == "red corgi"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "shift_jis"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "class_metadata.jsonl"])
def test_metadata_of_any_encoding_is_read_or_refused_in_a_sentence(tmp_path, encoding, name):
    noun = "犬" if encoding in ("shift_jis", "utf-8", "utf-8-sig") else "café"
    for file in ("a.png", "m.png"):
        Image.new("L", (60, 60), 255).save(tmp_path / file)
    lines = [{"id": {"a": f"olis {noun}"}}, {"id": "a", "file_name": "a.png", "mask_path": "m.png", "text": noun}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / name).write_bytes(text.encode(encoding))
    try:
        assert next(iter(read_subjects(tmp_path))).name.endswith(noun)
        assert encoding in ("utf-8", "utf-8-sig", "utf-16")
    except BadDataset as error:
        assert encoding not in ("utf-8", "utf-8-sig", "utf-16") and "UTF-8" in str(error)


def test_a_subject_is_added_without_decoding_the_others(tmp_path, monkeypatch):
    folder = write_subjects(TWO, tmp_path / "set")
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    monkeypatch.setattr(storage, "read_photo", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(storage, "read_mask", lambda *_: pytest.fail("decoded"))
    names, where = storage.add_subject(folder, subject("lun", "b.png", seed=9))
    assert (names, where) == ([("olis bear", 2), ("hta red monster plush", 1), ("lun red monster plush", 1)], folder)
    with pytest.raises(BadSubject, match="'lun' is used by two"):
        storage.add_subject(folder, subject("lun", "e.png"))
    storage.add_subject(folder, subject("lun", "new.png", seed=12), replace=True)
    monkeypatch.undo()
    read = read_subjects(folder)
    assert same(SubjectSet(read.subjects[:2]), TWO) and read["lun"].photos[0].name == "new.png"
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_mask_of_another_kind_is_copied_with_its_suffix(tmp_path):
    folder = write_subjects(SubjectSet((subject("olis", "b.png"),)), tmp_path / "set")
    Image.open(folder / "mask_b.png").save(folder / "mask_b.bmp")
    (folder / "mask_b.png").unlink()
    (folder / "metadata.jsonl").write_text(f"{LINE_1}\n{PHOTO.replace('mask_b.png', 'mask_b.bmp')}\n")
    want = (folder / "mask_b.bmp").read_bytes()
    storage.add_subject(folder, subject("lun", "e.png"))
    assert (folder / "mask_b.bmp").read_bytes() == want and storage.changes(folder) == ""


@pytest.mark.parametrize("what", ["photo", "mask", "caption", "checksum", "key", "file gone"])
def test_what_is_not_as_it_was_saved_is_named_and_read(tmp_path, caplog, what):
    folder = write_subjects(TWO, tmp_path / "set")
    read_subjects(folder)
    assert not caplog.text and storage.changes(folder) == ""
    metadata = folder / "metadata.jsonl"
    lines = metadata.read_text(encoding="utf-8").splitlines()
    if what in ("photo", "mask"):
        Image.new("L", (50, 40), 9).save(folder / ("b.png" if what == "photo" else "mask_b.png"))
    elif what == "caption":
        lines[1] = lines[1].replace("a photo of", "a Photo of")
    elif what == "checksum":
        lines[1] = lines[1][:-5] + "zz" + lines[1][-3:]
    elif what == "key":
        lines[1] = lines[1].replace("crc32", "crc33")
    else:
        (folder / "mask_b.png").unlink()
    metadata.write_text("\n".join(lines), encoding="utf-8")
    if what == "file gone":
        with pytest.raises(BadDataset, match="mask_b.png"):
            read_subjects(folder)
        return
    assert read_subjects(folder).tokens == TWO.tokens
    name = {"photo": "b.png", "mask": "mask_b.png", "checksum": "mask_b.png"}.get(what, "metadata.jsonl, line 2")
    assert "Changed since it was saved in set: " in caplog.text and name in caplog.text
    told = storage.changes(folder)
    storage.add_subject(folder, subject("lun", "e.png"))
    if what in ("photo", "mask"):
        assert storage.changes(folder) == told  # copied, and still known as damaged
    write_subjects(read_subjects(folder), folder)
    assert storage.changes(folder) == ""


def test_a_set_without_checksums_says_nothing(tmp_path, caplog):
    folder = metadata(tmp_path, LINE_1, PHOTO)
    (folder / "mask_b.png").write_bytes((folder / "mask_b.png").read_bytes())
    assert read_subjects(folder).tokens == ("olis",) and storage.changes(folder) == "" and not caplog.text
