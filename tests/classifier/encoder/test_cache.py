from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from lethe.classifier.encoder import cache
from lethe.classifier.encoder.encoder import Encoder

TEXTS = ("A ferry crosses the sound.", "Twelve times eleven?", "Name three metals.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lethe" / "background"


def fail_to_encode(*_: object) -> None:
    raise AssertionError("encoded in spite of the cache")


def test_equal_texts_are_encoded_once(encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.cached_embeddings(TEXTS, encoder)
    assert np.array_equal(first, encoder.encode(TEXTS))
    monkeypatch.setattr(encoder, "encode", fail_to_encode)
    assert np.array_equal(cache.cached_embeddings(TEXTS, encoder), first)
    assert len(list(folder.iterdir())) == 1
    with pytest.raises(AssertionError):
        cache.cached_embeddings(TEXTS[:2], encoder)


@pytest.mark.parametrize("damage", [lambda c: c[:-4], lambda c: c[:40] + bytes([c[40] ^ 1]) + c[41:], lambda c: b""])
def test_a_damaged_file_is_written_again(damage: object, encoder: Encoder, folder: Path) -> None:
    first = cache.cached_embeddings(TEXTS, encoder)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))  # type: ignore[operator]
    assert np.array_equal(cache.cached_embeddings(TEXTS, encoder), first)
    assert path.read_bytes() == whole


def test_each_encoder_has_its_own_file(encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.cached_embeddings(TEXTS, encoder)
    monkeypatch.setattr(encoder, "hash", "0" * 64)
    cache.cached_embeddings(TEXTS, encoder)
    assert len(list(folder.iterdir())) == 2


def test_parallel_writers_leave_one_complete_file(encoder: Encoder, folder: Path) -> None:
    expected = encoder.encode(TEXTS)
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(cache.cached_embeddings(TEXTS, encoder))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(one, expected) for one in results)
    assert [path.name.startswith(".") for path in folder.iterdir()] == [False]


def test_a_cache_that_cannot_be_written_is_no_error(encoder: Encoder, folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("in the way")
    assert cache.cached_embeddings(TEXTS, encoder).shape == (3, encoder.width)
