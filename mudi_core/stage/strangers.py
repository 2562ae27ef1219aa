"""Others in the compositions of a subject that is trained alone: figures without a name, called by their class nouns.

A LoRA whose training images all show its subject alone has never heard that somebody may stand beside it, and two such
LoRAs mix in one picture. Composed with strangers, its token learns to be one figure among others.
"""

from __future__ import annotations

from dataclasses import replace

from ..types import MAX_SUBJECTS, BadSubject, Subject, SubjectSet


def strangers_of(*sets: SubjectSet) -> SubjectSet:
    """Return the strangers of some sets as one, under tokens that mean nothing; those of one class noun become one.

    Raise `BadSubject` for more than eleven classes.
    """
    classes: dict[str, list[Subject]] = {}
    for one in (one for each in sets for one in each):
        classes.setdefault(one.class_noun, []).append(one)
    return SubjectSet(
        tuple(
            Subject(
                f"stranger{number}",
                noun,
                tuple(photo for one in own for photo in one.photos),
                tuple(mask for one in own for mask in one.masks),
            )
            for number, (noun, own) in enumerate(classes.items(), start=1)
        )
    )


def with_strangers(subjects: SubjectSet, strangers: SubjectSet) -> tuple[SubjectSet, frozenset[str]]:
    """Return the subjects and the strangers as one set, and the tokens of the strangers in it, which mean nothing.

    Raise `BadSubject` for more than eleven together.
    """
    strangers = strangers_of(strangers)
    if len(subjects) + len(strangers) > MAX_SUBJECTS:
        raise BadSubject(
            f"There are {len(subjects)} subjects and strangers of {len(strangers)} classes, more than {MAX_SUBJECTS} "
            "together. Leave out some classes of strangers."
        )
    free = (f"stranger{number}" for number in range(1, 2 * MAX_SUBJECTS))
    tokens = [token for token in free if token not in subjects.tokens]
    found = [replace(one, token=token) for one, token in zip(strangers, tokens, strict=False)]
    return SubjectSet((*subjects.subjects, *found)), frozenset(one.token for one in found)
