"""Words of similar meaning, found by one product."""

from __future__ import annotations

import numpy as np
import pytest

from lethe.corruption.decoding.similar_words import WordVectors


def test_soft_words_are_the_similar_ones_weighed_by_similarity() -> None:
    words = ["engineer", "builder", "rose", "architect"]
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], dtype=np.float16)
    found = WordVectors(words, vectors).most_similar(
        ["Engineer", "unknown"], similarity=0.5, weight=4.0, exclude=["architect"]
    )
    assert found == pytest.approx({"builder": 3.2}, abs=0.01)


def test_soft_words_are_bounded_and_most_similar_first() -> None:
    vectors = np.stack([np.cos(np.linspace(0, 1, 50)), np.sin(np.linspace(0, 1, 50))], axis=1)
    words = [f"word{i}" for i in range(50)]
    found = WordVectors(words, vectors).most_similar(["word0"], similarity=0.1, weight=2.0, limit=3)
    assert list(found) == ["word1", "word2", "word3"]


def test_no_known_word_means_no_soft_words() -> None:
    assert WordVectors(["y"], np.ones((1, 1))).most_similar(["x"], similarity=0.1, weight=1.0) == {}
    with pytest.raises(ValueError):
        WordVectors(["y"], np.ones((2, 1)))


def test_what_is_remembered_of_a_word_changes_no_answer() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((300, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = [f"word{i}" for i in range(300)]
    known = WordVectors(words, vectors)
    for similarity in (0.5, 0.2, 0.5):
        for _ in range(20):
            asked = rng.choice(words, 5, replace=False).tolist()
            nearest = (vectors @ vectors[[words.index(word) for word in asked]].T).max(axis=1)
            expected = {w: 2 * c for w, c in zip(words, nearest, strict=True) if c >= similarity and w not in asked}
            found = known.most_similar(asked, similarity=similarity, weight=2.0, limit=300)
            assert found == pytest.approx(expected, abs=1e-5)
            assert list(found.values()) == sorted(found.values(), reverse=True)
