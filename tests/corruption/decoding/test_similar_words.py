"""Words similar in meaning, with their penalties."""

from __future__ import annotations

import numpy as np
import pytest

from lethe.corruption.decoding.similar_words import WordVectors


def test_weights_are_proportional_to_the_cosine() -> None:
    words = ["engineer", "builder", "rose", "architect"]
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], dtype=np.float16)
    weights = WordVectors(words, vectors).most_similar(
        ["Engineer", "unknown"], similarity=0.5, weight=4.0, exclude=["architect"]
    )
    assert weights == pytest.approx({"builder": 3.2}, abs=0.01)


def test_the_most_similar_words_come_first_up_to_the_limit() -> None:
    vectors = np.stack([np.cos(np.linspace(0, 1, 50)), np.sin(np.linspace(0, 1, 50))], axis=1)
    words = [f"word{i}" for i in range(50)]
    weights = WordVectors(words, vectors).most_similar(["word0"], similarity=0.1, weight=2.0, limit=3)
    assert list(weights) == ["word1", "word2", "word3"]


def test_unknown_words_have_no_similar_words() -> None:
    assert WordVectors(["y"], np.ones((1, 1))).most_similar(["x"], similarity=0.1, weight=1.0) == {}
    with pytest.raises(ValueError):
        WordVectors(["y"], np.ones((2, 1)))


def test_cached_neighbours_change_no_result() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((300, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = [f"word{i}" for i in range(300)]
    word_vectors = WordVectors(words, vectors)
    for similarity in (0.5, 0.2, 0.5):
        for _ in range(20):
            phrase_words = rng.choice(words, 5, replace=False).tolist()
            nearest = (vectors @ vectors[[words.index(word) for word in phrase_words]].T).max(axis=1)
            expected = {
                w: 2 * c for w, c in zip(words, nearest, strict=True) if c >= similarity and w not in phrase_words
            }
            weights = word_vectors.most_similar(phrase_words, similarity=similarity, weight=2.0, limit=300)
            assert weights == pytest.approx(expected, abs=1e-5)
            assert list(weights.values()) == sorted(weights.values(), reverse=True)
