"""What a node shows while it runs: its progress bar, its line of text and its pictures. Cancel is heard there."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context
from PIL import Image

from ...mudi_core.levels import to_bytes
from ...mudi_core.progress import Progress, Update

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

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
            hear_cancel()
            shown = None
            if preview is not None and time.monotonic() - drawn > PREVIEW_SECONDS:
                drawn = time.monotonic()
                shown = ("JPEG", Image.fromarray(to_bytes(preview())), PREVIEW_SIDE)
            bar.update_absolute(done, total, shown)
            say(f"{what}: {done} / {total}{', ' + words if words else ''}")

        hear_cancel()
        yield update

    def begin(words: str) -> AbstractContextManager[Update]:
        return stage(words)

    return begin


def hear_cancel() -> None:
    """Raise ComfyUI's `InterruptProcessingException` where the user has pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


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
