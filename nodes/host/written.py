"""Files that nodes have read or written: a node runs again when one has changed or is gone, even in the same graph.

ComfyUI keeps a node's result as long as its inputs are the same. `fingerprint_inputs` of the nodes tells it more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_written: dict[str, set[Path]] = {}
"""The files of a node's last results, by node and widgets."""
_gone: Counter[str] = Counter()


def state_of(paths: Iterable[Path | None]) -> list[tuple[int, ...]]:
    """Return values that change when one of these files is replaced, changed or removed."""
    return [_state(path) for path in paths]


def state_of_folder(folder: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Return the `state_of` every file in a folder and below it, with its path."""
    files = sorted(folder.rglob("*"))
    return [(str(path), state) for path, state in zip(files, state_of(files), strict=True)]


def remember(node_id: str, widgets: Mapping[str, Any], path: Path) -> None:
    """Remember that a node has written this file with these values of its widgets."""
    _written.setdefault(_key(node_id, widgets), set()).add(path)


def times_gone(node_id: str, widgets: Mapping[str, Any]) -> int:
    """Count how often a file was gone that a node had written with these widgets; each time it is made again."""
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
