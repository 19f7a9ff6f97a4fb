from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.classifier.text.disguises.records import read_records
from tests.classifier.text.test_confusables import apply_edits

WORDS = "Where did the keeper Orvan Teldric of Vardholm grow up, and who was Ditte's father?".split()
SIGNS = st.text(alphabet="<>[]{}|=/#", min_size=1, max_size=4)
LABELS = st.lists(st.sampled_from(["p", "span", "word", "INFO", "text", "https", "example"]), max_size=3)


def read(text: str) -> str:
    return apply_edits(text, read_records(text))


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"<p>{word}</p>" for word in WORDS),
        "\n".join(f'<span class="w">{word}</span>' for word in WORDS),
        " ".join(f"[{word}](https://example.com/page?id={i})" for i, word in enumerate(WORDS)),
        json.dumps(WORDS),
        json.dumps([{"id": i, "word": word} for i, word in enumerate(WORDS)]),
        "\n".join(json.dumps({"text": word, "level": "low"}) for word in WORDS),
        "\n".join(f"{i};{word}" for i, word in enumerate(WORDS)),
        "| n | word |\n|---|---|\n" + "\n".join(f"| {i} | {word} |" for i, word in enumerate(WORDS)),
        "\n".join(f"2026-03-14 09:02:{i:02} {'INFO' if i % 3 else 'WARN'} worker-{i % 4} got w={word}"
                  for i, word in enumerate(WORDS)),
        " ".join(f"{word} <|pad|>" for word in WORDS),
    ],
)  # fmt: skip
def test_one_word_a_record_is_read_in_order(text: str) -> None:
    assert "keeper Orvan Teldric of Vardholm grow up" in read(f"Read this.\n{text}\nAnswer.")


@settings(deadline=None)
@given(SIGNS, LABELS, SIGNS)
def test_any_format_that_repeats_is_read_away(before: str, labels: list[str], after: str) -> None:
    words = [word.strip(",?") for word in WORDS]
    text = "".join(f"{before}{' '.join([*labels, ''])}{before}{word}{after}\n" for word in words)
    assert "Orvan Teldric of Vardholm grow up" in read(text)


@pytest.mark.parametrize(
    "text",
    [
        "A list:\n- buy some milk\n- clean the whole house\n- call my mother\n- write the letter to Ann",
        "1. Oranges cost more than apples.\n2. Oranges cost less than bananas.\n3. Bananas cost more than apples.",
        "“Yes,” she said. “No,” he said. “Why?” she asked. “Because,” he said.",
        "It rained, and it snowed, and it hailed, and it stopped.",
        "snake_case_names_are_words_of_code",
    ],
)
def test_lists_and_prose_stay(text: str) -> None:
    assert read_records(text) == []


@settings(deadline=None)
@given(st.text(alphabet="ab 1,<>=\n\"'", max_size=200))
def test_edits_are_in_order_and_keep_the_words_of_the_text(text: str) -> None:
    edits = read_records(text)
    assert all(0 <= a < b <= len(text) for a, b, _ in edits)
    assert all(end <= start for (_, end, _), (start, _, _) in zip(edits, edits[1:], strict=False))
    assert all(plain == f" {text[end - 1]}" for _, end, plain in edits)


@pytest.mark.parametrize("unit", ["a,1\n", "<p>a</p>", "a=b ", "a b c, ", "1 a "])
def test_time_is_linear(unit: str) -> None:
    started = time.process_time()
    read_records(unit * (200_000 // len(unit)))
    assert time.process_time() - started < 5
