"""Versions: kept once, brought back whole, refused when they were tampered with, dropped when there are too many."""

from __future__ import annotations

from pathlib import Path

import pytest

from lethe.classifier import artifact as artifacts_io
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store.load import Loaded, load, stamp
from lethe.server.policy_store.versions import History, HistoryError, Version, write
from lethe.server.settings import Settings

P = "name: p\nartifact: small\naction: refuse\nthreshold: {value: %s}\n"


def loaded(settings: Settings, value: float) -> Loaded:
    (settings.policies / "p.yaml").write_text(P % value)
    return load(settings, Metrics())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_comes_back_as_it_was(office: Settings) -> None:
    history = History(office)
    first = history.keep(loaded(office, 0.5), "start")
    policies, artifact = contents(office.policies), contents(office.artifacts / "small")
    (office.policies / "q.yaml").write_text("name: q\nartifact: small\naction: refuse\n")
    second = history.keep(loaded(office, 0.6), "files")
    assert (first.number, second.number, second.by) == (1, 2, "files")
    assert [version.number for version in history.versions()] == [1, 2]
    for path in (office.artifacts / "small").iterdir():
        path.unlink()
    (office.artifacts / "small").rmdir()
    history.restore(first)
    assert contents(office.policies) == policies and contents(office.artifacts / "small") == artifact
    assert history.keep(load(office, Metrics()), "back", restores=1) == Version(
        3, history.get(3).time, "back", first.policies, first.artifacts, 1
    )


def test_the_same_content_is_one_version_and_an_artifact_takes_no_space_twice(office: Settings) -> None:
    history = History(office)
    first = history.keep(loaded(office, 0.5), "start")
    assert history.keep(loaded(office, 0.5), "again") == first
    history.keep(loaded(office, 0.6), "files")
    kept = history.folder / "artifacts" / stamp(office.artifacts / "small")
    assert [path.name for path in (history.folder / "artifacts").iterdir()] == [kept.name]
    assert (kept / "arrays.safetensors").samefile(office.artifacts / "small" / "arrays.safetensors")


def test_what_was_tampered_with_does_not_come_back(office: Settings) -> None:
    history = History(office)
    first = history.keep(loaded(office, 0.5), "start")
    (digest,) = first.artifacts.values()
    words = history.folder / "artifacts" / digest / "words.txt"
    write(words, b"other\n")
    artifacts_io.save(artifacts_io.load(office.artifacts / "small"), office.artifacts / "kept")
    write(office.artifacts / "small" / "manifest.json", b"{}")
    with pytest.raises(HistoryError, match="'small' of that version was changed"):
        history.restore(first)
    (digest,) = first.policies.values()
    write(history.folder / "policies" / digest, b"name: p\n")
    with pytest.raises(HistoryError, match=r"'p.yaml' of that version is not kept whole"):
        history._kept_policy("p.yaml", digest)


def test_a_version_that_names_a_file_elsewhere_is_refused(office: Settings) -> None:
    history = History(office)
    first = history.keep(loaded(office, 0.5), "start")
    (digest,) = first.policies.values()
    with pytest.raises(HistoryError):
        history._kept_policy("../p.yaml", digest)


def test_a_version_that_is_not_kept_says_which_are(office: Settings) -> None:
    history = History(office)
    with pytest.raises(HistoryError, match=r"no version 7 .*kept: none"):
        history.get(7)
    history.keep(loaded(office, 0.5), "start")
    with pytest.raises(HistoryError, match="kept: 1 to 1"):
        history.get(7)


def test_what_was_loaded_is_kept_and_nothing_else(office: Settings) -> None:
    history, old = History(office), loaded(office, 0.5)
    loaded(office, 0.6)
    with pytest.raises(HistoryError, match="has changed meanwhile"):
        history.keep(old, "late")


def test_old_versions_go_with_what_only_they_needed(office: Settings) -> None:
    history = History(office.model_copy(update={"history_keep": 2}))
    for value in (0.4, 0.5, 0.6):
        history.keep(loaded(office, value), "files")
    assert [version.number for version in history.versions()] == [2, 3]
    assert len(list((history.folder / "policies").iterdir())) == 2
    history.restore(history.get(2))
    assert "0.5" in (office.policies / "p.yaml").read_text()
