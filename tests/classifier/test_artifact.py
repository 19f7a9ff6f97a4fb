from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lethe.classifier import artifact as artifacts
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import Judge
from lethe.classifier.training import incremental


def test_saved_and_loaded_gives_the_same_scores(artifact: Artifact, encoder: Encoder, tmp_path: Path) -> None:
    artifacts.save(artifact, tmp_path / "a")
    loaded = artifacts.load(tmp_path / "a")
    texts = ["Where did Orvan Teldric grow up?", "What is the capital of Peru?"]
    assert Judge({"a": loaded}, encoder).judge(texts) == Judge({"a": artifact}, encoder).judge(texts)
    assert (loaded.manifest, loaded.items, loaded.words) == (
        artifact.manifest,
        artifact.items,
        artifact.words,
    )


def test_saving_again_replaces_and_leaves_nothing_else(artifact: Artifact, tmp_path: Path) -> None:
    artifacts.save(artifact, tmp_path / "a")
    artifacts.save(replace(artifact, manifest=replace(artifact.manifest, seed=9)), tmp_path / "a")
    assert artifacts.load(tmp_path / "a").manifest.seed == 9
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_save_leaves_what_stood_there(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts.save(artifact, tmp_path / "a")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(artifacts.tensors, "save_file", fail)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="disk full"):
            artifacts.save(artifact, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    artifacts.load(tmp_path / "a")


def test_a_folder_that_is_no_artifact_is_not_overwritten(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="not an artifact"):
        artifacts.save(artifact, tmp_path)


@pytest.mark.parametrize("name", ["arrays.safetensors", "items.jsonl", "words.txt"])
def test_a_changed_file_is_refused_by_name(name: str, artifact: Artifact, tmp_path: Path) -> None:
    artifacts.save(artifact, tmp_path / "a")
    content = bytearray((tmp_path / "a" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"a: {name}: differs"):
        artifacts.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("format", 99, "not of format"), ("seed", "x", "seed is not of type int"), ("extra", 1, "malformed")],
)
def test_a_changed_manifest_is_refused(
    key: str, value: object, reason: str, artifact: Artifact, tmp_path: Path
) -> None:
    artifacts.save(artifact, tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=reason):
        artifacts.load(tmp_path / "a")


def test_a_missing_file_is_named(artifact: Artifact, tmp_path: Path) -> None:
    artifacts.save(artifact, tmp_path / "a")
    (tmp_path / "a" / "words.txt").unlink()
    with pytest.raises(ValueError, match="words.txt"):
        artifacts.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("head", np.zeros(3, dtype=np.float32), "head is float32"),
        ("intercept", np.array([np.nan]), "aren't finite"),
        ("index_items", np.array([], dtype=np.int32), "index_items"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    name: str, array: np.ndarray, reason: str, artifact: Artifact, tmp_path: Path
) -> None:
    artifacts.save(replace(artifact, arrays={**artifact.arrays, name: array}), tmp_path / "a")
    with pytest.raises(ValueError, match=reason):
        artifacts.load(tmp_path / "a")


def test_a_large_file_is_mapped_and_checked_as_any_other(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts.save(artifact, tmp_path / "a")
    read = artifacts.load(tmp_path / "a")
    monkeypatch.setattr(artifacts, "MAPPED_FROM", 1 << 10)
    mapped = artifacts.load(tmp_path / "a")
    assert (mapped.items, mapped.words) == (read.items, read.words)
    for name, array in read.arrays.items():
        assert np.array_equal(mapped.arrays[name], array) and mapped.arrays[name].dtype == array.dtype
    # An artifact that is changed while another one stands in its place goes on as it was.
    artifacts.save(replace(mapped, manifest=replace(mapped.manifest, seed=9)), tmp_path / "a")
    assert np.array_equal(mapped.arrays["index"], read.arrays["index"])
    wrong = np.zeros_like(artifact.arrays["index"], dtype=np.float32)
    artifacts.save(replace(artifact, arrays={**artifact.arrays, "index": wrong}), tmp_path / "b")
    with pytest.raises(ValueError, match="malformed: index is F32, not float16"):
        artifacts.load(tmp_path / "b")


def test_cells_that_do_not_hold_all_rows_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    count, width = artifact.arrays["index"].shape
    centres = np.zeros((1, width), dtype=np.float16)
    for starts, reason in (([0, count - 1], "cell_starts are no starts"), ([0, 1, count], "cell_starts is int64")):
        arrays = {**artifact.arrays, "cell_centres": centres, "cell_starts": np.array(starts)}
        artifacts.save(replace(artifact, arrays=arrays), tmp_path / "a")
        with pytest.raises(ValueError, match=reason):
            artifacts.load(tmp_path / "a")
    only = {**artifact.arrays, "cell_centres": centres}
    artifacts.save(replace(artifact, arrays=only), tmp_path / "a")
    with pytest.raises(ValueError, match="missing or unknown"):
        artifacts.load(tmp_path / "a")


def test_artifacts_with_the_same_fit_hold_it_once_and_let_it_go(
    artifact: Artifact, encoder: Encoder, tmp_path: Path
) -> None:
    grown = incremental.add(
        artifact, [{"prompt": "Which bell did Orsolya Vank cast?", "answer": "Old Greta."}], encoder
    )
    artifacts.save(artifact, tmp_path / "one")
    artifacts.save(grown, tmp_path / "other")
    one, other = artifacts.load(tmp_path / "one"), artifacts.load(tmp_path / "other")
    for name, array in one.arrays.items():
        assert np.array_equal(array, artifact.arrays[name]) and np.array_equal(other.arrays[name], grown.arrays[name])
        assert array.nbytes < artifacts.SHARED_FROM or not array.flags.writeable
    same = [name for name, array in one.arrays.items() if array is other.arrays[name]]
    assert {"word_weights", "counter", "index"} <= set(same) and "word_vectors" not in same
    assert one.words == artifact.words and all(a is b for a, b in zip(one.words, other.words, strict=False))
    held = weakref.ref(one.arrays["counter"])
    del one, array
    assert held() is other.arrays["counter"]
    del other
    assert held() is None
