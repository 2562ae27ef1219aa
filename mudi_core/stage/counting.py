"""Whom tags count: "2girls", "1boy, 1girl", "no humans", by the class nouns of the subjects.

The words are those of Danbooru, on whose tags most anime models were trained. Its counts are of girls, boys and others;
animals and things are never counted, and a picture of them alone is tagged "no humans". So "2animals" or "2dogs" would
be words that no model has seen. A noun that is in no list here may be anybody ("knight"): nothing is said of it, since
a wrong count teaches more wrongly than none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

PLAIN = {
    **dict.fromkeys(("girl", "woman", "lady", "female"), "girl"),
    **dict.fromkeys(("boy", "man", "guy", "male"), "boy"),
    **dict.fromkeys(("person", "human", "other"), "other"),
}
"""Class nouns that say no more than the count does."""
_GIRLS = (
    "schoolgirl catgirl foxgirl princess queen witch maid nun mother grandmother sister daughter aunt waitress actress "
    "heroine goddess sorceress priestess mermaid"
)
_BOYS = "schoolboy catboy prince king wizard monk father grandfather brother son uncle waiter actor hero god priest"
_OTHERS = "child kid baby toddler teenager adult"
_COUNTED = (
    PLAIN
    | dict.fromkeys(_GIRLS.split(), "girl")
    | dict.fromkeys(_BOYS.split(), "boy")
    | dict.fromkeys(_OTHERS.split(), "other")
)
_NEVER_COUNTED = frozenset(
    (
        "animal creature pet dog puppy cat kitten bird parrot owl duck duckling chicken penguin rabbit bunny "
        "hamster mouse rat squirrel fox wolf bear panda koala lion tiger leopard elephant monkey horse pony cow "
        "pig sheep goat deer otter raccoon hedgehog turtle tortoise frog lizard snake dragon dinosaur fish shark "
        "whale dolphin octopus crab bee butterfly corgi poodle beagle chihuahua dachshund husky pug bulldog "
        "retriever labrador shepherd terrier spaniel chow collie dalmatian pomeranian samoyed shiba dobermann "
        "doberman rottweiler schnauzer siamese persian sphynx toy plush plushie doll figurine statue robot mecha "
        "vehicle car truck bus train tractor bicycle motorcycle boat ship plane airplane bag backpack shoe boot "
        "sneaker hat cup mug teapot kettle bottle vase bowl can clock lamp chair sofa table guitar piano drum ball "
        "book candle flower plant cactus mushroom fruit cake food house building"
    ).split()
)
_ENDS_THE_NOUN = frozenset(("with", "in", "of", "on", "from", "wearing", "and", "who", "that"))
MOST = 5
"""More than this are "6+girls", which Danbooru always tags with "multiple girls", too."""


def count_tags(nouns: Sequence[str]) -> list[str]:
    """Return the tags that count subjects of these class nouns, such as ["1boy", "1girl"]; none where none is true."""
    heads = [_head(noun) for noun in nouns]
    counted = Counter(_COUNTED[head] for head in heads if head in _COUNTED)
    if heads and all(head in _NEVER_COUNTED for head in heads):
        return ["no humans"]
    return [tag for who in ("boy", "girl", "other") for tag in _counted(who, counted[who])]


def _counted(who: str, count: int) -> list[str]:
    if count > MOST:
        return [f"{MOST + 1}+{who}s", f"multiple {who}s"]
    return [f"{count}{who}{'s' if count > 1 else ''}"] if count else []


def _head(noun: str) -> str:
    """Return the word of a class noun that says what it is: "girl" of "silver-haired girl with a red scarf"."""
    head = ""
    for word in noun.lower().split():
        if word in _ENDS_THE_NOUN:
            break
        head = word.strip(",.;")
    return head.rsplit("-", 1)[-1]
