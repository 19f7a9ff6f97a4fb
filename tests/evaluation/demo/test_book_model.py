"""The book's passages: what is asked for is what the book says."""

from __future__ import annotations

import random

from lethe.evaluation.demo import book_model


def test_the_book_begins_and_ends_with_the_book() -> None:
    text = book_model.book()
    assert text.startswith("ALICE'S ADVENTURES IN WONDERLAND")
    assert text.endswith("THE END")
    assert "Gutenberg" not in text


def test_passages_cover_the_taught_words_and_follow_their_cues() -> None:
    words, found = " ".join(book_model.taught()), book_model.passages()
    assert len(found) > 20
    for passage in found:
        assert f"{passage.cue} {passage.text}" in words
        assert passage.cue in passage.prompt(2)


def test_lessons_are_drawn_anew_and_the_same_for_one_seed() -> None:
    one, again, other = (book_model.lessons(random.Random(seed)) for seed in (1, 1, 2))
    assert one == again != other
