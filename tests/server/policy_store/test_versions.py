"""Versions: saved once, restored exactly, rejected if damaged, deleted if there are too many."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.classifier import artifact_io
from lethe.server.atomic_file import write_atomically
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store.load import LoadedPolicies, load_policies, manifest_hash
from lethe.server.policy_store.versions import HistoryError, Version, VersionHistory
from lethe.server.settings import Settings

P = "name: p\nartifact: small\naction: refuse\nthreshold: {value: %s}\n"


def loaded(settings: Settings, value: float) -> LoadedPolicies:
    (settings.policies / "p.yaml").write_text(P % value)
    return load_policies(settings, Metrics())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_is_restored_exactly(office: Settings) -> None:
    history = VersionHistory(office)
    first = history.save(loaded(office, 0.5), "start")
    policies, artifact = contents(office.policies), contents(office.artifacts / "small")
    (office.policies / "q.yaml").write_text("name: q\nartifact: small\naction: refuse\n")
    second = history.save(loaded(office, 0.6), "files")
    assert (first.number, second.number, second.by) == (1, 2, "files")
    assert [version.number for version in history.versions()] == [1, 2]
    for path in (office.artifacts / "small").iterdir():
        path.unlink()
    (office.artifacts / "small").rmdir()
    history.restore(first)
    assert contents(office.policies) == policies and contents(office.artifacts / "small") == artifact
    assert history.save(load_policies(office, Metrics()), "back", restores=1) == Version(
        3, history.get(3).time, "back", first.policies, first.artifacts, 1
    )


def test_equal_content_is_one_version_and_artifacts_are_linked(office: Settings) -> None:
    history = VersionHistory(office)
    first = history.save(loaded(office, 0.5), "start")
    assert history.save(loaded(office, 0.5), "again") == first
    history.save(loaded(office, 0.6), "files")
    kept = history.folder / "artifacts" / manifest_hash(office.artifacts / "small")
    assert [path.name for path in (history.folder / "artifacts").iterdir()] == [kept.name]
    assert (kept / "arrays.safetensors").samefile(office.artifacts / "small" / "arrays.safetensors")


def test_damaged_parts_are_not_restored(office: Settings) -> None:
    history = VersionHistory(office)
    first = history.save(loaded(office, 0.5), "start")
    (digest,) = first.artifacts.values()
    words = history.folder / "artifacts" / digest / "words.txt"
    write_atomically(words, b"other\n")
    artifact_io.save_artifact(artifact_io.load_artifact(office.artifacts / "small"), office.artifacts / "kept")
    write_atomically(office.artifacts / "small" / "manifest.json", b"{}")
    with pytest.raises(HistoryError, match="'small' of that version was changed"):
        history.restore(first)
    (digest,) = first.policies.values()
    write_atomically(history.folder / "policies" / digest, b"name: p\n")
    with pytest.raises(HistoryError, match=r"'p.yaml' of that version is missing or damaged"):
        history._saved_policy("p.yaml", digest)


def test_a_version_that_names_a_file_elsewhere_is_refused(office: Settings) -> None:
    history = VersionHistory(office)
    first = history.save(loaded(office, 0.5), "start")
    (digest,) = first.policies.values()
    with pytest.raises(HistoryError):
        history._saved_policy("../p.yaml", digest)


def test_an_unknown_version_names_the_saved_ones(office: Settings) -> None:
    history = VersionHistory(office)
    with pytest.raises(HistoryError, match=r"no version 7 .*saved: none"):
        history.get(7)
    history.save(loaded(office, 0.5), "start")
    with pytest.raises(HistoryError, match="saved: 1 to 1"):
        history.get(7)


def test_files_that_changed_after_loading_are_not_saved(office: Settings) -> None:
    history, old = VersionHistory(office), loaded(office, 0.5)
    loaded(office, 0.6)
    with pytest.raises(HistoryError, match="has changed since it was loaded"):
        history.save(old, "late")


def test_old_versions_are_deleted_with_their_parts(office: Settings) -> None:
    history = VersionHistory(office.model_copy(update={"history_keep": 2}))
    for value in (0.4, 0.5, 0.6):
        history.save(loaded(office, value), "files")
    assert [version.number for version in history.versions()] == [2, 3]
    assert len(list((history.folder / "policies").iterdir())) == 2
    history.restore(history.get(2))
    assert "0.5" in (office.policies / "p.yaml").read_text()
