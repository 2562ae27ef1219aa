"""Layouts as people and language models write them: JSON with a place for each subject."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..boxes import Box
from ..types import MudiError

EXAMPLE = '{"olis": [0.05, 0.2, 0.45, 1.0], "hta": {"box": [0.5, 0.3, 0.95, 1.0], "mirror": true, "depth": 1}}'
LONGEST = 100_000
"""Most letters of a layout: far more than eleven subjects need."""


class BadPlaces(MudiError):
    """Places in a text that cannot be read."""


def photo_number(index: int) -> str:
    """Return how a user reads and types a photo index: "#1" is the first."""
    return f"#{index + 1}"


def photo_index(written: object) -> int | None:
    """Return the index that "#3" names, counted from 1; None when it names none.

    A plain 2 is the index itself, as in older workflows.
    """
    if isinstance(written, str):
        found = re.fullmatch("#([1-9][0-9]{0,8})", written)
        return int(found[1]) - 1 if found else None
    return written if type(written) is int and 0 <= written < 10**9 else None


@dataclass(frozen=True)
class Place:
    """Where one subject stands and, if given, how it is shown."""

    box: Box
    """Fractions of the canvas, 0..1."""
    photo: int | None = None
    """Index into the subject's photos."""
    mirror: bool | None = None
    rotation: float | None = None
    """Degrees clockwise."""
    depth: float = 0.0
    """Greater is further back."""


def parse_places(text: str) -> dict[str, Place]:
    """Read places by name from JSON: ``{"olis": [x0, y0, x1, y1], "hta": {"box": [...], "mirror": true}}``.

    Boxes are in 0..1 or, as language models prefer, in 0..1000. A code fence around the text is allowed. Beside its box
    a place may have photo (see `photo_index`), mirror, rotation and depth, as in `Place`. Raise `BadPlaces`, which says
    what is wrong and how it should look.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        unique_pairs: dict[str, object] = {}
        for name, value in pairs:
            if name in unique_pairs:
                raise BadPlaces(f"'{_short(name)}' is given twice. Give each subject one place.")
            unique_pairs[name] = value
        return unique_pairs

    if len(text) > LONGEST:
        raise BadPlaces(f"The layout is {len(text)} letters long; at most {LONGEST} are read.")
    try:
        layout = json.loads(_unfenced(text.removeprefix("\ufeff")), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadPlaces(f"The layout is not valid JSON ({_short(str(error))}). Write it like this: {EXAMPLE}") from None
    if not isinstance(layout, dict) or not layout:
        raise BadPlaces(f"Expected one place for each subject. Write them like this: {EXAMPLE}")
    places = {name: _place(name, written) for name, written in layout.items()}
    if any(number > 1000 for place in places.values() for number in place.box):
        raise BadPlaces(
            "These boxes look like pixels. Write them in 0..1, or in 0..1000, where 1000 is the whole width or height."
        )
    thousandths = any(number > 1 for place in places.values() for number in place.box)
    for name, place in places.items():
        x0, y0, x1, y1 = (number / 1000 if thousandths else number for number in place.box)
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise BadPlaces(
                f"The box of '{name}' should go from its top left to its bottom right corner, inside 0..1 or 0..1000; "
                f"got {list(place.box)}."
            )
        places[name] = Place((x0, y0, x1, y1), place.photo, place.mirror, place.rotation, place.depth)
    return places


def places_text(places: Mapping[str, Place]) -> str:
    """Write places as JSON that `parse_places` can read, one line for each."""
    lines = []
    for name, place in places.items():
        fields = {key: value for key, value in asdict(place).items() if value is not None and key != "box"}
        if place.photo is not None:
            fields["photo"] = photo_number(place.photo)
        lines.append(f"{json.dumps(name)}: {json.dumps({'box': [round(x, 4) for x in place.box], **fields})}")
    return "{" + ",\n ".join(lines) + "}"


def _unfenced(text: str) -> str:
    lines = text.strip().split("\n")
    fenced = len(lines) > 2 and lines[0].rstrip() in ("```", "```json") and lines[-1].strip() == "```"
    return "\n".join(lines[1:-1]) if fenced else text


def _place(name: str, written: Any) -> Place:
    """Return a place as written, before its box is scaled."""
    fields = dict(written) if isinstance(written, dict) else {"box": written}
    box = fields.pop("box", None)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(number) and number >= 0 for number in box):
        raise BadPlaces(f"The box of '{name}' should be four numbers [x0, y0, x1, y1] in 0..1 or 0..1000.")
    kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "photo": ('counted from 1, like "#1"', lambda value: photo_index(value) is not None),
        "mirror": ("true or false", lambda value: isinstance(value, bool)),
        "rotation": ("degrees, -360 to 360", lambda value: _is_number(value) and -360 <= value <= 360),
        "depth": ("a number", _is_number),
    }
    for key, value in fields.items():
        if key not in kinds:
            raise BadPlaces(
                f"'{name}' has '{_short(key)}', which is unknown. A place has a box and may have {', '.join(kinds)}."
            )
        wanted, is_right = kinds[key]
        if not is_right(value):
            raise BadPlaces(f"'{key}' of '{name}' should be {wanted}, not {_short(json.dumps(value))}.")
    if "photo" in fields:
        fields["photo"] = photo_index(fields["photo"])
    x0, y0, x1, y1 = map(float, box)
    return Place((x0, y0, x1, y1), **fields)


def _is_number(value: object) -> bool:
    # To Python a bool is an int, but it is no number here; the bound excludes infinities and huge integers.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e6 <= value <= 1e6


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:99] + "…"
