from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.text.windows import text_chunks
from lethe.classifier.training import background
from lethe.classifier.training.background import background_embeddings, background_prompts


def chunks(encoder: Encoder) -> list[str]:
    return [chunk for prompt in background_prompts() for chunk in text_chunks(prompt, encoder)]


def refuse_to_encode(*_: object) -> None:
    raise AssertionError("encoded although the embeddings are shipped")


def test_the_shipped_embeddings_cover_the_background(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "encode", refuse_to_encode)
    vectors = background_embeddings(chunks(encoder), encoder)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


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
