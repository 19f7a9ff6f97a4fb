from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import Judge
from lethe.classifier.training import incremental


def test_saved_and_loaded_gives_the_same_scores(artifact: Artifact, encoder: Encoder, tmp_path: Path) -> None:
    artifact_io.save_artifact(artifact, tmp_path / "a")
    loaded = artifact_io.load_artifact(tmp_path / "a")
    texts = ["Where did Orvan Teldric grow up?", "What is the capital of Peru?"]
    assert Judge({"a": loaded}, encoder).judge(texts) == Judge({"a": artifact}, encoder).judge(texts)
    assert (loaded.manifest, loaded.items, loaded.words) == (
        artifact.manifest,
        artifact.items,
        artifact.words,
    )


def test_saving_again_replaces_the_folder_and_leaves_no_other_files(artifact: Artifact, tmp_path: Path) -> None:
    artifact_io.save_artifact(artifact, tmp_path / "a")
    artifact_io.save_artifact(replace(artifact, manifest=replace(artifact.manifest, seed=9)), tmp_path / "a")
    assert artifact_io.load_artifact(tmp_path / "a").manifest.seed == 9
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_save_keeps_the_old_artifact(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact_io.save_artifact(artifact, tmp_path / "a")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(artifact_io.tensors, "save_file", fail)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="disk full"):
            artifact_io.save_artifact(artifact, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    artifact_io.load_artifact(tmp_path / "a")


def test_a_folder_that_is_not_an_artifact_is_not_overwritten(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="not an artifact"):
        artifact_io.save_artifact(artifact, tmp_path)


@pytest.mark.parametrize("name", ["arrays.safetensors", "items.jsonl", "words.txt"])
def test_a_changed_file_is_refused_by_name(name: str, artifact: Artifact, tmp_path: Path) -> None:
    artifact_io.save_artifact(artifact, tmp_path / "a")
    content = bytearray((tmp_path / "a" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"a: {name}: differs"):
        artifact_io.load_artifact(tmp_path / "a")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("format", 4, "format 4, but this version reads format 5: fit again"),
        ("seed", "x", "seed is not of type int"),
        ("extra", 1, "malformed"),
        ("subjects", [{"names": []}], "malformed: 'words'"),
        ("subjects", ["Ada Example"], "malformed"),
    ],
)
def test_a_changed_manifest_is_refused(
    key: str, value: object, reason: str, artifact: Artifact, tmp_path: Path
) -> None:
    artifact_io.save_artifact(artifact, tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=reason):
        artifact_io.load_artifact(tmp_path / "a")


def test_a_missing_file_is_named(artifact: Artifact, tmp_path: Path) -> None:
    artifact_io.save_artifact(artifact, tmp_path / "a")
    (tmp_path / "a" / "words.txt").unlink()
    with pytest.raises(ValueError, match="words.txt"):
        artifact_io.load_artifact(tmp_path / "a")


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
    artifact_io.save_artifact(replace(artifact, arrays={**artifact.arrays, name: array}), tmp_path / "a")
    with pytest.raises(ValueError, match=reason):
        artifact_io.load_artifact(tmp_path / "a")


def test_a_large_file_is_mapped_and_checked(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact_io.save_artifact(artifact, tmp_path / "a")
    read = artifact_io.load_artifact(tmp_path / "a")
    monkeypatch.setattr(artifact_io, "MAPPED_FROM", 1 << 10)
    mapped = artifact_io.load_artifact(tmp_path / "a")
    assert (mapped.items, mapped.words) == (read.items, read.words)
    for name, array in read.arrays.items():
        assert np.array_equal(mapped.arrays[name], array) and mapped.arrays[name].dtype == array.dtype
    # A mapped artifact stays readable after its folder is replaced.
    artifact_io.save_artifact(replace(mapped, manifest=replace(mapped.manifest, seed=9)), tmp_path / "a")
    assert np.array_equal(mapped.arrays["index"], read.arrays["index"])
    wrong = np.zeros_like(artifact.arrays["index"], dtype=np.float32)
    artifact_io.save_artifact(replace(artifact, arrays={**artifact.arrays, "index": wrong}), tmp_path / "b")
    with pytest.raises(ValueError, match="malformed: index is F32, not float16"):
        artifact_io.load_artifact(tmp_path / "b")


def test_cells_that_do_not_cover_all_rows_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    count, width = artifact.arrays["index"].shape
    centres = np.zeros((1, width), dtype=np.float16)
    for starts, reason in (([0, count - 1], "cell_starts does not rise"), ([0, 1, count], "cell_starts is int64")):
        arrays = {**artifact.arrays, "cell_centres": centres, "cell_starts": np.array(starts)}
        artifact_io.save_artifact(replace(artifact, arrays=arrays), tmp_path / "a")
        with pytest.raises(ValueError, match=reason):
            artifact_io.load_artifact(tmp_path / "a")
    only = {**artifact.arrays, "cell_centres": centres}
    artifact_io.save_artifact(replace(artifact, arrays=only), tmp_path / "a")
    with pytest.raises(ValueError, match="missing or unknown"):
        artifact_io.load_artifact(tmp_path / "a")


def test_artifacts_of_one_fit_share_its_arrays_in_memory(artifact: Artifact, encoder: Encoder, tmp_path: Path) -> None:
    grown = incremental.add_items(
        artifact, [{"prompt": "Which bell did Orsolya Vank cast?", "answer": "Old Greta."}], encoder
    )
    artifact_io.save_artifact(artifact, tmp_path / "one")
    artifact_io.save_artifact(grown, tmp_path / "other")
    one, other = artifact_io.load_artifact(tmp_path / "one"), artifact_io.load_artifact(tmp_path / "other")
    for name, array in one.arrays.items():
        assert np.array_equal(array, artifact.arrays[name]) and np.array_equal(other.arrays[name], grown.arrays[name])
        assert array.nbytes < artifact_io.SHARED_FROM or not array.flags.writeable
    same = [name for name, array in one.arrays.items() if array is other.arrays[name]]
    assert {"word_weights", "counter", "index"} <= set(same) and "word_vectors" not in same
    assert one.words == artifact.words and all(a is b for a, b in zip(one.words, other.words, strict=False))
    reference = weakref.ref(one.arrays["counter"])
    del one, array
    assert reference() is other.arrays["counter"]
    del other
    assert reference() is None
