"""What is worn in a MODEL's attention: its layers, the places and words of subjects, and the patches themselves."""

from __future__ import annotations

from .joint import sees_jointly, with_prompts
from .places import Places, place_inputs, places
from .words import tokens_of_each, word_tokens
from .worn import with_part

__all__ = [
    "Places",
    "place_inputs",
    "places",
    "sees_jointly",
    "tokens_of_each",
    "with_part",
    "with_prompts",
    "word_tokens",
]
