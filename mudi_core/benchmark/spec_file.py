"""A benchmark's spec as a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from ..bases.families import BUILT_IN, usual
from ..files import NotText, read_text
from ..jobs.fusion import FuseConfig
from ..jobs.generate import GenerateConfig
from ..toy.pairs import Cast
from ..train.config import SETTINGS
from ..types import MudiError
from .groups import BadGroup, Casts, Group, Made, concepts, made
from .judges import BadSpec, Judges
from .kinds import BadKind, of_kind, of_their_kinds
from .spec import Spec

_MADE = ("own",)
_RULES = ("groups", "sorts", "concepts", "casts")
"""Keys of the file that make combos."""
_NOT_TRAIN = ("method", "seed", "layout")
_NOT_FUSE = ("method", "seed")
_NOT_GENERATE = ("prompt", "count", "seed", "batch_size", "layout", "places", "arrangement", "poses")
"""Settings that a spec may not set, since methods and cells decide them."""


def read_spec(path: Path, pairs_seed: int | None = None) -> Spec:
    """Read a spec from a TOML file; relative folders are relative to the file. Raise `BadSpec`.

    ``pairs_seed`` replaces the spec's.
    """
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        given = toml.loads(read_text(path))
    except NotText as error:
        raise BadSpec(str(error)) from error
    except OSError as error:
        raise BadSpec(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise BadSpec(f"{path} is not TOML: {error}.") from error
    return _spec(path, given if pairs_seed is None else {**given, "pairs_seed": pairs_seed})


def _spec(path: Path, given: Mapping[str, Any]) -> Spec:
    by_rule = any(name in given for name in _RULES)
    for name in ("base", "combos", "methods", "prompts", "seeds"):
        if name not in given and not (by_rule and name in ("combos", "prompts")):
            raise BadSpec(f"{path} does not say '{name}'.")
    here, family = path.absolute().parent, usual(given["base"])
    judging = Judges(threshold=family.threshold, cut_out=family.cut_out)
    if family.eye is not None:
        judging = replace(judging, detector=family.eye, embedder=family.eye)
    try:
        rules, casts = _by_rule(given, here, path), _casts(given, path)
        values = of_their_kinds(
            {key: value for key, value in given.items() if key not in ("judges", *_RULES)},
            get_type_hints(Spec),
            str(path),
            _MADE,
        )
        judges = of_their_kinds(given.get("judges", {}), get_type_hints(Judges), f"{path}, [judges]")
        train = of_their_kinds(given.get("train", {}), SETTINGS, f"{path}, [train]", _NOT_TRAIN)
        generate = of_their_kinds(
            given.get("generate", {}), get_type_hints(GenerateConfig), f"{path}, [generate]", _NOT_GENERATE
        )
        residual = of_their_kinds(given.get("residual", {}), SETTINGS, f"{path}, [residual]", _NOT_TRAIN)
        decouple = of_their_kinds(given.get("decouple", {}), SETTINGS, f"{path}, [decouple]", _NOT_TRAIN)
        fuse = of_their_kinds(given.get("fuse", {}), get_type_hints(FuseConfig), f"{path}, [fuse]", _NOT_FUSE)
    except (BadKind, BadGroup) as error:
        raise BadSpec(str(error)) from error
    combos = {name: _placed(where, here) for name, where in values.get("combos", {}).items()}
    nouns = {str(here / where): noun for where, noun in values.get("nouns", {}).items()}
    tables = {"judges": replace(judging, **judges), "train": train, "generate": generate, "fuse": fuse}
    spec = Spec(
        **{
            "name": path.stem,
            "prompts": (),
            **values,
            "base": values["base"] if values["base"] in BUILT_IN else str(here / values["base"]),
            "combos": {**combos, **rules.combos, **casts},
            "nouns": {**nouns, **rules.nouns},
            "own": rules.own,
            "residual": residual,
            "decouple": decouple,
            **{name: str(here / values[name]) for name in ("adapter", "image_encoder") if values.get(name)},
            **tables,
        }
    )
    table = "train"
    try:
        for method in spec.methods:
            spec.train_config(method, 64)
        table = "generate"
        replace(GenerateConfig(""), **generate)
        table = "residual"
        spec.residual_config()
        table = "decouple"
        spec.decouple_config(64)
        table = "fuse"
        FuseConfig(**fuse)
    except MudiError as error:
        raise BadSpec(f"{path}, [{table}]: {error}") from error
    return spec


def _casts(given: Mapping[str, Any], path: Path) -> dict[str, Cast]:
    """Return the casts that the file's rules draw. Raise `BadKind` or `BadGroup`."""
    found: dict[str, Cast] = {}
    for title, table in of_kind(given.get("casts", {}), Mapping[str, Any], f"{path}, [casts]").items():
        values = of_their_kinds(table, get_type_hints(Casts), f"{path}, [casts.{title}]")
        for name in get_type_hints(Casts):
            if name not in values:
                raise BadKind(f"{path}, [casts.{title}] does not say '{name}'.")
        found |= Casts(**values).combos(title)
    return found


def _by_rule(given: Mapping[str, Any], here: Path, path: Path) -> Made:
    """Return the combos that the file's rules make. Raise `BadKind` or `BadGroup`."""
    if "concepts" in given:
        return concepts(here / of_kind(given["concepts"], str, f"{path} concepts"))
    tables = of_kind(given.get("groups", {}), Mapping[str, Any], f"{path}, [groups]")
    groups = {}
    for title, table in tables.items():
        values = of_their_kinds(table, get_type_hints(Group), f"{path}, [groups.{title}]")
        for name in ("of", "prompts"):
            if name not in values:
                raise BadKind(f"{path}, [groups.{title}] does not say '{name}'.")
        groups[title] = Group(**values)
    sorts = of_kind(given.get("sorts", {}), Mapping[str, Mapping[str, str]], f"{path}, [sorts]")
    return made(groups, sorts, here)


def _placed(where: str | int | tuple[str, ...], here: Path) -> str | int | tuple[str, ...]:
    """Return where a combo lies; relative paths are relative to the spec."""
    if isinstance(where, tuple):
        return tuple(str(here / one) for one in where)
    return str(here / where) if isinstance(where, str) else where
