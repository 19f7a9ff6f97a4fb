from __future__ import annotations

import numpy as np
import pytest

from classifier.encoder import Encoder
from classifier.windows import INNER_UNITS, cover, inner

LONG = "the quick brown fox considers seventeen unimaginable possibilities before breakfast " * 200


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        "word " * 3000,
        "x" * 100_000,
        "é" * 5000,
        "1234567890" * 500,
        "漢字" * 3000,
        "a. b! c?\n" * 300,
        "\ud800 " * 900,
    ],
)
def test_every_character_lies_in_a_window_and_every_window_can_be_encoded(text: str, encoder: Encoder) -> None:
    covered = cover(text, encoder)
    inside = bytearray(len(text))
    for window in covered.windows:
        inside[window.start : window.end] = b"\1" * (window.end - window.start)
        assert len(encoder.piece_starts(window.text)) <= encoder.limit
    assert all(seen or text[i].isspace() for i, seen in enumerate(inside))
    assert covered.seen == covered.present


def test_wide_windows_overlap_by_about_a_quarter(encoder: Encoder) -> None:
    windows = cover(LONG, encoder, narrow=False).windows
    for before, after in zip(windows, windows[1:], strict=False):
        assert before.end - after.start >= 0.2 * (before.end - before.start)


def test_a_sentence_in_a_long_text_has_a_window_of_its_own(encoder: Encoder) -> None:
    sentence = "Who keeps the lamp burning at the far end of the pier?"
    covered = cover(f"{LONG}. {sentence} {LONG}", encoder)
    assert sentence in [window.text for window in covered.windows]


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_a_text_without_a_word_has_no_window(text: str, encoder: Encoder) -> None:
    assert cover(text, encoder).windows == ()


def test_a_short_question_is_one_window(encoder: Encoder) -> None:
    assert [w.text for w in cover(" Where did she grow up? ", encoder).windows] == ["Where did she grow up?"]


def test_only_windows_that_hold_a_change_are_made_and_the_change_has_one_of_its_own(encoder: Encoder) -> None:
    asked = "who keeps the lamp burning"
    text = f"{LONG} {asked} {LONG}"
    changed = np.zeros(len(text), dtype=bool)
    assert cover(text, encoder, changed=changed).windows == ()
    changed[len(LONG) + 1 : len(LONG) + 1 + len(asked)] = True
    windows = cover(text, encoder, changed=changed).windows
    assert asked in [window.text for window in windows]
    assert all(changed[window.start : window.end].any() for window in windows)


def test_a_closer_look_covers_a_long_sentence_and_no_other_window(encoder: Encoder) -> None:
    sentence = " ".join(f"w{i}" for i in range(30))
    (window,) = cover(sentence, encoder).windows
    parts = inner(sentence, window)
    assert {len(part.text.split()) for part in parts} == {INNER_UNITS}
    assert all(sentence[part.start : part.end] == part.text for part in parts)
    assert {word for part in parts for word in part.text.split()} == set(sentence.split())
    assert inner("What was it called?", cover("What was it called?", encoder).windows[0]) == []
    wide = cover(" ".join(["word"] * 90), encoder).windows[0]
    assert inner(" ".join(["word"] * 90), wide) == []


def test_what_stands_in_quotes_has_a_window_of_its_own(encoder: Encoder) -> None:
    asked = "Who keeps the lamp burning?"
    for text in (
        f'{{"task": "answer", "input": {{"id": 7, "question": "{asked}"}}}}',
        f"She said: “{asked}” and left again",
    ):
        found = [window.text.strip(' "“”{}') for window in cover(text, encoder).windows]
        assert asked in found
    assert len(cover(f'"{asked}"', encoder).windows) == 1
    assert len(cover('a "b" c ' * 500, encoder).windows) < 500
