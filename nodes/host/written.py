"""What nodes have read and written: where that is another or gone, a node runs again although its graph is the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_written: dict[str, set[Path]] = {}
"""By node and widgets, the files that stand for its last results."""
_gone: Counter[str] = Counter()


def state_of(paths: Iterable[Path | None]) -> list[tuple[int, ...]]:
    """What changes when one of these files is replaced, changed or removed."""
    return [_state(path) for path in paths]


def state_of_folder(folder: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Return the same of every file in a folder and below it, with their paths."""
    files = sorted(folder.rglob("*"))
    return [(str(path), state) for path, state in zip(files, state_of(files), strict=True)]


def remember(node_id: str, widgets: Mapping[str, Any], path: Path) -> None:
    """That a node has written this with these widgets."""
    _written.setdefault(_key(node_id, widgets), set()).add(path)


def times_gone(node_id: str, widgets: Mapping[str, Any]) -> int:
    """How often something was gone that a node had written with these widgets: its result is then made again."""
    key = _key(node_id, widgets)
    gone = {path for path in _written.get(key, ()) if not path.exists()}
    if gone:
        _written[key] -= gone
        _gone[key] += 1
    return _gone[key]


def _key(node_id: str, widgets: Mapping[str, Any]) -> str:
    return node_id + json.dumps(dict(widgets), sort_keys=True, default=str)


def _state(path: Path | None) -> tuple[int, ...]:
    try:
        about = None if path is None else path.stat()
    except (OSError, ValueError):
        about = None
    return () if about is None else (about.st_mtime_ns, about.st_size, about.st_ino)
