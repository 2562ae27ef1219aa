"""Read a transformers model from a folder of safetensors, or say what is wrong with the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bases.sdxl.parts import check_settings
from ..tensor_file import BadWeights, check_header
from .weights import MissingWeights, default_folder


def read_model(model_class: Any, path: Path, kind: str, **options: Any) -> Any:
    """Return a `model_class` in float32, read from ``config.json`` and ``model.safetensors`` in the folder `path`.

    ``kind``: the word for it in errors; ``options``: for the class. Raise `BadWeights` when there is no such folder, a
    file is damaged or the architecture is another. Nothing is downloaded and nothing is unpickled.
    """
    if not (path / "config.json").is_file():
        raise BadWeights(f"{path} is not {kind}: it has no config.json. Name the folder of model.safetensors.")
    check_settings(path / "config.json")
    for file in path.glob("*.safetensors"):
        check_header(file)
    try:
        model, report = model_class.from_pretrained(
            str(path), local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # a damaged or foreign file can raise any error
        raise BadWeights(f"{path} could not be read as {kind} ({_first_line(error)}). Download it again.") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise BadWeights(f"{path} is not {kind}: {len(missing)} of its tensors are missing, such as '{missing[0]}'.")
    return model.float()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def by_hand(folder: str, page: str) -> Path:
    """Return a model's folder below the default one, for weights of which no hash is known, so that none is fetched.

    Raise `MissingWeights` with the ``page`` to get them from.
    """
    path = default_folder() / folder
    if not (path / "config.json").is_file():
        raise MissingWeights(f"{path} is missing. Download config.json and model.safetensors from {page} into it.")
    return path
