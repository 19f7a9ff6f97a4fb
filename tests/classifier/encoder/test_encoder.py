from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from lethe.classifier.encoder import encoder as encoders
from lethe.classifier.encoder import export as encoder_export
from lethe.classifier.encoder.encoder import Encoder, load_encoder

TEXTS = ["", "one", "A longer text, with a name: Ada Lovelace.", "many words " * 60, "Grüße, 東京!"]


def test_vectors_are_those_of_sentence_transformers_but_for_the_rounding(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = encoders._package_folder()
    assert folder is not None
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    assert ((encoder.encode(TEXTS) * expected).sum(axis=1) > encoder_export.ROUNDED_AGREEMENT).all()
    # A model that doesn't bear it stays as it is.
    monkeypatch.setattr(encoder_export, "ROUNDED_AGREEMENT", 1.1)
    encoder_export.prepare("whole", folder, tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "encoder.json", "encoder.onnx", "tokenizer.json"
    ]  # fmt: skip
    assert ((Encoder(tmp_path / "whole").encode(TEXTS) * expected).sum(axis=1) > 0.9999).all()


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
    folder = encoders.cache_folder() / encoder.hash
    assert Encoder(folder, threads=3).encode(TEXTS * 5).tolist() == encoder.encode(TEXTS * 5).tolist()


def test_what_was_encoded_lately_is_not_encoded_again(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder.forget()
    first = encoder.encode_again(TEXTS[:3])
    asked: list[list[str]] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: (asked.append(list(texts)), encode(texts))[1])
    assert encoder.encode_again([TEXTS[4], *TEXTS[:3]])[1:].tolist() == first.tolist()
    assert asked == [[TEXTS[4]]]
    encoder.forget()
    encoder.encode_again(TEXTS[:1])
    assert asked[1:] == [TEXTS[:1]]


def test_a_text_over_the_limit_is_refused_not_cut(encoder: Encoder) -> None:
    encoder.encode(["word " * encoder.limit])
    with pytest.raises(ValueError, match="word pieces"):
        encoder.encode(["word " * (encoder.limit + 1)])


def test_an_unknown_encoder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    empty = tmp_path / "no-model"
    empty.mkdir()
    with pytest.raises(ValueError, match="no-model"):
        load_encoder(str(empty))


def test_of_several_preparations_at_once_one_wins_and_nothing_else_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    barrier = threading.Barrier(4)

    def export(name: str, folder: Path, target: Path, digest: str) -> None:
        (target / "encoder.json").write_text(digest)
        barrier.wait(timeout=10)

    monkeypatch.setattr(encoder_export, "_export", export)
    target = tmp_path / "cache" / "hash"
    workers = [threading.Thread(target=encoder_export.prepare, args=("n", tmp_path, target)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [path.name for path in target.parent.iterdir()] == ["hash"]
    assert (target / "encoder.json").read_text() == "hash"


def test_a_failed_preparation_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise ValueError("differs")

    monkeypatch.setattr(encoder_export, "_export", fail)
    with pytest.raises(ValueError, match="differs"):
        encoder_export.prepare("n", tmp_path, tmp_path / "cache" / "hash")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_hash_follows_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = encoder_export.content_hash(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert encoder_export.content_hash(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert encoder_export.content_hash(tmp_path) != before


def test_word_pieces_are_counted_as_if_each_unit_stood_among_others(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = ["unimaginable", "İstanbul", "\ud800x", "word", "e\u0301", "word"]
    counts = encoder.piece_counts(units)
    assert counts == [len(encoder.piece_starts(unit)) for unit in units]
    monkeypatch.setattr(encoders, "UNITS_COUNTED", 3)
    monkeypatch.setattr(encoder, "_counted", {"word": counts[3]})
    assert encoder.piece_counts(units) == counts and len(encoder._counted) == 0
    assert encoder.piece_counts(units[:3]) == counts[:3] and len(encoder._counted) == 3
