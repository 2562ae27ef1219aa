"""The models that find, cut out and compare: the choices of their widgets, and loading them where ComfyUI computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import comfy.model_management
import comfy.model_patcher
import folder_paths

from ...mudi_core import eyes as backends
from ...mudi_core.bases.families import EMBEDDED
from ...mudi_core.eyes import pins, weights
from ...mudi_core.types import MudiError
from .listing import entries, is_file
from .page import progress

if TYPE_CHECKING:
    import torch

MINI = "embedded (drawn toys only)"
"""The choice of every model widget that needs no download, and knows the drawings of Mini Photos only."""
_OLD_MINI = "mini (embedded)"
"""What older workflows have saved in its place."""


class MissingModel(MudiError):
    """A model that is no longer in any of ComfyUI's folders."""


def device() -> torch.device:
    """Return the device that ComfyUI computes on."""
    found: torch.device = comfy.model_management.get_torch_device()
    return found


for _, _eye in backends.EYES:
    if _eye.folder is not None:
        folder_paths.add_model_folder_path(_eye.folder, str(Path(folder_paths.models_dir) / _eye.folder))


class _Choices(list[str]):
    """Choices that also accept the embedded model's older name when ComfyUI checks a prompt."""

    def __contains__(self, choice: object) -> bool:
        return super().__contains__(MINI if choice == _OLD_MINI else choice)


def eye_choices(role: backends.Role) -> list[str]:
    """Return the choices of a model widget: models with a known link, others in their folders, the embedded model."""
    known = {name: eye for name, eye in backends.eyes(role).items() if name != EMBEDDED and not eye.official}
    choices = [eye.weights or name for name, eye in known.items()]
    own = [name for eye in known.values() for name in _local_models(eye)]
    return _Choices([*dict.fromkeys([*choices, *own]), MINI])


def _model_folders(eye: backends.Eye) -> list[Path]:
    return [] if eye.folder is None else [Path(folder) for folder in folder_paths.get_folder_paths(eye.folder)]


def _local_models(eye: backends.Eye) -> dict[str, Path]:
    """Return the models that the user put there, by name: a SAM is a file, each other model is a folder."""
    if eye.weights is None:
        return {}
    alike = [pins.TABLE[one.weights] for _, one in backends.EYES if one.folder == eye.folder and one.weights]
    known = {one.folder for one in alike} | {file.name for one in alike for file in one.files}
    found: dict[str, Path] = {}
    for folder in _model_folders(eye):
        for path in entries(folder):
            if eye.role == "segmenter":
                is_model = path.suffix in (".pth", ".safetensors")
            else:
                is_model = is_file(path / "config.json") and is_file(path / "model.safetensors")
            if is_model and path.name not in known:
                found.setdefault(path.name, path)
    return found


Backend = TypeVar("Backend")


@dataclass(frozen=True)
class _Loaded(Generic[Backend]):
    choice: str
    backend: Backend
    patcher: Any
    """ComfyUI's handle on the model, by which it moves it out of the way; None on the CPU."""


_loaded: dict[str, _Loaded[Any]] = {}
"""The last model of each role, for the next node that needs it."""


def detector(choice: str, download: bool = False) -> backends.Detector:
    """Return the detector of one of the `eye_choices`, ready to use.

    ``download``: fetch it where it is missing. Raise `MissingWeights`, `MissingModel`.
    """
    return _load("detector", choice, download, backends.load_detector)


def segmenter(choice: str, download: bool = False) -> backends.Segmenter:
    """Return the segmenter of one of the `eye_choices`, as `detector` does."""
    return _load("segmenter", choice, download, backends.load_segmenter)


def embedder(choice: str, download: bool = False) -> backends.Embedder:
    """Return the embedder of one of the `eye_choices`, as `detector` does."""
    return _load("embedder", choice, download, backends.load_embedder)


def _load(
    role: backends.Role, choice: str, download: bool, load: Callable[[str, Path | None, torch.device], Backend]
) -> Backend:
    kept = _loaded.get(role)
    if kept is None or kept.choice != choice:
        _loaded.pop(role, None)
        name, path = _find(role, choice, download)
        backend: Any = load(name, path, device())
        patcher = None
        if device().type != "cpu" and name != EMBEDDED and hasattr(backend, "model"):  # those of OpenCV have none
            offload = comfy.model_management.unet_offload_device()
            patcher = comfy.model_patcher.ModelPatcher(backend.model, device(), offload)
        kept = _loaded[role] = _Loaded(choice, backend, patcher)
    if kept.patcher is not None:
        comfy.model_management.load_models_gpu([kept.patcher])
    ready: Backend = kept.backend
    return ready


def _find(role: backends.Role, choice: str, download: bool) -> tuple[str, Path | None]:
    """Return the library's name of the backend, and the path of its weights."""
    if choice in (MINI, _OLD_MINI):
        return EMBEDDED, None
    known = {name: eye for name, eye in backends.eyes(role).items() if name != EMBEDDED and not eye.official}
    for name, eye in known.items():
        if choice == eye.weights:
            with progress()(f"downloading {choice}") as update:
                locate = weights.locate
                return name, locate(choice, _model_folders(eye), download, lambda done, total: update(done, total))
        if eye.weights is None and choice == name:
            return name, next(iter(_model_folders(eye)), None)
        if choice in (local := _local_models(eye)):
            return name, local[choice]
    places = dict.fromkeys(str(folder) for eye in known.values() for folder in _model_folders(eye))
    raise MissingModel(
        f"There is no model '{choice}' in {' or '.join(places)}. Choose another one in the node, or put it there."
    )
