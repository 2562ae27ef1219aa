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
from ..train.config import SETTINGS
from ..types import MudiError
from .kinds import BadKind, of_their_kinds
from .spec import BadSpec, Judges, Spec

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
    for name in ("base", "combos", "methods", "prompts", "seeds"):
        if name not in given:
            raise BadSpec(f"{path} does not say '{name}'.")
    here, family = path.absolute().parent, usual(given["base"])
    judging = Judges(threshold=family.threshold, cut_out=family.cut_out)
    if family.eye is not None:
        judging = replace(judging, detector=family.eye, embedder=family.eye)
    try:
        values = of_their_kinds(
            {key: value for key, value in given.items() if key != "judges"}, get_type_hints(Spec), str(path)
        )
        judges = of_their_kinds(given.get("judges", {}), get_type_hints(Judges), f"{path}, [judges]")
        train = of_their_kinds(given.get("train", {}), SETTINGS, f"{path}, [train]", _NOT_TRAIN)
        generate = of_their_kinds(
            given.get("generate", {}), get_type_hints(GenerateConfig), f"{path}, [generate]", _NOT_GENERATE
        )
        residual = of_their_kinds(given.get("residual", {}), SETTINGS, f"{path}, [residual]", _NOT_TRAIN)
        fuse = of_their_kinds(given.get("fuse", {}), get_type_hints(FuseConfig), f"{path}, [fuse]", _NOT_FUSE)
    except BadKind as error:
        raise BadSpec(str(error)) from error
    combos = {name: str(here / where) if isinstance(where, str) else where for name, where in values["combos"].items()}
    made = {"combos": combos, "judges": replace(judging, **judges), "train": train, "generate": generate, "fuse": fuse}
    made["residual"] = residual
    spec = Spec(
        **{
            "name": path.stem,
            **values,
            "base": values["base"] if values["base"] in BUILT_IN else str(here / values["base"]),
            **made,
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
        table = "fuse"
        FuseConfig(**fuse)
    except MudiError as error:
        raise BadSpec(f"{path}, [{table}]: {error}") from error
    return spec
