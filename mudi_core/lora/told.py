"""What a LoRA file does to a model and what of it does nothing, in words."""

from __future__ import annotations

from collections.abc import Sequence

from .metadata import plain_base


def told_changed(network: int, text: int) -> str:
    """Return in words how many layers of the network, and of the text encoders, a LoRA changes."""
    words = [f"{network} layer{'' if network == 1 else 's'} of the network"]
    words += [f"{text} of the text encoders"] * (text > 0)
    return f"{' and '.join(words)} {'is' if (network, text) == (1, 0) else 'are'} changed"


def told_left(missing: Sequence[str], unread: Sequence[str]) -> list[str]:
    """Return in words what of a LoRA does nothing: layers that a model does not have, and tensors; [] for nothing."""
    left = []
    if missing:
        left.append(f"{len(missing)} {_are(missing)} not in the model, such as {shown(missing[0])}")
    if unread:
        tensors = f"{len(unread)} tensor{'s'[: len(unread) > 1]} {_are(unread)}"
        left.append(f"{tensors} not understood, such as {shown(unread[0])}")
    return left


def _are(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"


def shown(text: str) -> str:
    """Return a name from a file so that it can be shown."""
    return plain_base(text)[:100]
