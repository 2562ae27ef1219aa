"""Check that the values of a TOML file have the types of a dataclass's fields, with errors in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..types import MudiError

LARGEST = 10**6
"""Largest whole number except seeds: larger ones make no sense, and most would fill the memory."""
LONGEST = 1000
"""Most letters of a text."""
_SEED = 2**63


class BadKind(MudiError):
    """A value of another type than its key needs."""


def of_their_kinds(given: object, wanted: Mapping[str, Any], where: str, fixed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values of a table as ``wanted`` says for each key, lists as tuples. ``fixed``: forbidden keys.

    Raise `BadKind` with ``where`` and the key.
    """
    kinds = {name: kind for name, kind in wanted.items() if name not in fixed}
    if not isinstance(given, Mapping):
        raise BadKind(f"{where} is {_words(given)}; it must be a table.")
    for name in given:
        if name not in kinds:
            raise BadKind(f"{where} has no '{name}'; it has: {', '.join(kinds)}.")
    return {name: of_kind(value, kinds[name], f"{where} {name}") for name, value in given.items()}


def of_kind(value: object, kind: Any, where: str) -> Any:
    """Return the value, of a list a tuple. Raise `BadKind` when it has another type."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        for part in parts:
            try:
                return of_kind(value, part, where)
            except BadKind:
                continue
    elif origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
    elif origin is tuple:
        every = parts[1:] == (...,)
        if isinstance(value, (list, tuple)) and (every or len(value) == len(parts)):
            return tuple(of_kind(one, parts[0], where) for one in value)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {key: of_kind(one, parts[1], f"{where}, '{key}'") for key, one in value.items()}
    elif _is_plain(value, kind, where):
        return float(value) if kind is float else value  # type: ignore[arg-type]
    raise BadKind(f"{where} is {_words(value)}; it must be {_wanted(kind)}.")


def _is_plain(value: object, kind: Any, where: str) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) <= LARGEST and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and abs(value) < (_SEED if where.endswith("seed") else LARGEST + 1)
    return kind is str and isinstance(value, str) and len(value) <= LONGEST and "\0" not in value


def _wanted(kind: Any) -> str:
    """Return a type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_wanted(part) for part in parts if part is not type(None))
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is tuple:
        many = "" if parts[1:] == (...,) else f" of {len(parts)}"
        return f"a list{many}, each {_wanted(parts[0])}"
    if isinstance(origin, type):
        return "a table" if parts[1] is Any else f"a table, each {_wanted(parts[1])}"
    plain = {int: f"a whole number up to {LARGEST}", float: f"a number up to {LARGEST}", bool: "true or false"}
    return plain.get(kind, f"a text of up to {LONGEST} letters")


def _words(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
