"""Laws of turning photos into a subject: exactly one in each photo, or a sentence about the photo that differs."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from mudi_core.jobs.prepare import Wanted, prepare
from mudi_core.progress import silent
from mudi_core.subjects.find import (
    CoversAll,
    NotFound,
    SeveralFound,
    add_subject,
    find_boxes,
    name_doubts,
    segment_boxes,
    subject_from_masks,
    token_warning,
)
from mudi_core.types import MAX_SUBJECTS, BadSubject, Detections, Photo, Subject, SubjectSet

PHOTOS = tuple(Photo(f"photo_{i}.jpg", torch.zeros(60, 80, 3)) for i in range(3))
LEFT, RIGHT, WHOLE = [10, 10, 30, 40], [50, 10, 70, 40], [0, 0, 80, 59]


def finds(*boxes, confidence=(0.9, 0.6, 0.4), best=None):
    """A detector that finds these boxes in every picture, those above the threshold."""

    def detector(image, queries, threshold):
        kept = [(box, c) for box, c in zip(boxes, confidence, strict=False) if c >= threshold]
        xyxy = torch.tensor([box for box, _ in kept], dtype=torch.float32).reshape(-1, 4)
        scores = torch.tensor([c for _, c in kept])
        return Detections(xyxy, scores, (queries[0],) * len(kept), best if best is not None else 0.9)

    return detector


def fill_boxes(image, xyxy):
    masks = torch.zeros(len(xyxy), *image.shape[:2])
    for mask, (x0, y0, x1, y1) in zip(masks, xyxy.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return masks


def segment(detector, segmenter=fill_boxes, progress=silent, **settings):
    return prepare(PHOTOS, Wanted("olis", "corgi", "dog", **settings), detector, segmenter, progress)


def box_of(mask):
    ys, xs = (mask > 0.5).nonzero(as_tuple=True)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def test_what_is_found_once_in_each_photo_is_the_subject():
    steps = []
    subject = segment(finds(LEFT), progress=lambda words: nullcontext(lambda done, total: steps.append((done, total))))
    assert (subject.name, subject.photos) == ("olis corgi", PHOTOS)
    assert [box_of(mask) for mask in subject.masks] == [LEFT] * 3
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_nothing_found_names_the_photo_the_best_score_and_what_to_do():
    with pytest.raises(NotFound, match=r"photo_0.jpg: no 'dog'.*0\.12, threshold 0\.25.*[Ll]ower the threshold"):
        segment(finds(best=0.12))


def test_several_found_are_refused_or_the_best_is_taken():
    with pytest.raises(SeveralFound, match=r"photo_0.jpg.*2 times.*0\.90, 0\.60.*best"):
        segment(finds(LEFT, RIGHT))
    assert box_of(segment(finds(LEFT, RIGHT), which="best").masks[0]) == LEFT
    assert box_of(segment(finds(LEFT, RIGHT), threshold=0.7).masks[0]) == LEFT


def test_all_boxes_can_be_asked_for_each_with_a_mask_of_its_own():
    found = find_boxes(PHOTOS[0], "dog", finds(LEFT, RIGHT), which="all")
    assert found.xyxy.tolist() == [LEFT, RIGHT] and found.labels == ("dog", "dog")
    assert [box_of(mask) for mask in segment_boxes(PHOTOS[0], found.xyxy, fill_boxes)] == [LEFT, RIGHT]
    with pytest.raises(NotFound, match="photo_0.jpg: no 'dog'"):
        find_boxes(PHOTOS[0], "dog", finds(), which="all")


def test_a_box_that_covers_everything_is_refused_or_taken_for_want_of_a_better(caplog):
    with pytest.raises(CoversAll, match=r"photo_0.jpg: the box.*98%.*0\.90"):
        segment(finds(WHOLE))
    assert box_of(segment(finds(WHOLE, RIGHT), which="best").masks[0]) == RIGHT
    assert not caplog.text
    assert box_of(segment(finds(WHOLE), which="best").masks[0]) == WHOLE
    assert "photo_0.jpg: the box of 'dog' covers the whole photo" in caplog.text


def test_a_mask_that_covers_everything_is_refused_or_taken_with_a_warning(caplog):
    def everything(image, xyxy):
        return torch.ones(len(xyxy), *image.shape[:2])

    with pytest.raises(CoversAll, match="photo_0.jpg: the mask covers.*100%"):
        segment(finds(LEFT), everything)
    assert segment(finds(LEFT), everything, which="best").masks[0].min() == 1
    assert "photo_0.jpg: the mask covers" in caplog.text


@pytest.mark.parametrize("which", ["exactly one", "best"])
def test_an_empty_mask_is_never_taken(which):
    with pytest.raises(NotFound, match="photo_0.jpg: the mask is empty"):
        segment(finds(LEFT), lambda image, xyxy: torch.zeros(1, 60, 80), which=which)
    with pytest.raises(NotFound, match="photo_0.jpg: the mask is empty"):
        subject_from_masks(PHOTOS, [torch.zeros(60, 80)] * 3, "olis", "corgi", which)


def test_specks_go_and_large_pieces_and_holes_stay():
    mask = torch.zeros(60, 80)
    mask[10:40, 10:40] = 1  # 900 pixels
    mask[20:25, 20:25] = 0  # a hole, such as a cup's handle has
    mask[50:55, 50:55] = 1  # 25 pixels: a part of its own, such as a hand before a dark coat
    clean = mask.clone()
    mask[0, 0] = mask[59, 70] = 1
    assert torch.equal(segment(finds(LEFT), lambda image, xyxy: mask[None]).masks[0], clean)


def test_masks_by_hand_are_taken_as_they_are():
    masks = [torch.rand(60, 80) for _ in PHOTOS]
    subject = subject_from_masks(PHOTOS, masks, "olis", "corgi")
    assert all(torch.equal(one, other) for one, other in zip(subject.masks, masks, strict=True))


def test_a_mask_of_another_size_is_told_as_such_even_when_it_is_blank():
    for blank in (torch.zeros(64, 64), torch.ones(64, 64)):
        with pytest.raises(BadSubject, match="photo_0.jpg: the mask is 64x64 px"):
            subject_from_masks(PHOTOS, [blank] * 3, "olis", "corgi")


def test_an_inverted_or_blank_white_mask_is_refused(caplog):
    masks = [torch.ones(60, 80)] * 3
    with pytest.raises(CoversAll, match="photo_0.jpg.*inverted"):
        subject_from_masks(PHOTOS, masks, "olis", "corgi")
    assert len(subject_from_masks(PHOTOS, masks, "olis", "corgi", "best").masks) == 3


@pytest.mark.parametrize(
    "photos, sizes, token, noun, word",
    [
        (PHOTOS, [(60, 80)] * 2, "olis", "corgi", "3 photos but 2 masks"),
        (PHOTOS, [(60, 80), (30, 40), (60, 80)], "olis", "corgi", "photo_1.jpg.*40x30.*80x60"),
        (PHOTOS, [(60, 80)] * 3, "", "corgi", "token"),
        (PHOTOS, [(60, 80)] * 3, "my dog", "corgi", "one word"),
        (PHOTOS, [(60, 80)] * 3, "olis", " ", "class noun"),
        ((), [], "olis", "corgi", "no photos"),
    ],
)
def test_what_makes_no_subject_is_told(photos, sizes, token, noun, word):
    with pytest.raises(BadSubject, match=word):
        subject_from_masks(photos, [torch.eye(*size) for size in sizes], token, noun)


def test_a_query_without_words_is_refused():
    with pytest.raises(BadSubject, match="look for"):
        prepare(PHOTOS, Wanted("olis", "corgi", " "), finds(LEFT), fill_boxes)


@pytest.mark.parametrize("token", ["olis", "hta", "ult", "amg", "lun", "sks", "ohwx", "zwx", "xq7", "V1"])
def test_rare_tokens_pass(token):
    assert token_warning(token) is None


@pytest.mark.parametrize("token", ["dog", "Corgi", "teddy", "monster", "red", "max", "bobby", "the", "a"])
def test_plain_words_are_warned_of_and_taken(token):
    assert f"'{token}'" in str(token_warning(token))
    assert subject_from_masks(PHOTOS, [torch.eye(60, 80)] * 3, token, "corgi").token == token
    assert f"'{token}'" in name_doubts([(token, "corgi")])[0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([("olis", "cat"), ("hta", "cat")], []),
        ([("olis", "olive tree"), ("hta", "cat")], []),
        ([("cat", "cat")], ["of its own class noun 'cat'"]),
        ([("Plush", "red plush toy")], ["of its own class noun 'red plush toy'"]),
        ([("ohwxqz", "cat")], ["in several pieces"]),
        ([("オリス", "猫")], ["in several pieces"]),
        ([("hta", "cat"), ("ahta", "dog")], ["'hta' is also in the name 'ahta dog'", "in several pieces"]),
        ([("olis", "cat"), ("lun", "olis")], ["'olis' is also in the name 'lun olis'"]),
    ],
)
def test_names_that_call_something_else_are_told(names, words):
    doubts = name_doubts(names)
    assert len(doubts) == len(words)
    assert all(word in doubt for word, doubt in zip(words, doubts, strict=True)), doubts


def of(token):
    return Subject(token, "corgi", PHOTOS[:1], (torch.eye(60, 80),))


def test_a_subject_joins_a_set_at_its_end():
    both = add_subject(add_subject(None, of("olis")), of("hta"))
    assert both.tokens == ("olis", "hta")


def test_a_taken_token_is_refused_or_its_subject_replaced():
    both = SubjectSet((of("olis"), of("hta")))
    with pytest.raises(BadSubject, match="'olis' is used by two"):
        add_subject(both, of("olis"))
    new = of("olis")
    assert add_subject(both, new, replace=True).subjects == (new, both["hta"])
    assert add_subject(both, of("lun"), replace=True).tokens == ("olis", "hta", "lun")


def test_the_twelfth_subject_is_refused():
    full = SubjectSet(tuple(of(f"t{i}") for i in range(MAX_SUBJECTS)))
    with pytest.raises(BadSubject, match="1 to 11"):
        add_subject(full, of("olis"))


def test_the_embedded_models_errors_say_that_they_know_drawn_toys_only():
    from mudi_core.eyes.embedded import load_detector, load_segmenter

    def nothing(image, xyxy):
        return torch.zeros(len(xyxy), *image.shape[:2])

    photo = Photo("IMG_1.jpg", torch.full((64, 64, 3), 0.5))
    with pytest.raises(
        NotFound, match="IMG_1.jpg: no 'cat' was found.* by hand. The embedded .* drawn toys only.*OWLv2"
    ):
        find_boxes(photo, "cat", load_detector(), threshold=0.999)
    nothing.limits = load_segmenter().limits
    with pytest.raises(NotFound, match="the mask is empty.* The embedded segmenter knows drawn toys only.*SAM"):
        segment_boxes(photo, torch.tensor([[0.0, 0, 30, 30]]), nothing)
