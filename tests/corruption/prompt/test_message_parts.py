"""Which parts of a message carry text."""

from __future__ import annotations

import pytest

from lethe.corruption.prompt.message_parts import part_text, replaceable_texts

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (text_part("a"), "a"),
        ({"type": "input_text", "text": "a"}, "a"),
        ({"type": "refusal", "refusal": "no"}, "no"),
        ({"type": "thinking", "thinking": "hm"}, "hm"),
        ({"type": "text"}, None),
        ({"type": "text", "text": 3}, None),
        ({"type": ["text"], "text": "a"}, None),
        (IMAGE, None),
        ("a", None),
    ],
)
def test_the_text_of_a_part(part: object, expected: str | None) -> None:
    assert part_text(part) == expected


def test_replaceable_texts_are_keyed_by_message_and_part() -> None:
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [IMAGE, text_part("b")]},
        {"role": "x"},
    ]
    assert replaceable_texts(messages) == {(0, None): "a", (1, 1): "b"}
