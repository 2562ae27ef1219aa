"""What training images and prompts say of the subjects, in the language that a base model knows.

A style is a way to write captions: "sentence" is the paper's; "tags" is that of anime models, "2girls, olis, hta";
"FLUX (official)" is what the official code writes for FLUX, where no negative prompt can take the look of a collage
away. A template of the user's own replaces a style's text for compositions, not its way to name and count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..types import LONGEST_CAPTION, MudiError, listed
from .counting import PLAIN, count_tags

Name = tuple[str, str]
"""Token and class noun of a subject; the token is "" for somebody without a name."""

SENTENCE, TAGS = "sentence", "tags"
FIELDS = ("subjects", "classes", "count", "background")
"""What a template may have in braces: names, class nouns, how many, and the colour of the canvas."""
_FIELD = re.compile(r"\{([^{}]*)\}")
_COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "grey": (0.5, 0.5, 0.5),
    "red": (0.9, 0.1, 0.1),
    "orange": (1.0, 0.55, 0.1),
    "yellow": (1.0, 0.95, 0.2),
    "green": (0.2, 0.7, 0.2),
    "aqua": (0.2, 0.9, 0.9),
    "blue": (0.15, 0.3, 0.9),
    "purple": (0.55, 0.2, 0.75),
    "pink": (1.0, 0.6, 0.8),
    "brown": (0.5, 0.3, 0.15),
}
"""The colours that have a tag "... background", RGB, 0..1."""
_ARTICLES = ("a", "an", "the")
_LONGEST_TAG = 4
"""Most words of a tag, such as "hand on own hip"."""


class BadTemplate(MudiError):
    """A caption template that names nobody, or with something unknown in braces."""


@dataclass(frozen=True)
class Style:
    """A way to write captions: templates with `FIELDS`."""

    composition: str
    """For Seg-Mix."""
    halves: str
    """For Cut-Mix, whose pictures have the photos' backgrounds."""
    photo: str
    prior: str
    """For a prior photo, which has no name."""
    article: str = "a "
    """Before each name in a composition."""


STYLES: dict[str, Style] = {
    SENTENCE: Style(
        composition="a photo of {subjects}, simple background.",
        halves="a photo of {subjects}.",
        photo="a photo of {subjects}",
        prior="A photo of {classes}, simple background, full body shot.",
    ),
    TAGS: Style(
        composition="{count}, {subjects}, simple background, {background} background",
        halves="{count}, {subjects}",
        photo="{count}, {subjects}",
        prior="{count}, {classes}, full body, simple background",
    ),
    "FLUX (official)": Style(
        composition="a close out photo of {subjects}, {background} simple background, pasted, sticker, unnatural, "
        "glued, clip-art, attached, collage, low quality.",
        halves="a photo of {subjects}.",
        photo="a photo of {subjects}",
        prior="A photo of {classes}, simple background, full body shot.",
        article="a small ",
    ),
}
"""The styles by the names that users choose and LoRA files have."""


def check_fields(template: str) -> None:
    """Raise `BadTemplate` for a template with something in braces that is none of `FIELDS`."""
    strange = [f"{{{name}}}" for name in _FIELD.findall(template) if name not in FIELDS]
    strange += re.findall("[{}]", _FIELD.sub("", template))
    if strange or len(template) > LONGEST_CAPTION:
        what = f"it has '{strange[0]}'" if strange else f"it has more than {LONGEST_CAPTION} letters"
        allowed = listed([f"{{{name}}}" for name in FIELDS])
        raise BadTemplate(f"The caption {template[:80]!r} cannot be used: in braces it may have {allowed}, but {what}.")


def check_template(template: str) -> None:
    """Raise `BadTemplate` for a template that cannot be the caption of compositions."""
    check_fields(template)
    if "{subjects}" not in template:
        raise BadTemplate(
            f"The caption {template[:80]!r} names nobody, so training would not learn whom it shows. Write "
            "{subjects} where the names go."
        )


def composition(
    style: str,
    names: Sequence[Name],
    background: tuple[float, float, float],
    template: str = "",
    *,
    prior: bool = False,
    halves: bool = False,
) -> str:
    """Return the caption of a composition of these subjects on a canvas of this colour, RGB, 0..1.

    ``template``: the user's own, or "". ``prior``: the names are unknown to the model, so only class nouns are said.
    ``halves``: the composition is Cut-Mix's.
    """
    own = STYLES[style]
    template = template or (own.halves if halves else own.composition)
    if prior:
        template = template.replace("{subjects}", "{classes}")
    return _filled(template, style, names, background_word(background), own.article)


def of_photo(style: str, name: Name, *, prior: bool = False) -> str:
    """Return the caption of a photo that has none of its own."""
    own = STYLES[style]
    return _filled(own.prior if prior else own.photo, style, [name], background_word((1.0, 1.0, 1.0)), "")


def _filled(template: str, style: str, names: Sequence[Name], background: str, article: str) -> str:
    nouns = [noun for _, noun in names]
    if style == TAGS:
        values = {
            "subjects": ", ".join(tag_of(name) for name in names),
            "classes": ", ".join(dict.fromkeys(noun for noun in nouns if noun.lower() not in PLAIN)),
            "count": ", ".join(count_tags(nouns)),
        }
    else:
        values = {
            "subjects": listed([f"{article}{f'{token} {noun}'.strip()}" for token, noun in names]),
            "classes": listed([f"{article}{noun}" for noun in nouns]),
            "count": str(len(names)),
        }
    filled = _FIELD.sub(lambda match: {**values, "background": background}[match[1]], template)
    return ", ".join(filter(None, map(str.strip, filled.split(",")))) if style == TAGS else filled


def tag_of(name: Name) -> str:
    """Return the tag of a subject: "olis" for a girl, whom the count names already, "olis corgi" for a corgi."""
    token, noun = name
    return token if noun.lower() in PLAIN else f"{token} {noun}".strip()


def background_word(colour: tuple[float, float, float]) -> str:
    """Return the name of a canvas colour, RGB, 0..1: the nearest that tags have."""
    return min(_COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(_COLOURS[name], colour, strict=True)))


def is_tags(caption: str) -> bool:
    """Return whether a caption is a list of tags, and not a sentence with commas."""
    tags = [tag.split() for tag in caption.split(",") if tag.strip()]
    short = all(len(tag) <= _LONGEST_TAG and tag[0].lower() not in _ARTICLES for tag in tags)
    return len(tags) > 1 and short and not caption.rstrip().endswith((".", "!", "?"))


def says(caption: str, token: str) -> bool:
    """Return whether a caption has a token as a word of its own; text encoders do not see case."""
    return _word(token, caption) is not None


def _word(word: str, text: str) -> re.Match[str] | None:
    """Find a word of its own; in scripts without spaces, anywhere."""
    alone = rf"(?<!\w){re.escape(word)}(?!\w)" if word.isascii() else re.escape(word)
    return re.search(alone, text, re.IGNORECASE)


def with_name(caption: str, name: Name) -> str:
    """Return a caption that says the token: the same one if it does already, in the user's own order.

    Other tags get the name first and keep their order. In a sentence the token goes before the class noun, or the whole
    name to its beginning.
    """
    token, noun = name
    if says(caption, token):
        return caption
    if is_tags(caption):
        return f"{tag_of(name)}, {caption}"
    if found := _word(noun, caption):
        return f"{caption[: found.start()]}{token} {caption[found.start() :]}"
    return f"{token} {noun}, {caption}"
