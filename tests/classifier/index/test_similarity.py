from __future__ import annotations

import numpy as np
import pytest

from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.index import similarity
from lethe.classifier.index.similarity import ForgetTextMatcher, ForgetTexts


def test_rare_words_find_their_forget_texts(encoder: Encoder) -> None:
    texts = ["Where did Orvan Teldric grow up?", "Who keeps Mirk?", *(f"Where did Ann {i} grow up?" for i in range(50))]
    vectors = encoder.encode(texts)
    targets = similarity.prepare_forget_texts(
        texts, vectors, vectors.astype(np.float16), similarity.document_frequencies(texts)
    )
    words = similarity.hashed_words(["", "Tell me of Mirk.", "Where is Teldric?"])
    assert ForgetTextMatcher(targets, min_idf_share=0.03).forget_texts_sharing_words(words, 3, 1).tolist() == [1, 0]


def test_words_of_very_many_forget_texts_share_infinitely(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    matcher = ForgetTextMatcher(ForgetTexts.from_arrays(artifact.arrays, "targets"))
    words = similarity.hashed_words(["Orvan Teldric", "egg"])
    assert matcher.max_shared_idf(words, 2)[1] == 0 < matcher.max_shared_idf(words, 2)[0] < 1
    monkeypatch.setattr(similarity, "MAX_POSTINGS", 1)
    assert matcher.max_shared_idf(words, 2).tolist() == [np.inf, 0]


def test_forget_texts_survive_conversion_to_arrays(artifact: Artifact) -> None:
    targets = ForgetTexts.from_arrays(artifact.arrays, "targets")
    arrays = targets.to_arrays("targets")
    assert all(arrays[name] is artifact.arrays[name] for name in arrays) and len(arrays) == 4


def test_hubness_needs_counter_examples() -> None:
    with pytest.raises(ValueError, match="no counter-examples"):
        similarity.hubness(np.ones((1, 2)), np.zeros((0, 2), dtype=np.float16))
