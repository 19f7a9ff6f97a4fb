from __future__ import annotations

import numpy as np
import pytest

from lethe.classifier.encoder import encoder as encoders
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import cache_folder

TEXTS = ["", "one", "A longer text, with a name: Ada Lovelace.", "many words " * 60, "Grüße, 東京!"]


def test_rows_do_not_depend_on_their_neighbours(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        assert encoder.encode([text])[0].tolist() == row.tolist()
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.width)


def test_progress_ends_at_the_number_of_texts(encoder: Encoder) -> None:
    seen: list[tuple[int, int]] = []
    encoder.encode([*TEXTS, TEXTS[1]], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6) and seen == sorted(seen)


def test_several_threads_encode_the_same(encoder: Encoder) -> None:
    folder = cache_folder() / encoder.hash
    assert Encoder(folder, threads=3).encode(TEXTS * 5).tolist() == encoder.encode(TEXTS * 5).tolist()


def test_cached_texts_are_not_encoded_again(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder.clear_cache()
    first = encoder.encode_cached(TEXTS[:3])
    encoded: list[list[str]] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: (encoded.append(list(texts)), encode(texts))[1])
    assert encoder.encode_cached([TEXTS[4], *TEXTS[:3]])[1:].tolist() == first.tolist()
    assert encoded == [[TEXTS[4]]]
    encoder.clear_cache()
    encoder.encode_cached(TEXTS[:1])
    assert encoded[1:] == [TEXTS[:1]]


def test_a_text_over_the_limit_is_refused_not_truncated(encoder: Encoder) -> None:
    encoder.encode(["word " * encoder.limit])
    with pytest.raises(ValueError, match="word pieces"):
        encoder.encode(["word " * (encoder.limit + 1)])


def test_word_pieces_of_units_are_counted_as_within_a_text(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    units = ["unimaginable", "İstanbul", "\ud800x", "word", "e\u0301", "word"]
    counts = encoder.piece_counts(units)
    assert counts == [len(encoder.piece_starts(unit)) for unit in units]
    monkeypatch.setattr(encoders, "CACHED_UNIT_COUNTS", 3)
    monkeypatch.setattr(encoder, "_unit_counts", {"word": counts[3]})
    assert encoder.piece_counts(units) == counts and len(encoder._unit_counts) == 0
    assert encoder.piece_counts(units[:3]) == counts[:3] and len(encoder._unit_counts) == 3
