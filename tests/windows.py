"""What Windows refuses and Linux lets pass: to replace or rename a file that this process has open or mapped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HELD = Path("/proc/self/fd")


def is_held(path: Any) -> bool:
    """Whether this process has the file, or one in the folder, open or mapped."""
    real = os.path.realpath(os.fsdecode(path))
    if not os.path.exists(real):
        return False
    held = {line.split(maxsplit=5)[5].rstrip("\n") for line in open("/proc/self/maps") if line.count("/")}
    for file in HELD.iterdir():
        try:
            held.add(os.readlink(file))
        except OSError:  # that by which the folder itself is listed
            continue
    return any(one == real or (os.path.isdir(real) and one.startswith(real + os.sep)) for one in held)


@pytest.fixture(autouse=True)
def windows_rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every test fails that replaces a file which is open or mapped, or renames to a name that is taken.

    Gives what was refused. A file that is renamed may be open: that its writer keeps it claimed is not done on Windows.
    """
    refused: list[str] = []
    if not HELD.is_dir():
        yield refused
        return

    def wrapped(move: Callable[..., None], is_rename: bool) -> Callable[..., None]:
        def checked(source: Any, target: Any, **settings: Any) -> None:
            taken = is_rename and os.path.exists(target)
            if ".hypothesis" in Path(os.fsdecode(target)).parts:  # its own store, which is not ours to judge
                pass
            elif taken or is_held(target) or (os.path.isdir(source) and is_held(source)):
                refused.append(f"{source} -> {target}")
                raise PermissionError(13, "Permission denied as on Windows", os.fsdecode(target))
            move(source, target, **settings)

        return checked

    monkeypatch.setattr(os, "replace", wrapped(os.replace, False))
    monkeypatch.setattr(os, "rename", wrapped(os.rename, True))
    # Python 3.10's paths have taken them over when they were imported.
    monkeypatch.setattr(Path, "replace", lambda path, target: (os.replace(path, target), Path(target))[1])
    monkeypatch.setattr(Path, "rename", lambda path, target: (os.rename(path, target), Path(target))[1])
    yield refused
    assert not refused, "Windows refuses this"
