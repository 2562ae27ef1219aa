"""What is worn in a MODEL's attention: its layers, the places and words of subjects, and the patches themselves."""

from __future__ import annotations

from .places import Places, place_inputs, places
from .words import tokens_of_each, word_tokens
from .worn import with_part

__all__ = ["Places", "place_inputs", "places", "tokens_of_each", "with_part", "word_tokens"]
