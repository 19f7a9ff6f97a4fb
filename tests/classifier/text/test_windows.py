from __future__ import annotations

import numpy as np
import pytest

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.text.windows import INNER_UNITS, Cover, cover


def texts(covered: Cover) -> list[str]:
    return [covered.text(window) for window in covered.windows]


def spans(covered: Cover) -> list[tuple[int, int]]:
    return [covered.span(window) for window in covered.windows]


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
        start, end = covered.span(window)
        inside[start:end] = b"\1" * (end - start)
        assert len(encoder.piece_starts(covered.text(window))) <= encoder.limit
    assert all(seen or text[i].isspace() for i, seen in enumerate(inside))
    assert covered.seen == covered.present


@pytest.mark.parametrize(
    "text", [" ".join([("İ" + ",") * 30] * 12 + ["end"]), "İKİ BİN İNSAN ŞEHİRDE İYİ YAŞIYOR. " * 60]
)
def test_letters_that_are_longer_in_small_ones_are_counted_as_written(text: str, encoder: Encoder) -> None:
    covered = cover(text, encoder)
    assert covered.windows
    encoder.encode([encoder.folded(covered.text(window)) for window in covered.windows])


def test_wide_windows_overlap_by_about_a_quarter(encoder: Encoder) -> None:
    windows = spans(cover(LONG, encoder, narrow=False))
    assert len(windows) > 4
    for before, after in zip(windows, windows[1:], strict=False):
        assert before[1] - after[0] >= 0.2 * (before[1] - before[0])


def test_a_sentence_in_a_long_text_has_a_window_of_its_own(encoder: Encoder) -> None:
    sentence = "Who keeps the lamp burning at the far end of the pier?"
    covered = cover(f"{LONG}. {sentence} {LONG}", encoder)
    assert sentence in texts(covered)


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_a_text_without_a_word_has_no_window(text: str, encoder: Encoder) -> None:
    assert cover(text, encoder).windows == ()


def test_a_short_question_is_one_window(encoder: Encoder) -> None:
    assert texts(cover(" Where did she grow up? ", encoder)) == ["Where did she grow up?"]


def test_only_windows_that_hold_a_change_are_made_and_the_change_has_one_of_its_own(encoder: Encoder) -> None:
    asked = "who keeps the lamp burning"
    text = f"{LONG} {asked} {LONG}"
    changed = np.zeros(len(text), dtype=bool)
    assert cover(text, encoder, changed=changed).windows == ()
    changed[len(LONG) + 1 : len(LONG) + 1 + len(asked)] = True
    covered = cover(text, encoder, changed=changed)
    assert asked in texts(covered)
    assert all(changed[start:end].any() for start, end in spans(covered))


def test_a_closer_look_covers_a_long_sentence_and_no_other_window(encoder: Encoder) -> None:
    sentence = " ".join(f"w{i}" for i in range(30))
    covered = cover(sentence, encoder)
    (window,) = covered.windows
    parts = covered.inner(window)
    assert {last - first for first, last in parts} == {INNER_UNITS}
    assert all(sentence[slice(*covered.span(part))] == covered.text(part) for part in parts)
    assert {word for part in parts for word in covered.text(part).split()} == set(sentence.split())
    hardly = cover(" ".join(["word"] * (INNER_UNITS + 1)), encoder)
    assert {last - first for first, last in hardly.inner(hardly.windows[0])} == {10}
    short, wide = cover("What was it called?", encoder), cover(" ".join(["word"] * 90), encoder)
    assert short.inner(short.windows[0]) == []
    assert wide.inner(wide.windows[0]) == []


def test_a_tokenizer_is_asked_once_for_each_unit_and_not_for_short_texts(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    counting = encoder.piece_starts
    monkeypatch.setattr(encoder, "piece_starts", lambda text: (asked.append(text), counting(text))[1])
    cover("Where did she grow up?", encoder)
    assert asked == []
    monkeypatch.setattr(encoder, "_counted", {})
    first = cover(LONG, encoder)
    again = cover(f"{LONG} unimaginable novelty", encoder)
    assert [sorted(set(text.split())) for text in asked] == [sorted(set(LONG.split())), ["novelty"]]
    assert again.windows[0] == first.windows[0]


def test_what_stands_in_quotes_has_a_window_of_its_own(encoder: Encoder) -> None:
    asked = "Who keeps the lamp burning?"
    for text in (
        f'{{"task": "answer", "input": {{"id": 7, "question": "{asked}"}}}}',
        f"She said: “{asked}” and left again",
    ):
        found = [text.strip(' "“”{}') for text in texts(cover(text, encoder))]
        assert asked in found
    assert len(cover(f'"{asked}"', encoder).windows) == 1
    assert len(cover('a "b" c ' * 500, encoder).windows) < 500
