from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.text.vocabulary import content_words
from lethe.classifier.text.windows import text_chunks
from lethe.classifier.training import background
from lethe.classifier.training.background import background_embeddings, background_prompts, word_embeddings
from lethe.classifier.training.rows import background_rows


def chunks(encoder: Encoder) -> list[str]:
    return [chunk for prompt in background_prompts() for chunk in text_chunks(prompt, encoder)]


def refuse_to_encode(*_: object) -> None:
    raise AssertionError("encoded although the embeddings are shipped")


def test_the_shipped_embeddings_cover_the_background(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "encode", refuse_to_encode)
    vectors = background_embeddings(chunks(encoder), encoder)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_fit_encodes_no_text_or_word_of_the_background(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [row.text for row in background_rows(encoder) if row.encoded]
    rewordings = set(texts) - set(chunks(encoder))
    words, _ = content_words((), background_prompts())
    monkeypatch.setattr(encoder, "encode", refuse_to_encode)
    monkeypatch.setattr(background, "cached_embeddings", refuse_to_encode)
    assert background_embeddings(texts, encoder).any(axis=1).all() and len(rewordings) > 300
    assert word_embeddings(words, encoder).any(axis=1).all() and len(words) > 1000


def test_words_have_the_same_bits_with_and_without_the_file(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known, _ = content_words((), background_prompts())
    words = ["vardholm", *known[:3], "grindvoll"]
    shipped = word_embeddings(words, encoder)
    monkeypatch.setattr(background, "EMBEDDINGS", tmp_path / "none.safetensors")
    alone = word_embeddings(words, encoder)
    assert shipped.dtype == alone.dtype == np.float16 and shipped.shape == (5, encoder.width)
    # Other processors may round the last bits differently.
    assert np.allclose(shipped, alone, atol=1e-3)


def test_background_rows_are_the_same_in_every_fit(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lethe.classifier.training.rows.background_prompts", lambda: background_prompts()[:40])
    first, later = background_rows(encoder), background_rows(encoder, first_source=500)
    assert [row.text for row in first] == [row.text for row in later]
    assert [row.source + 500 for row in first] == [row.source for row in later]
    assert not any(row.forget for row in first)


def test_the_shipped_embeddings_are_the_encoders_own(encoder: Encoder) -> None:
    some = chunks(encoder)[::400]
    # Other processors may round the last bits of a float32 differently.
    assert np.allclose(background_embeddings(some, encoder), encoder.encode(some), atol=1e-4)


@pytest.mark.parametrize("content", [None, b"", b"damaged" * 100])
def test_without_the_shipped_file_texts_are_encoded(
    content: bytes | None, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(background, "EMBEDDINGS", tmp_path / "embeddings.safetensors")
    if content is not None:
        (tmp_path / "embeddings.safetensors").write_bytes(content)
    some = chunks(encoder)[:2]
    assert background_embeddings(some, encoder).tolist() == encoder.encode(some).tolist()


def test_another_encoder_ignores_the_shipped_file(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(encoder, "hash", "0" * 64)
    monkeypatch.setattr(encoder, "encode", lambda texts, progress: np.zeros((len(texts), encoder.width)))
    assert not background_embeddings(chunks(encoder)[:2], encoder).any()
