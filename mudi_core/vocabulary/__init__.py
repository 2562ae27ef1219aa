"""CLIP's vocabulary, which SD, SDXL, OWLv2 and the embedded family read captions by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOKENIZER = Path(__file__).parent / "tokenizer"
"""The folder that transformers reads it from."""


def tokenizer(pad_token: str = "<|endoftext|>", length: int = 77) -> CLIPTokenizer:
    """Return CLIP's own tokenizer; SDXL pads the first encoder with the end token and the second with "!"."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(TOKENIZER), pad_token=pad_token, model_max_length=length)
