"""Nothing is lost: killed anywhere, on a full disk, in a folder that is gone or cannot be written."""

from __future__ import annotations

import mmap
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_sdxl
import torch
from coloured import coloured
from test_train_loop import CONFIG, plan_for
from tiny_sdxl import tiny_unet

from mudi_core.lock import beginning, claimed
from mudi_core.lora.file import save_lora
from mudi_core.subjects.saving import Unfinished, take_up, take_up_all
from mudi_core.subjects.storage import CannotWrite, add_subject, read_subjects, write_subjects
from mudi_core.tensor_file import BadTensorFile, read_tensors, write_tensors
from mudi_core.train import run
from mudi_core.train.resume import losses_so_far
from mudi_core.types import MudiError, SubjectSet

posix = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no limits of files")


@posix
def test_killed_anywhere_it_goes_on_to_the_same_file(tmp_path: Path) -> None:
    """`python tests/kills.py` does a hundred of these."""
    import kills

    report = kills.run(5, 1, tmp_path)
    assert report.kills >= 5 and len(report.by_kind) == 3
    assert (report.lost, report.halves) == (0, 0)


@posix
def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        with claimed(tmp_path / "a.safetensors.01234567.part"):
            os._exit(0)
    os.waitpid(dead, 0)
    for name in (f"earlier.safetensors.{os.getpid()}.part", "c.safetensors.part"):
        (tmp_path / name).touch()
    with claimed(tmp_path / "b.safetensors.89abcdef.part"):
        write_tensors(tmp_path / "d.safetensors", coloured_state(), {})
        assert {path.name for path in tmp_path.iterdir()} == {
            "b.safetensors.89abcdef.part",
            "c.safetensors.part",
            "d.safetensors",
        }


@posix
def test_a_claim_is_had_by_one_and_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with claimed(lock) as ours:
        assert ours
        with claimed(lock) as again:
            assert not again and lock.exists()
    assert not lock.exists()
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        with claimed(lock):
            os.write(write, b"mine")
            time.sleep(60)
            os._exit(0)
    assert os.read(read, 4) == b"mine"
    with claimed(lock) as ours:
        assert not ours
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with claimed(lock, wait=True) as ours:
        assert ours
    assert not lock.exists()


@posix
def test_of_many_who_wait_one_works_at_a_time(tmp_path: Path) -> None:
    workers = []
    for _ in range(6):
        process = os.fork()
        if process == 0:
            for _ in range(10):
                with claimed(tmp_path / "x.lock", wait=True):
                    count = int((tmp_path / "count").read_text()) if (tmp_path / "count").exists() else 0
                    (tmp_path / "count").write_text(str(count + 1))
            os._exit(0)
        workers.append(process)
    assert {os.waitpid(process, 0)[1] for process in workers} == {0}
    assert (tmp_path / "count").read_text() == "60" and [path.name for path in tmp_path.iterdir()] == ["count"]


NEW, OLD = ("black", "orange"), ("red", "blue")


@posix
@pytest.mark.parametrize("there", ["nothing", "a set"])
def test_killed_before_any_dealing_with_a_file_a_set_is_the_old_or_the_new_and_nothing_is_left(
    tmp_path: Path, there: str
) -> None:
    import kills

    for number in range(1, 100):
        place = tmp_path / str(number)
        folder = place / "set"
        place.mkdir()
        if there == "a set":
            write_subjects(coloured(*OLD, photos=1), folder)
            (folder / "empty").mkdir()
            (folder / "notes.txt").write_text("mine")

        def save(number: int = number, folder: Path = folder) -> None:
            kills.die_before_a_file(number, folder)
            write_subjects(coloured(*NEW, photos=1), folder)

        _, status = os.waitpid(kills.in_a_process(save), 0)
        assert os.WIFSIGNALED(status) or status == 0
        take_up(folder)
        if folder.exists():
            assert read_subjects(folder).tokens in ((OLD, NEW) if there == "a set" else (NEW,))
        assert (there == "nothing") or ((folder / "empty").is_dir() and (folder / "notes.txt").read_text() == "mine")
        assert [path.name for path in place.iterdir()] in ([], ["set"])
        assert not [path for path in place.rglob("*") if path.name.startswith(".")]
        assert read_subjects(write_subjects(coloured(*NEW, photos=1), folder)).tokens == NEW
        if status == 0:
            break
    assert 20 < number < 99


DEAD, ALIVE = 2**22 + 1, 1
"""Numbers of processes: Linux gives none so high, and always gives the first."""


def left_by_an_earlier_version(place: Path, kind: str, process: int, *tokens: str, files: tuple[str, ...] = ()) -> Path:
    """A set out of the way, or in the making, as versions before this one had them."""
    folder = place / f".set.{process}.{kind}"
    write_subjects(coloured(*tokens, photos=1), place / "made").rename(folder)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("look", ["one", "all", "a writer"])
def test_what_earlier_versions_left_comes_back(tmp_path: Path, look: str) -> None:
    """Killed between two renames: no set has the name, the old one is out of the way, the new one is complete."""
    folder = tmp_path / "set"
    left_by_an_earlier_version(tmp_path, "old", ALIVE, *OLD, files=("notes.txt", "more/notes.txt"))
    left_by_an_earlier_version(tmp_path, "new", os.getpid(), *NEW)
    if look == "one":
        take_up(folder)
    elif look == "all":
        take_up_all(tmp_path)
    else:
        (orange,) = coloured("orange", photos=1)
        add_subject(folder, orange)
    assert read_subjects(folder).tokens == ((*OLD, "orange") if look == "a writer" else OLD)
    assert (folder / "more" / "notes.txt").read_text() == "mine" and (folder / "empty").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_earlier_versions_left_beside_a_set_goes_and_the_users_files_do_not(tmp_path: Path) -> None:
    """Killed while the user's files move from the old set to the new one, twice, and once in the photos."""
    folder = write_subjects(coloured(*NEW, photos=1), tmp_path / "set")
    (folder / "notes.txt").write_text("newer")
    left_by_an_earlier_version(tmp_path, "old", DEAD, *OLD, files=("notes.txt", "more/notes.txt"))
    left_by_an_earlier_version(tmp_path, "old", os.getpid(), "red", files=("others.txt",))
    (left_by_an_earlier_version(tmp_path, "new", DEAD, *OLD) / "metadata.jsonl").unlink()
    take_up_all(tmp_path)
    assert read_subjects(folder).tokens == NEW and (folder / "notes.txt").read_text() == "newer"
    assert {(folder / name).read_text() for name in ("more/notes.txt", "others.txt")} == {"mine"}
    assert (folder / "empty").is_dir() and [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_may_still_be_needed_stays(tmp_path: Path) -> None:
    """A folder of the user's has the name by now, or the process lives."""
    old = left_by_an_earlier_version(tmp_path, "old", DEAD, *OLD)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("mine")
    take_up_all(tmp_path)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["notes.txt"] and read_subjects(old).tokens == OLD
    (tmp_path / "set" / "notes.txt").unlink()
    if Path("/proc/1").exists():
        new = left_by_an_earlier_version(tmp_path, "new", ALIVE, *NEW)
        take_up_all(tmp_path)
        assert read_subjects(tmp_path / "set").tokens == OLD and new.is_dir()


@posix
def test_a_new_folder_of_a_killed_writer_goes_and_an_empty_one_of_the_user_does_not(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "killed").mkdir()
    (tmp_path / ".mudi-killed.new").touch()
    with claimed(tmp_path / ".mudi-living.new"):
        (tmp_path / "living").mkdir()
        take_up_all(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"mine", "living", ".mudi-living.new"}


@posix
def test_locks_of_killed_trainings_are_swept_when_another_begins(tmp_path: Path) -> None:
    for name in (".a.safetensors.lock", ".b.safetensors.lock", ".c.lock", "d.safetensors.lock"):
        (tmp_path / name).touch()
    with claimed(tmp_path / ".b.safetensors.lock"), beginning(tmp_path, re.compile(r"\..+\.safetensors\.lock")):
        found = {path.name for path in tmp_path.iterdir()}
    assert found == {".b.safetensors.lock", ".c.lock", "d.safetensors.lock", ".mudi.lock"}
    assert not (tmp_path / ".mudi.lock").exists()


@posix
def test_two_who_add_a_subject_at_once_lose_none(tmp_path: Path) -> None:
    import kills

    tokens = ("red", "blue", "black", "orange")

    def add(token: str) -> None:
        (subject,) = coloured(token, photos=1)
        add_subject(tmp_path / "set", subject)

    processes = [kills.in_a_process(lambda token=token: add(token)) for token in tokens]  # type: ignore[misc]
    assert {os.waitpid(process, 0)[1] for process in processes} == {0}
    assert sorted(read_subjects(tmp_path / "set").tokens) == sorted(tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@posix
def test_who_reads_while_others_save_reads_one_of_their_sets_whole(tmp_path: Path) -> None:
    import kills

    folder = write_subjects(coloured("red", photos=1), tmp_path / "set")

    def save() -> None:
        while not (tmp_path / "enough").exists():
            for token in ("blue", "red"):
                (subject,) = coloured(token, photos=1)
                named = replace(subject, photos=(replace(subject.photos[0], name="same.png"),))
                write_subjects(SubjectSet((named,)), folder)

    process = kills.in_a_process(save)
    seen: list[str] = []
    deadline = time.monotonic() + 60
    while (len(seen) < 10 or len(set(seen)) < 2) and time.monotonic() < deadline:
        (subject,) = read_subjects(folder)
        assert torch.equal(subject.photos[0].image, coloured(subject.token, photos=1).subjects[0].photos[0].image)
        seen.append(subject.token)
    (tmp_path / "enough").touch()
    assert os.waitpid(process, 0)[1] == 0 and set(seen) == {"red", "blue"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it asks Linux what is open")
@pytest.mark.parametrize("how", ["open", "mapped", "taken", "a file in the folder is open"])
def test_the_rule_of_windows_is_noticed(tmp_path: Path, windows_rule: list[str], how: str) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("new")
    target.write_text("old")
    move = os.rename if how == "taken" else os.replace
    with open(target, "rb") as held:
        if how == "mapped":
            held = mmap.mmap(held.fileno(), 0, access=mmap.ACCESS_READ)
        elif how == "taken":
            held.close()
        elif how == "a file in the folder is open":
            held.close()
            (tmp_path / "c").mkdir()
            held, source, target = (tmp_path / "c" / "d").open("w"), tmp_path / "c", tmp_path / "e"
        with pytest.raises(PermissionError, match="Windows"):
            move(source, target)
        held.close()
    assert len(windows_rule) == 1
    windows_rule.clear()


def test_files_move_only_in_ways_that_the_rule_of_windows_watches() -> None:
    """`windows.py` watches os.replace, os.rename and the two of Path."""
    others = re.compile(r"shutil\.move|os\.renames|os\.link|hardlink_to|from (os|shutil) import")
    for folder in ("mudi_core", "nodes"):
        for path in sorted((Path(__file__).parent.parent / folder).rglob("*.py")):
            assert not others.search(path.read_text(encoding="utf-8")), path


def test_what_cannot_move_to_its_place_is_told_and_waits_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows where a picture is open in another program."""
    folder = write_subjects(coloured("red", photos=1), tmp_path / "set")
    move = os.replace

    def refused(source: Any, target: Any) -> None:
        if str(target).endswith("red_0.png"):
            raise PermissionError(13, "Permission denied", str(target))
        move(source, target)

    monkeypatch.setattr(os, "replace", refused)
    (subject,) = coloured("red", photos=2)
    with pytest.raises(Unfinished, match="red_0.png.*Close the programs"):
        write_subjects(SubjectSet((replace(subject, token="blue"),)), folder)
    with pytest.raises(Unfinished, match="red_0.png.*Close the programs"):
        read_subjects(folder)
    monkeypatch.setattr(os, "replace", move)
    (subject,) = read_subjects(folder)
    assert (subject.token, len(subject.photos)) == ("blue", 2)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("moved", range(3))
def test_a_new_set_whose_files_are_on_their_way_is_no_foreign_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """Killed while they move: the next who saves there, without a look before, may do so."""
    folder, move, left = tmp_path / "set", os.replace, iter(range(moved))

    def refused(source: Any, target: Any) -> None:
        if next(left, None) is None:
            raise PermissionError(13, "Permission denied", str(target))
        move(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(Unfinished):
        write_subjects(coloured("red", photos=1), folder)
    monkeypatch.setattr(os, "replace", move)
    (blue,) = coloured("blue", photos=1)
    add_subject(folder, blue)
    assert read_subjects(folder).tokens == ("red", "blue")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").touch()
    with pytest.raises(CannotWrite, match="is not a dataset"):
        write_subjects(coloured("red", photos=1), tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.png"]


def coloured_state() -> dict[str, Any]:
    return {"x": torch.arange(1000.0)}


def with_full_disk(work: Callable[[], None], byte: int) -> str:
    """What is raised where no file can grow beyond so many bytes, in a process of its own."""
    import resource
    import signal

    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(1)  # threads do not outlive a fork
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
            work()
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(process, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


@posix
@pytest.mark.parametrize("byte", [0, 9, 5000])
def test_a_full_disk_ends_training_in_a_sentence_and_leaves_the_last_checkpoint(tmp_path: Path, byte: int) -> None:
    stopped, lora = tmp_path / "stopped.safetensors", tmp_path / "lora.safetensors"
    unet, config = tiny_unet(), CONFIG.but(save_every=2)

    def train(on_step: Any, resume: bool = False) -> Any:
        return tiny_sdxl.train(
            unet, plan_for(config), config, on_step, resume=stopped if resume else None, checkpoint=stopped
        )

    def give_up(done: int, *_: Any) -> None:
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(give_up)
    before = stopped.read_bytes()
    told = with_full_disk(lambda: train(None, resume=True), byte)
    assert told.startswith(f"BadTensorFile: Cannot write {stopped}") and told.endswith("has space."), told
    assert stopped.read_bytes() == before and list(tmp_path.iterdir()) == [stopped]
    result = train(None, resume=True)
    told = with_full_disk(lambda: save_lora(lora, result.state, {}), byte)
    assert told.startswith(f"BadTensorFile: Cannot write {lora}") and not lora.exists()
    assert losses_so_far(stopped) == list(result.losses[:4])


@posix
@pytest.mark.parametrize("byte", [0, 50, 200])
def test_a_full_disk_leaves_the_dataset_as_it_was(tmp_path: Path, byte: int) -> None:
    folder = write_subjects(coloured("red", "blue"), tmp_path / "set")
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    told = with_full_disk(lambda: write_subjects(coloured("black", "orange", photos=3), folder), byte)
    assert told.startswith("CannotWrite: ") and "Its contents are unchanged" in told, told
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_removed_during_the_run_is_made_again(tmp_path: Path) -> None:
    stopped = tmp_path / "output" / "mudi" / "stopped.safetensors"
    config = CONFIG.but(save_every=1)

    def remove(done: int, *_: Any) -> None:
        if done == 2:
            shutil.rmtree(tmp_path / "output")

    tiny_sdxl.train(tiny_unet(), plan_for(config), config, remove, checkpoint=stopped)
    assert len(losses_so_far(stopped)) == 4


def test_a_folder_that_cannot_be_made_is_told_and_nothing_else_is_touched(tmp_path: Path) -> None:
    """A file stands where the folder should: what no rights allow looks the same, and root has all of them."""
    (tmp_path / "output").write_text("mine")
    with pytest.raises(BadTensorFile, match="Choose a folder that is writable"):
        save_lora(tmp_path / "output" / "lora.safetensors", {}, {})
    with pytest.raises(CannotWrite, match="Choose another folder"):
        write_subjects(coloured("red"), tmp_path / "output" / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["output"] and (tmp_path / "output").read_text() == "mine"


@contextmanager
def anybody() -> Iterator[None]:
    """Within the block this process is not root, who may write everywhere."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have other rights here")
def test_a_folder_that_is_read_only_is_told() -> None:
    with tempfile.TemporaryDirectory() as name:
        place, lora = Path(name), {"lora": torch.ones(1)}
        folder = write_subjects(coloured("red"), place / "set")
        write_tensors(place / "lora.safetensors", lora, {})
        place.chmod(0o555)
        try:
            with anybody():
                with pytest.raises(CannotWrite, match="Permission denied"):
                    write_subjects(coloured("blue"), folder)
                with pytest.raises(BadTensorFile, match="Permission denied"):
                    write_tensors(place / "lora.safetensors", {"lora": torch.zeros(1)}, {})
        finally:
            place.chmod(0o700)
        assert read_subjects(folder).tokens == ("red",)
        assert torch.equal(read_tensors(place / "lora.safetensors")[0]["lora"], lora["lora"])


def test_a_long_run_keeps_its_steps_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "KEPT_EVERY", -1.0)
    stopped, seen = tmp_path / "stopped.safetensors", []
    unet = tiny_unet()
    tiny_sdxl.train(
        unet,
        plan_for(CONFIG),
        CONFIG,
        lambda done, *_: seen.append(len(losses_so_far(stopped)) if stopped.is_file() else 0),
        checkpoint=stopped,
        on_save=lambda *_: pytest.fail("nobody asked for a LoRA"),
    )
    assert seen == [0, 1, 2, 3, 4]


def test_a_run_is_kept_before_its_lora_is_written_and_makes_up_for_it(tmp_path: Path) -> None:
    """A kill in between neither loses the LoRA nor leaves one whose run nobody can go on with."""
    stopped, kept = tmp_path / "stopped.safetensors", []
    config = CONFIG.but(steps=5, save_every=2)

    def save(step: int, state: Any) -> None:
        kept.append((step, len(losses_so_far(stopped)) if stopped.is_file() else 0))
        if len(kept) == 2:
            shutil.copy(stopped, tmp_path / "killed.safetensors")  # as it lies there at this moment

    tiny_sdxl.train(tiny_unet(), plan_for(config), config, on_save=save, checkpoint=stopped)
    assert kept == [(2, 2), (4, 4)]
    killed = tmp_path / "killed.safetensors"
    again = {"checkpoint": killed, "resume": killed}
    tiny_sdxl.train(tiny_unet(), plan_for(config), config, on_save=save, **again)
    assert kept[2:] == [(4, 4)]


@posix
def test_saving_and_downloads_killed_anywhere_lose_and_leave_nothing(tmp_path: Path) -> None:
    """`python tests/kills_saving.py` does a thousand of these."""
    import kills_saving

    for report in (
        kills_saving.run_sets(6, 1, tmp_path / "sets"),
        kills_saving.run_downloads(3, 1, tmp_path / "files"),
    ):
        assert report.kills >= 3 and (report.lost, report.left) == (0, 0)


@posix
def test_a_benchmark_killed_anywhere_goes_on_to_the_same_files(tmp_path: Path, mini_weights: None) -> None:
    """`python tests/kills_jobs.py` does more of these, of priors and Train LoRA too."""
    import kills_jobs

    report = kills_jobs.run("benchmark", 1, 1, tmp_path)
    assert report.kills and (report.lost, report.left) == (0, 0)


@pytest.mark.parametrize("what", ["bit", "cut", "more", "swapped", "zeros"])
def test_a_damaged_set_is_read_or_refused_in_a_sentence(tmp_path: Path, what: str) -> None:
    folder = write_subjects(coloured("red", "blue", photos=1), tmp_path / "set")
    files = sorted(folder.iterdir())
    original = {path: path.read_bytes() for path in files}
    rng, refused = random.Random(what), 0
    for number in range(60):
        path, other = files[number % len(files)], files[(number + 1) % len(files)]
        data = bytearray(original[path])
        place = rng.randrange(len(data))
        if what == "bit":
            data[place] ^= 1 << rng.randrange(8)
        elif what == "cut":
            del data[place:]
        elif what == "more":
            data[place:place] = rng.randbytes(rng.randint(1, 50))
        elif what == "swapped":
            data = bytearray(original[other])
        else:
            data[place : place + 200] = bytes(len(data[place : place + 200]))
        path.write_bytes(data)
        try:
            read_subjects(folder)
        except MudiError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).endswith((".", "}}")), error
        path.write_bytes(original[path])
    assert refused > 5 and read_subjects(folder).tokens == ("red", "blue")
