"""CLIP's vocabulary, with which SD, SDXL, OWLv2 and the embedded family read captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOKENIZER = Path(__file__).parent / "tokenizer"
"""The folder from which transformers reads it."""


def tokenizer(pad_token: str = "<|endoftext|>", length: int = 77) -> CLIPTokenizer:
    """Return CLIP's own tokenizer for texts of ``length`` tokens; SDXL pads its second encoder with "!"."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(TOKENIZER), pad_token=pad_token, model_max_length=length)
