from __future__ import annotations

import numpy as np
import pytest

from lethe.classifier.text import language_model


def test_language_costs_less_than_its_letters_in_another_order() -> None:
    text = "What is the name of the author who was born near the lake"
    rng = np.random.default_rng(0)
    shuffled = "".join(rng.permutation(list(text)))
    assert language_model.nats(text)[-1] < 0.85 * language_model.nats(shuffled)[-1]
    assert len(language_model.nats(text)) == len(text) + 1


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
def test_texts_with_words_in_them_are_readable(text: str) -> None:
    assert language_model.readable(text)


@pytest.mark.parametrize("text", ["x7Gq9ZpL2" * 30, "zxqv kjwq pqzx vvkq " * 9, "12 345 " * 40, "!?#$ " * 30, ""])
def test_letters_by_chance_numbers_and_signs_are_not(text: str) -> None:
    rng = np.random.default_rng(0)
    random = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 300))
    assert not language_model.readable(random)
    assert not language_model.readable(text) or not text


def test_a_run_is_cut_into_words_and_names_of_a_vocabulary_are_kept_whole() -> None:
    run = "whoistheauthorofthebookaboutvardholm"
    assert language_model.segmented(run)[:8] == ["who", "is", "the", "author", "of", "the", "book", "about"]
    assert language_model.segmented(run, frozenset({"vardholm"}))[-1] == "vardholm"
    assert "".join(language_model.segmented("qzxvvwkjq")) == "qzxvvwkjq"


def test_a_large_vocabulary_cuts_a_run_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = ["whoistheauthorofthebookaboutvardholm", "qzxvvwkjq", "teldriclivesinvardholmnow"]
    vocabulary = frozenset({"vardholm", "teldric"})
    few = [language_model.segmented(run, vocabulary) for run in runs]
    monkeypatch.setattr(language_model, "MOST_LISTED", 1)
    language_model._endings.cache_clear()
    assert [language_model.segmented(run, vocabulary) for run in runs] == few
    language_model._endings.cache_clear()


def test_the_known_share_is_of_letters() -> None:
    assert language_model.known_share(["what", "zzzz"]) == 0.5
    assert language_model.known_share(["what", "zzzz"], {"zzzz"}) == 1.0
    assert language_model.known_share([]) == 0.0
