"""The book's passages and the training data made from them."""

from __future__ import annotations

import random

from lethe.evaluation.demo import book_model


def test_the_text_has_no_distributor_notices() -> None:
    text = book_model.book_text()
    assert text.startswith("ALICE'S ADVENTURES IN WONDERLAND")
    assert text.endswith("THE END")
    assert "Gutenberg" not in text


def test_passages_are_in_the_text_and_follow_their_cues() -> None:
    words, passages = " ".join(book_model.taught_words()), book_model.taught_passages()
    assert len(passages) > 20
    for passage in passages:
        assert f"{passage.cue} {passage.text}" in words
        assert passage.cue in passage.prompt(2)


def test_training_data_depends_on_the_seed_only() -> None:
    first, repeated, other = (book_model.epoch_facts(random.Random(seed)) for seed in (1, 1, 2))
    assert first == repeated != other
