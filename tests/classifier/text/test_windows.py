from __future__ import annotations

import numpy as np
import pytest

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.text.windows import INNER_UNITS, WindowCover, cover_with_windows


def texts(covered: WindowCover) -> list[str]:
    return [covered.text(window) for window in covered.windows]


def spans(covered: WindowCover) -> list[tuple[int, int]]:
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
def test_windows_cover_every_character_and_fit_the_encoder(text: str, encoder: Encoder) -> None:
    covered = cover_with_windows(text, encoder)
    inside = bytearray(len(text))
    for window in covered.windows:
        start, end = covered.span(window)
        inside[start:end] = b"\1" * (end - start)
        assert len(encoder.piece_starts(covered.text(window))) <= encoder.limit
    assert all(seen or text[i].isspace() for i, seen in enumerate(inside))
    assert covered.covered_characters == covered.total_characters


@pytest.mark.parametrize(
    "text", [" ".join([("İ" + ",") * 30] * 12 + ["end"]), "İKİ BİN İNSAN ŞEHİRDE İYİ YAŞIYOR. " * 60]
)
def test_windows_whose_lower_case_is_longer_can_be_encoded(text: str, encoder: Encoder) -> None:
    covered = cover_with_windows(text, encoder)
    assert covered.windows
    encoder.encode([encoder.fold_case(covered.text(window)) for window in covered.windows])


def test_wide_windows_overlap_by_about_a_quarter(encoder: Encoder) -> None:
    windows = spans(cover_with_windows(LONG, encoder, narrow=False))
    assert len(windows) > 4
    for before, after in zip(windows, windows[1:], strict=False):
        assert before[1] - after[0] >= 0.2 * (before[1] - before[0])


def test_a_sentence_in_a_long_text_has_its_own_window(encoder: Encoder) -> None:
    sentence = "Who keeps the lamp burning at the far end of the pier?"
    covered = cover_with_windows(f"{LONG}. {sentence} {LONG}", encoder)
    assert sentence in texts(covered)


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_a_text_without_words_has_no_window(text: str, encoder: Encoder) -> None:
    assert cover_with_windows(text, encoder).windows == ()


def test_a_short_question_is_one_window(encoder: Encoder) -> None:
    assert texts(cover_with_windows(" Where did she grow up? ", encoder)) == ["Where did she grow up?"]


def test_only_windows_with_changed_characters_are_made(encoder: Encoder) -> None:
    question = "who keeps the lamp burning"
    text = f"{LONG} {question} {LONG}"
    changed = np.zeros(len(text), dtype=bool)
    assert cover_with_windows(text, encoder, changed=changed).windows == ()
    changed[len(LONG) + 1 : len(LONG) + 1 + len(question)] = True
    covered = cover_with_windows(text, encoder, changed=changed)
    assert question in texts(covered)
    assert all(changed[start:end].any() for start, end in spans(covered))


def test_inner_windows_cover_a_long_sentence_only(encoder: Encoder) -> None:
    sentence = " ".join(f"w{i}" for i in range(30))
    covered = cover_with_windows(sentence, encoder)
    (window,) = covered.windows
    parts = covered.inner_windows(window)
    assert {last - first for first, last in parts} == {INNER_UNITS}
    assert all(sentence[slice(*covered.span(part))] == covered.text(part) for part in parts)
    assert {word for part in parts for word in covered.text(part).split()} == set(sentence.split())
    slightly_long = cover_with_windows(" ".join(["word"] * (INNER_UNITS + 1)), encoder)
    assert {last - first for first, last in slightly_long.inner_windows(slightly_long.windows[0])} == {10}
    short, wide = (
        cover_with_windows("What was it called?", encoder),
        cover_with_windows(" ".join(["word"] * 90), encoder),
    )
    assert short.inner_windows(short.windows[0]) == []
    assert wide.inner_windows(wide.windows[0]) == []


def test_the_tokenizer_sees_each_unit_once_and_no_short_text(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    question: list[str] = []
    counting = encoder.piece_starts
    monkeypatch.setattr(encoder, "piece_starts", lambda text: (question.append(text), counting(text))[1])
    cover_with_windows("Where did she grow up?", encoder)
    assert question == []
    monkeypatch.setattr(encoder, "_unit_counts", {})
    first = cover_with_windows(LONG, encoder)
    again = cover_with_windows(f"{LONG} unimaginable novelty", encoder)
    assert [sorted(set(text.split())) for text in question] == [sorted(set(LONG.split())), ["novelty"]]
    assert again.windows[0] == first.windows[0]


def test_quoted_text_has_its_own_window(encoder: Encoder) -> None:
    question = "Who keeps the lamp burning?"
    for text in (
        f'{{"task": "answer", "input": {{"id": 7, "question": "{question}"}}}}',
        f"She said: “{question}” and left again",
    ):
        window_texts = [text.strip(' "“”{}') for text in texts(cover_with_windows(text, encoder))]
        assert question in window_texts
    assert len(cover_with_windows(f'"{question}"', encoder).windows) == 1
    assert len(cover_with_windows('a "b" c ' * 500, encoder).windows) < 500
