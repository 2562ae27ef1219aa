"""What a node shows while it runs: its progress bar, its line of text and its pictures. It obeys Cancel there."""

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
"""Least time between two such pictures."""
_ALIKE = str.maketrans("<>&", "‹›＆")
_LINKS = re.compile(r"://|www\.|\[\[|__LNK", re.IGNORECASE)
"""What frontends make links of: addresses, [[label|address]], and the place they keep for one."""
_LINK_ALIKE = str.maketrans({"/": "∕", ".": "․", "[": "⟦", "_": "＿"})
_UNSHOWN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but line breaks, and those that turn the direction of what follows."""


def progress(preview: Callable[[], Tensor] | None = None) -> Progress:
    """Return a `Progress` that moves the node's progress bar and its line of text, and obeys Cancel at every update.

    ``preview`` returns the picture ``[h, w, 3]`` beside the bar; it is called every `PREVIEW_SECONDS` at most. Each
    update raises `InterruptProcessingException` when the user has pressed Cancel.
    """

    @contextmanager
    def stage(what: str) -> Iterator[Update]:
        bar, drawn, last = comfy.utils.ProgressBar(1), 0.0, ""

        def update(done: int, total: int, words: str = "") -> None:
            nonlocal drawn, last
            hear_cancel()
            shown = None
            if preview is not None and time.monotonic() - drawn > PREVIEW_SECONDS:
                drawn = time.monotonic()
                shown = ("JPEG", Image.fromarray(to_bytes(preview())), PREVIEW_SIDE)
            bar.update_absolute(done, total, shown)
            last = f" at {done} / {total}"
            say(f"{what}: {done} / {total}{', ' + words if words else ''}")

        hear_cancel()
        try:
            yield update
        except BaseException:  # Cancel and errors alike: a line that still counts would look like work
            say(f"{what}: stopped{last}")
            raise

    def begin(words: str) -> AbstractContextManager[Update]:
        return stage(words)

    return begin


def hear_cancel() -> None:
    """Raise ComfyUI's `InterruptProcessingException` where the user has pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def plain(words: str, links: bool = False) -> str:
    """Return a text that no page reads as markup: look-alikes replace what begins tags, entities and links.

    ComfyUI's frontends show a node's text as HTML, some without sanitizing it, and names come from files of other
    people. Every text of MuDI goes to the page through here: `say`, `preview`, and in `ranges.checked` each refusal and
    error. ``links``: leave links as they are, for texts in which no frontend makes links.
    """
    words = _UNSHOWN.sub("\ufffd", words).translate(_ALIKE)
    return words if links else _LINKS.sub(lambda match: match[0].translate(_LINK_ALIKE), words)


def say(words: str) -> None:
    """Show a line of text on the node that runs, where there is a server."""
    context, server = get_executing_context(), sys.modules.get("server")
    instance = getattr(server.PromptServer, "instance", None) if server is not None else None
    if context is not None and instance is not None:
        instance.send_progress_text(plain(words), context.node_id)


def preview(images: Tensor | Sequence[Tensor], cls: type[io.ComfyNode], text: str = "") -> dict[str, Any]:
    """Return what a node shows: pictures ``[h, w, 3]`` of any sizes, and a text that replaces its progress."""
    if text:
        say(text)
    shown: dict[str, Any] = ui.PreviewImage(images, cls=cls).as_dict() if len(images) else {}
    return {**shown, **(ui.PreviewText(plain(text)).as_dict() if text else {})}
