from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lethe.classifier import artifact_io, shared_arrays
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.judge import Judge
from lethe.classifier.records import Record
from lethe.classifier.shared_arrays import SHARED_FILE, STORE
from lethe.classifier.training import incremental

CHANGE = [{"change": "add", "items": [0]}]
ROWS: list[Record] = [{"prompt": f"Which bell did Orsolya Vank{i} cast?", "answer": f"Old Greta{i}."} for i in range(4)]


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, each counted once."""
    return sum({path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}.values())


@given(own=st.sets(st.integers(0, 10_000)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_split_is_joined_to_the_same_artifact(
    own: set[int], artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counts = np.ones_like(artifact.word_counts)
    counts[[row % len(counts) for row in own]] = 0
    changed = replace(
        artifact,
        arrays={**artifact.arrays, "word_counts": counts},
        manifest=replace(artifact.manifest, changes=CHANGE),
    )
    folder = tmp_path_factory.mktemp("split") / "a"
    artifact_io.save_artifact(changed, folder)
    loaded = artifact_io.load_artifact(folder)
    assert (loaded.words, loaded.items, loaded.manifest) == (changed.words, changed.items, changed.manifest)
    assert set(loaded.arrays) == set(changed.arrays) and len(loaded.arrays) == len(changed.arrays)
    for name, array in changed.arrays.items():
        assert np.array_equal(loaded.arrays[name], array) and loaded.arrays[name].dtype == array.dtype


def test_changed_artifacts_of_one_fit_are_one_file(artifact: Artifact, encoder: Encoder, tmp_path: Path) -> None:
    grown = [incremental.add_items(artifact, [row], encoder) for row in ROWS]
    fewer = incremental.remove_items(grown[0], range(len(artifact.items)))
    for number, one in enumerate([*grown, fewer]):
        artifact_io.save_artifact(one, tmp_path / str(number))
        if number == 0:
            first = disk_bytes(tmp_path)
    assert (tmp_path / "0" / SHARED_FILE).samefile(tmp_path / "4" / SHARED_FILE)
    assert (disk_bytes(tmp_path) - first) / 4 < 40_000 < first / 50
    loaded = [artifact_io.load_artifact(tmp_path / str(number)) for number in range(5)]
    assert all(one.arrays["counter"] is loaded[0].arrays["counter"] for one in loaded)
    texts = ["Which bell did Orsolya Vank0 cast?", ROWS[1]["prompt"], "Where did Orvan Teldric grow up?"]
    names = [str(number) for number in range(5)]
    before = Judge(dict(zip(names, [*grown, fewer], strict=True)), encoder).judge(texts)
    assert Judge(dict(zip(names, loaded, strict=True)), encoder).judge(texts) == before


def test_the_store_loses_what_no_artifact_uses(artifact: Artifact, tmp_path: Path) -> None:
    changed = replace(artifact, manifest=replace(artifact.manifest, changes=CHANGE))
    other = replace(changed, arrays={**changed.arrays, "head": changed.arrays["head"] + 1})
    artifact_io.save_artifact(changed, tmp_path / "a")
    artifact_io.save_artifact(other, tmp_path / "b")
    assert len(list((tmp_path / STORE).iterdir())) == 2
    artifact_io.save_artifact(other, tmp_path / "a")
    artifact_io.save_artifact(other, tmp_path / "b")
    assert len(list((tmp_path / STORE).iterdir())) == 1


@pytest.mark.parametrize("damaged", ["store", "folder"])
def test_a_damaged_shared_file_is_refused_and_not_used_again(damaged: str, artifact: Artifact, tmp_path: Path) -> None:
    changed = replace(artifact, manifest=replace(artifact.manifest, changes=CHANGE))
    artifact_io.save_artifact(changed, tmp_path / "a")
    [entry] = (tmp_path / STORE).iterdir()
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    (entry if damaged == "store" else tmp_path / "a" / SHARED_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"a: {SHARED_FILE}: differs"):
        artifact_io.load_artifact(tmp_path / "a")
    artifact_io.save_artifact(changed, tmp_path / "b")
    artifact_io.load_artifact(tmp_path / "b")


def test_a_file_system_without_hard_links_gets_copies(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError("no hard links")

    monkeypatch.setattr(shared_arrays.os, "link", fail)
    changed = replace(artifact, manifest=replace(artifact.manifest, changes=CHANGE))
    for name in ("a", "b"):
        artifact_io.save_artifact(changed, tmp_path / name)
        assert artifact_io.load_artifact(tmp_path / name).words == artifact.words


def test_words_that_do_not_fit_their_rows_are_refused(artifact: Artifact) -> None:
    own, own_words, shared = shared_arrays.split_artifact(artifact)
    part = shared_arrays.read_shared_part(shared)
    assert shared_arrays.join_words(own, own_words, part) == artifact.words
    for rows in ([], [-1], [0, 0], [len(artifact.words)]):
        wrong = {**own, "own_word_rows": np.array(rows, dtype=np.int32)}
        with pytest.raises(TypeError, match="fit"):
            shared_arrays.join_words(wrong, ("word",) * max(len(rows), 1), part)


def test_other_users_can_not_read_what_is_to_be_forgotten(artifact: Artifact, tmp_path: Path) -> None:
    for changes in ([], CHANGE):
        manifest = replace(artifact.manifest, changes=changes)
        artifact_io.save_artifact(replace(artifact, manifest=manifest), tmp_path / "a")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()}
        assert set(modes.values()) == {0o640} and ("shared.safetensors" in modes) is bool(changes)
