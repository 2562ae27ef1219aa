from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudi_core.stage.layout_text import EXAMPLE, BadPlaces, Place, parse_places, places_text


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [0.1, 0.2, 0.5, 1], "b": [0, 0, 1, 1]}',
        '{"a": [100, 200, 500, 1000], "b": [0, 0, 1000, 1000]}',
        '{"a": {"box": [100, 200, 500, 1000]}, "b": [0, 0, 1000, 1000]}',
        '```json\n{"a": [0.1, 0.2, 0.5, 1],\n"b": [0, 0, 1, 1]}\n```\n',
    ],
)
def test_boxes_are_read_as_fractions_or_thousandths(text: str) -> None:
    assert parse_places(text) == {"a": Place((0.1, 0.2, 0.5, 1.0)), "b": Place((0.0, 0.0, 1.0, 1.0))}


@pytest.mark.parametrize("photo", ['"#3"', "2"], ids=["counted from 1", "as older workflows have it"])
def test_a_place_may_say_more_than_its_box(photo: str) -> None:
    text = f'{{"a": {{"box": [0, 0, 500, 1000], "photo": {photo}, "mirror": true, "rotation": -15, "depth": 1.5}}}}'
    assert parse_places(text) == {"a": Place((0.0, 0.0, 0.5, 1.0), 2, True, -15, 1.5)}
    assert parse_places(EXAMPLE)["hta"].mirror is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("Sure! Here is the layout: {}", "not valid JSON"),
        ("{'a': [0, 0, 1, 1]}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": [0, 0, 1, ' + "9" * 5000 + "]}", "not valid JSON"),
        ("[0, 0, 1, 1]", "one place for each subject"),
        ("{}", "one place for each subject"),
        ('{"a": [0, 0, 1]}', "'a' should be four numbers"),
        ('{"a": "left"}', "'a' should be four numbers"),
        ('{"a": {"mirror": true}}', "'a' should be four numbers"),
        ('{"a": [0, 0, 1, true]}', "'a' should be four numbers"),
        ('{"a": [0, 0, 1, NaN]}', "'a' should be four numbers"),
        ('{"a": [0, 0, 1, 1e400]}', "'a' should be four numbers"),
        ('{"a": [0, 0, 1, ' + "9" * 400 + "]}", "'a' should be four numbers"),
        ('{"a": [-1, 0, 1, 1]}', "'a' should be four numbers"),
        ('{"a": [0.5, 0, 0.1, 1]}', "'a' should go from its top left"),
        ('{"a": [100, 100, 100, 500]}', "'a' should go from its top left"),
        ('{"a": [0, 0, 1, 1], "a": [0, 0, 1, 1]}', "'a' is given twice"),
        ('{"a": [12, 40, 1900, 1080]}', "look like pixels"),
        ('{"a": {"box": [0, 0, 1, 1], "size": 3}}', "'a' has 'size'"),
        *(
            (
                f'{{"a": {{"box": [0, 0, 1, 1], "photo": {said}}}}}',
                "'photo' of 'a' should be counted from 1, like \"#1\"",
            )
            for said in (
                "-1",
                '"#0"',
                '"#"',
                '"2"',
                '"# 1"',
                '"#1.5"',
                '"#٣"',
                '"#1000000000"',
                "1000000000",
                "null",
                "1.0",
            )
        ),
        ('{"a": {"box": [0, 0, 1, 1], "photo": true}}', "'photo' of 'a' should be"),
        ('{"a": {"box": [0, 0, 1, 1], "mirror": "left"}}', "'mirror' of 'a' should be true or false"),
        ('{"a": {"box": [0, 0, 1, 1], "rotation": 400}}', "'rotation' of 'a' should be degrees"),
        ('{"a": {"box": [0, 0, 1, 1], "depth": null}}', "'depth' of 'a' should be a number"),
    ],
)
def test_text_that_is_no_layout_says_why(text: str, message: str) -> None:
    with pytest.raises(BadPlaces, match=message) as error:
        parse_places(text)
    assert len(str(error.value)) < 400


def test_what_is_written_is_read_again() -> None:
    places = {
        "a": Place((0.0, 0.25, 0.5, 1.0), 2, True, -15, 1.5),
        'b "x"': Place((0.0, 0.0, 1.0, 0.125), mirror=False),
    }
    assert parse_places(places_text(places)) == places
    assert '"photo": "#3"' in places_text(places)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.one_of(st.text(), json_values.map(json.dumps), st.dictionaries(st.text(), json_values).map(json.dumps)))
def test_whatever_is_written_is_read_or_refused_in_a_sentence(text: str) -> None:
    try:
        places = parse_places(text)
    except BadPlaces:
        return
    for place in places.values():
        x0, y0, x1, y1 = place.box
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
