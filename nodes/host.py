"""The running ComfyUI: its device, its progress bar and Cancel, its model folders, its input and output folders."""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from ..mudi_core import eyes as backends
from ..mudi_core.bases.families import EMBEDDED
from ..mudi_core.eyes import weights
from ..mudi_core.names import BadName, plain_name
from ..mudi_core.progress import Progress, Update
from ..mudi_core.subjects.metadata import CLASS_METADATA
from ..mudi_core.subjects.photos import OTHER_PICTURES, SUFFIXES
from ..mudi_core.subjects.saving import METADATA, take_up_all
from ..mudi_core.types import MudiError, readable
from . import drawing
from .listing import can_be_chosen, entries, is_file, is_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

MINI = "embedded (drawn toys only)"
"""The choice of every model widget that needs no download, and knows the drawings of Mini Photos only."""
_OLD_MINI = "mini (embedded)"
"""What older workflows have saved in its place."""
NO_LORA = "none"
"""The choice of a LoRA widget that needs none."""
PREVIEW_SIDE = 512
"""Pixels of the picture beside a progress bar."""
PREVIEW_SECONDS = 1.0
"""So often that picture is drawn at most."""
_ALIKE = str.maketrans("<>&", "‹›＆")
_LINKS = re.compile(r"://|www\.|\[\[|__LNK", re.IGNORECASE)
"""What frontends make links of: addresses, [[label|address]], and the place they keep for one."""
_LINK_ALIKE = str.maketrans({"/": "∕", ".": "․", "[": "⟦", "_": "＿"})
_UNSHOWN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but line breaks, and those that turn the direction of what follows."""


class ReadOnly(MudiError):
    """A folder of ComfyUI that cannot be written."""


class BadChoice(MudiError):
    """A choice that a widget does not have: ComfyUI lets any pass in a prompt that was written by hand."""


class MissingModel(MudiError):
    """A model choice that lies in none of ComfyUI's folders any more."""


class MissingLora(MudiError):
    """A LoRA that lies in none of ComfyUI's folders any more."""


def schema(**settings: Any) -> io.Schema:
    """An `io.Schema`; settings that this ComfyUI does not know yet, such as search_aliases, are left out."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in settings.items() if name in known})


def check_choice(what: str, choice: str, choices: Sequence[str]) -> None:
    """Raises `BadChoice` for one that is not among a widget's."""
    if choice not in choices:
        raise BadChoice(f"There is no {what} {choice!r}. Choose one of: {', '.join(choices)}.")


def device() -> torch.device:
    """Where ComfyUI computes."""
    found: torch.device = comfy.model_management.get_torch_device()
    return found


def progress(preview: Callable[[], Tensor] | None = None) -> Progress:
    """A `Progress` that drives the node's progress bar and its line of text, and obeys Cancel at every update.

    ``preview`` draws the picture ``[h, w, 3]`` beside the bar; it is asked now and then. Each update raises
    `InterruptProcessingException` when the user has pressed Cancel.
    """

    @contextmanager
    def stage(what: str) -> Iterator[Update]:
        bar = comfy.utils.ProgressBar(1)
        drawn = 0.0

        def update(done: int, total: int, words: str = "") -> None:
            nonlocal drawn
            comfy.model_management.throw_exception_if_processing_interrupted()
            shown = None
            if preview is not None and time.monotonic() - drawn > PREVIEW_SECONDS:
                drawn = time.monotonic()
                shown = ("JPEG", drawing.pil(preview()), PREVIEW_SIDE)
            bar.update_absolute(done, total, shown)
            say(f"{what}: {done} / {total}{', ' + words if words else ''}")

        comfy.model_management.throw_exception_if_processing_interrupted()
        yield update

    def begin(words: str) -> AbstractContextManager[Update]:
        return stage(words)

    return begin


def plain(words: str, links: bool = False) -> str:
    """A text that no page takes for markup, with look-alikes of what begins tags, entities and, unless kept, links.

    ComfyUI's frontends set what a node says as HTML, some without sanitizing it, and names come from files and from
    others. Every text of ours goes to the page through here: `say`, `preview`, and in `ranges.checked` each refusal and
    error, in which no frontend makes links.
    """
    words = _UNSHOWN.sub("\ufffd", words).translate(_ALIKE)
    return words if links else _LINKS.sub(lambda match: match[0].translate(_LINK_ALIKE), words)


def say(words: str) -> None:
    """A line of text on the node that runs, where there is a server to show it."""
    context, server = get_executing_context(), sys.modules.get("server")
    instance = getattr(server.PromptServer, "instance", None) if server is not None else None
    if context is not None and instance is not None:
        instance.send_progress_text(plain(words), context.node_id)


def preview(images: Tensor | Sequence[Tensor], cls: type[io.ComfyNode], text: str = "") -> dict[str, Any]:
    """What a node shows of itself: pictures ``[h, w, 3]`` of any sizes, and a text in the place of its progress."""
    if text:
        say(text)
    shown: dict[str, Any] = ui.PreviewImage(images, cls=cls).as_dict() if len(images) else {}
    return {**shown, **(ui.PreviewText(plain(text)).as_dict() if text else {})}


for _, _eye in backends.EYES:
    if _eye.folder is not None:
        folder_paths.add_model_folder_path(_eye.folder, str(Path(folder_paths.models_dir) / _eye.folder))


class _Choices(list[str]):
    """Choices among which ComfyUI, when it checks a prompt, also finds the embedded model's older name."""

    def __contains__(self, choice: object) -> bool:
        return super().__contains__(MINI if choice == _OLD_MINI else choice)


def models(role: backends.Role) -> list[str]:
    """The choices of a model widget: those with a known link, what else lies in their folders, the embedded model."""
    known = {name: eye for name, eye in backends.eyes(role).items() if eye.folder is not None}
    choices = [eye.weights or name for name, eye in known.items()]
    own = [name for eye in known.values() for name in _local_models(eye)]
    return _Choices([*dict.fromkeys([*choices, *own]), MINI])


def _model_folders(eye: backends.Eye) -> list[Path]:
    return [] if eye.folder is None else [Path(folder) for folder in folder_paths.get_folder_paths(eye.folder)]


def _local_models(eye: backends.Eye) -> dict[str, Path]:
    """Models that the user put there, by file or folder name: one SAM a file, one of the others a folder."""
    if eye.weights is None:
        return {}
    alike = [weights.TABLE[one.weights] for _, one in backends.EYES if one.folder == eye.folder and one.weights]
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
"""The last model of each role, kept for the next node."""


def detector(choice: str, download: bool = False) -> backends.Detector:
    """The detector of a choice of ``models("detector")``, ready to use. Raises `MissingWeights`, `MissingModel`."""
    return _load("detector", choice, download, backends.load_detector)


def segmenter(choice: str, download: bool = False) -> backends.Segmenter:
    """The segmenter of a choice of ``models("segmenter")``."""
    return _load("segmenter", choice, download, backends.load_segmenter)


def embedder(choice: str, download: bool = False) -> backends.Embedder:
    """The embedder of a choice of ``models("embedder")``."""
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
        if device().type != "cpu" and name != EMBEDDED:
            offload = comfy.model_management.unet_offload_device()
            patcher = comfy.model_patcher.ModelPatcher(backend.model, device(), offload)
        kept = _loaded[role] = _Loaded(choice, backend, patcher)
    if kept.patcher is not None:
        comfy.model_management.load_models_gpu([kept.patcher])
    ready: Backend = kept.backend
    return ready


def _find(role: backends.Role, choice: str, download: bool) -> tuple[str, Path | None]:
    """The library's name of the backend, and where its weights lie."""
    if choice in (MINI, _OLD_MINI):
        return EMBEDDED, None
    known = {name: eye for name, eye in backends.eyes(role).items() if eye.folder is not None}
    for name, eye in known.items():
        if choice == eye.weights:
            with progress()(f"downloading {choice}") as update:
                locate = weights.locate
                return name, locate(choice, _model_folders(eye), download, lambda done, total: update(done, total))
        if eye.weights is None and choice == name:
            return name, _model_folders(eye)[0]
        if choice in (local := _local_models(eye)):
            return name, local[choice]
    places = dict.fromkeys(str(folder) for eye in known.values() for folder in _model_folders(eye))
    raise MissingModel(
        f"There is no model '{choice}' in {' or '.join(places)}. Choose another one in the node, or put it there."
    )


def input_folder(name: str, what: str) -> Path:
    """Where the folder of this name lies, or will lie, in ComfyUI's input folder; no link in it leads out of there.

    Raises `BadName`.
    """
    folder = input_root() / plain_name(name, what)
    _check_links(folder, input_root())
    return folder


def input_root() -> Path:
    """ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory())


def _check_links(folder: Path, root: Path) -> None:
    """Raises `BadName` for a link out of ``root``, also behind links that lead inside; each folder is seen once."""
    inside = os.path.realpath(root)
    if os.path.realpath(folder) == inside:
        raise BadName(f"{folder} is a link to {root} itself. Remove it, and choose a folder of its own.")
    seen: set[str] = set()

    def check(path: str) -> None:
        if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise BadName(f"{readable(path)} is a link that leads out of {root}. Put there what it leads to.")

    check(str(folder))
    for place, folders, files in os.walk(folder, followlinks=True):
        for one in [*folders, *files]:
            check(os.path.join(place, one))
        seen.add(os.path.realpath(place))
        folders[:] = [one for one in folders if os.path.realpath(os.path.join(place, one)) not in seen]


def datasets() -> list[str]:
    """The names of the datasets in ComfyUI's input folder, priors of the official code among them."""
    take_up_all(input_root())
    return [one.name for one in _input_folders() if is_file(one / METADATA) or is_file(one / CLASS_METADATA)]


def photo_folders() -> list[str]:
    """The names of the folders of pictures in ComfyUI's input folder; datasets are none."""
    return [
        folder.name
        for folder in _input_folders()
        if not is_file(folder / METADATA) and any(_is_photo(path) for path in entries(folder, shown=False))
    ]


def _is_photo(path: Path) -> bool:
    """Whether a file is a photo, or one of a kind that Load Photos names as not readable; masks are none."""
    return path.suffix.lower() in (*SUFFIXES, *OTHER_PICTURES) and not path.name.lower().startswith("mask_")


def _input_folders() -> list[Path]:
    every = entries(input_root())
    return [path for path in every if not path.name.startswith(".") and is_folder(path)]


def numbers(folder: Path, name: str, suffix: str) -> list[int]:
    """Those of the files "<name>_00001<suffix>" of a folder.

    Those with a step behind the number, "<name>_00001-000200<suffix>", count too.
    """
    pattern = re.compile(re.escape(name) + r"_(\d{1,9})(-\d+)?" + re.escape(suffix), re.IGNORECASE)
    return [int(match[1]) for path in entries(folder) if (match := pattern.fullmatch(path.name))]


def numbered(folder: Path, name: str, suffix: str, reserved: Sequence[int] = ()) -> Path:
    """The next free "<name>_00001<suffix>" of a folder, after the highest that is there or ``reserved``."""
    return folder / f"{name}_{max([*numbers(folder, name, suffix), *reserved], default=0) + 1:05d}{suffix}"


def loras() -> list[str]:
    """The choices of a LoRA widget."""
    try:
        found = folder_paths.get_filename_list("loras")
    except (OSError, ValueError) as error:  # ComfyUI walks every folder below it
        log.warning("the LoRAs cannot be listed (%s)", error)
        found = []
    return [NO_LORA, *filter(can_be_chosen, found)]


def find_lora(choice: str | None) -> Path | None:
    """Where the LoRA of a choice of `loras` lies; None for none, and for one that is gone."""
    path = None if choice in (None, NO_LORA) else folder_paths.get_full_path("loras", choice)
    return None if path is None else Path(path)


def newer_lora(choice: str | None) -> str | None:
    """The choice with the highest number of the same name, where it is higher: "cats_00003.safetensors"."""
    path = find_lora(choice)
    match = path and re.fullmatch(r"(.+)_(\d{5,9})((-\d+|-best)?)\.safetensors", path.name)
    if path is None or choice is None or not match:
        return None
    done = re.compile(re.escape(match[1]) + r"_(\d{5,9})\.safetensors", re.IGNORECASE)
    numbered = {int(found[1]): other for other in entries(path.parent) if (found := done.fullmatch(other.name))}
    if max(numbered, default=0) <= int(match[2]):
        return None
    return str(PurePath(choice).with_name(numbered[max(numbered)].name))


def lora(choice: str | None) -> Path | None:
    """Where the LoRA of a choice of `loras` lies. Raises `MissingLora`."""
    if choice in (None, NO_LORA):
        return None
    path = find_lora(choice)
    if path is None:
        raise MissingLora(
            f"There is no LoRA {choice!r} in ComfyUI's models/loras. Choose another one, or put it there."
        )
    return path


def cache_folder() -> Path:
    """Where things are kept that can be made again: in ComfyUI's user folder, which outlives a restart."""
    return Path(folder_paths.get_user_directory()) / "__mudi"


def loras_folder() -> Path:
    """Where new LoRAs go: ComfyUI's first folder of them. Raises `ReadOnly` before hours of training, not after."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ReadOnly(f"{folder} cannot be written: {error.strerror or error}. Make it writable.") from error
    return folder
