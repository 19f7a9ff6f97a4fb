from __future__ import annotations

import numpy as np
import pytest

from lethe.classifier.text import language_model


def test_language_costs_less_than_its_letters_shuffled() -> None:
    text = "What is the name of the author who was born near the lake"
    rng = np.random.default_rng(0)
    shuffled = "".join(rng.permutation(list(text)))
    assert language_model.cumulative_costs(text)[-1] < 0.85 * language_model.cumulative_costs(shuffled)[-1]
    assert len(language_model.cumulative_costs(text)) == len(text) + 1


@pytest.mark.parametrize(
    "text",
    [
        "Where does she live?",
        "Wo wohnt die Autorin des Buches?",
        "作者はどこで生まれましたか",
        "Где родился автор?",
        "x9 " * 30 + "and the name of the author is known",
    ],
)
def test_texts_with_words_are_readable(text: str) -> None:
    assert language_model.is_readable(text)


@pytest.mark.parametrize("text", ["x7Gq9ZpL2" * 30, "zxqv kjwq pqzx vvkq " * 9, "12 345 " * 40, "!?#$ " * 30, ""])
def test_random_letters_numbers_and_signs_are_not_readable(text: str) -> None:
    rng = np.random.default_rng(0)
    random = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 300))
    assert not language_model.is_readable(random)
    assert not language_model.is_readable(text) or not text


def test_letters_are_split_into_common_and_vocabulary_words() -> None:
    run = "whoistheauthorofthebookaboutvardholm"
    assert language_model.split_into_words(run)[:8] == ["who", "is", "the", "author", "of", "the", "book", "about"]
    assert language_model.split_into_words(run, frozenset({"vardholm"}))[-1] == "vardholm"
    assert "".join(language_model.split_into_words("qzxvvwkjq")) == "qzxvvwkjq"


def test_a_large_vocabulary_splits_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = ["whoistheauthorofthebookaboutvardholm", "qzxvvwkjq", "teldriclivesinvardholmnow"]
    vocabulary = frozenset({"vardholm", "teldric"})
    small = [language_model.split_into_words(run, vocabulary) for run in runs]
    monkeypatch.setattr(language_model, "MAX_WORDS_WITH_ENDINGS", 1)
    language_model._word_cost_table.cache_clear()
    assert [language_model.split_into_words(run, vocabulary) for run in runs] == small
    language_model._word_cost_table.cache_clear()


def test_the_known_share_counts_letters() -> None:
    assert language_model.known_letter_share(["what", "zzzz"]) == 0.5
    assert language_model.known_letter_share(["what", "zzzz"], {"zzzz"}) == 1.0
    assert language_model.known_letter_share([]) == 0.0
