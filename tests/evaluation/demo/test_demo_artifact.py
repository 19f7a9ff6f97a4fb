"""The demo's shipped artifact belongs to the shipped data and the present format."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.classifier import records
from lethe.classifier.artifact_io import load_artifact
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.training.fit import data_hash
from lethe.evaluation.demo import demo_artifact
from lethe.evaluation.demo.demo_artifact import ARTIFACT, SHIPPED_ARTIFACTS


def test_the_shipped_artifact_was_fitted_on_the_shipped_data(tmp_path: Path) -> None:
    # Loading fails for an artifact of another format.
    manifest = load_artifact(SHIPPED_ARTIFACTS / ARTIFACT).manifest
    forget, retain = demo_artifact.write_data(tmp_path)
    assert manifest.data_hash == data_hash(records.read_records(forget), records.read_records(retain))
    assert manifest.encoder_hash == load_encoder().hash
    assert (manifest.seed, manifest.changes, manifest.tuned) == (0, [], [])


def test_the_shipped_files_are_small_enough_for_a_repository() -> None:
    assert sum(path.stat().st_size for path in (SHIPPED_ARTIFACTS / ARTIFACT).iterdir()) < 25 << 20


def test_a_changed_copy_is_replaced_by_the_shipped_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_artifact, "BUILD", tmp_path)
    monkeypatch.setattr(demo_artifact, "ARTIFACTS", tmp_path / "artifacts")
    monkeypatch.setattr(demo_artifact, "run_fit", lambda *_: pytest.fail("fitted although the artifact is shipped"))
    demo_artifact.prepare_artifact()
    copy = tmp_path / "artifacts" / ARTIFACT
    first = load_artifact(copy)
    inode = copy.stat().st_ino
    demo_artifact.prepare_artifact()
    assert copy.stat().st_ino == inode
    (copy / "manifest.json").write_text("{}")
    demo_artifact.prepare_artifact()
    assert load_artifact(copy).manifest == first.manifest
    assert {path.name for path in copy.parent.iterdir()} == {ARTIFACT, ".lethe.lock"}
