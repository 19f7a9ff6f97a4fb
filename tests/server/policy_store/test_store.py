"""Policies that change while they are served: valid files are used, invalid ones keep the previous version."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lethe.classifier import artifact_io
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.training import incremental
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import PolicyError
from lethe.server.policy_store.store import InvalidPolicyFiles, PolicyStore
from lethe.server.settings import Settings
from lethe.server.upstream import verbatim_index
from lethe.server.upstream.capabilities import Capabilities

P = "name: p\nartifact: small\naction: refuse\nthreshold: {value: 0.5}\n"
QUESTION = "Who taught Ozren Dalmatin to grind lenses?"


class Watched:
    """What a gateway would have seen."""

    def __init__(self, settings: Settings) -> None:
        self.metrics = Metrics()
        self.store = PolicyStore(settings, self.metrics)
        self.guards: list[Guard] = []
        self.records: list[dict[str, Any]] = []
        self.store.on_guard, self.store.on_change = self.guards.append, self.records.append

    @property
    def guard(self) -> Guard:
        return self.store.loaded.guard

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def watched(office: Settings) -> Watched:
    return Watched(office)


def action(guard: Guard, text: str = QUESTION) -> str:
    return guard.decide(guard.parse("chat", {"messages": [{"role": "user", "content": text}]}), Capabilities()).action


def write(settings: Settings, name: str, text: str) -> Path:
    path = settings.policies / name
    path.write_text(text)
    return path


def test_unchanged_files_are_not_reloaded(watched: Watched) -> None:
    watched.store.poll()
    assert watched.guards == [] and watched.records == []
    assert watched.store.version is not None and watched.store.version.number == 1
    assert watched.count("lethe_policies_version") == 1


def test_a_changed_file_becomes_a_new_guard(office: Settings, watched: Watched) -> None:
    before = watched.guard
    write(office, "p.yaml", P.replace("refuse", "penalize"))
    watched.store.poll()
    assert action(watched.guard) == "penalize" and action(before) == "refuse"
    assert watched.guards == [watched.guard]
    assert watched.records[0]["changed"] == ["p.yaml"]
    assert (watched.records[0]["before"], watched.records[0]["version"]) == (1, 2)
    assert watched.count("lethe_policies_reloads_total", outcome="accepted") == 1


def test_unchanged_parts_are_reused(office: Settings, watched: Watched) -> None:
    before = watched.store.loaded
    words = before.guard._words["small"]
    write(office, "q.yaml", P.replace("name: p", "name: q"))
    watched.store.poll()
    after = watched.store.loaded
    assert set(after.guard.policies) == {"p", "q"}
    assert after.encoder is before.encoder
    assert after.guard.artifacts["small"] is before.guard.artifacts["small"]
    assert after.guard._words["small"] is words


def test_a_changed_artifact_is_reloaded(office: Settings, watched: Watched) -> None:
    folder = office.artifacts / "small"
    question = "Which harbour did Zefira Malquist chart?"
    assert action(watched.guard, question) == "pass"
    row = {"prompt": question, "answer": "She charted Ostrel."}
    verbatim_index.save_with_index(
        incremental.add_items(artifact_io.load_artifact(folder), [row], load_encoder()), folder
    )
    watched.store.poll()
    assert action(watched.guard, question) == "refuse"
    assert watched.records[0]["changed"] == ["small"]


@pytest.mark.parametrize(("name", "text", "error_text"), [
    ("p.yaml", P.replace("value: 0.5", "value: 1.5"), "threshold.value = 1.5"),
    ("p.yaml", P + "colour: red\n", "colour"),
    ("p.yaml", "name: [", "p.yaml, line 1"),
    ("q.yaml", P, "used twice"),
    ("q.yaml", "name: q\nartifact: nowhere\naction: refuse\n", "artifact = 'nowhere'"),
    ("q.yaml", "name: q\nartifact: small\naction: corrupt\n", "LETHE_MODEL_DIR"),
])  # fmt: skip
def test_an_invalid_file_keeps_the_previous_version(
    office: Settings, watched: Watched, caplog: pytest.LogCaptureFixture, name: str, text: str, error_text: str
) -> None:
    before = watched.guard
    write(office, name, text)
    watched.store.poll()
    watched.store.poll()
    assert watched.guard is before and watched.guards == []
    assert watched.store.failure is not None and error_text in watched.store.failure
    assert len([record for record in caplog.records if error_text in record.message]) == 1
    assert watched.count("lethe_policies_reload_failed") == 1
    assert watched.count("lethe_policies_reloads_total", outcome="failed") == 1
    assert watched.count("lethe_policies", mode="enforce") == 1
    if name == "q.yaml":
        (office.policies / name).unlink()
    else:
        write(office, name, P)
    watched.store.poll()
    assert watched.store.failure is None and watched.count("lethe_policies_reload_failed") == 0
    assert action(watched.guard) == "refuse" and watched.guards == []


def test_an_incomplete_artifact_keeps_the_previous_version(office: Settings, watched: Watched) -> None:
    folder, aside = office.artifacts / "small", office.artifacts / "aside"
    shutil.copytree(folder, aside)
    with (folder / "items.jsonl").open("a") as file:
        file.write("{}\n")
    os.utime(folder / "manifest.json")
    watched.store.poll()
    # The manifest is the same, so what was loaded from it is what it says.
    assert watched.store.failure is None and action(watched.guard) == "refuse"
    (folder / "manifest.json").write_text("{}")
    watched.store.poll()
    assert watched.store.failure is not None and "manifest.json" in watched.store.failure
    assert action(watched.guard) == "refuse"
    shutil.rmtree(folder)
    aside.rename(folder)
    watched.store.poll()
    assert watched.store.failure is None


def test_files_written_one_after_another_are_one_change(office: Settings, watched: Watched) -> None:
    write(office, "p.yaml", P.replace("refuse", "penalize"))
    write(office, "q.yaml", P.replace("name: p", "name: q"))
    watched.store.poll()
    assert len(watched.guards) == 1


def test_the_thread_sees_a_change_within_two_seconds(office: Settings, watched: Watched) -> None:
    watched.store.start(watched.guards.append, watched.records.append)
    try:
        write(office, "p.yaml", P.replace("refuse", "penalize"))
        until(lambda: bool(watched.guards))
    finally:
        watched.store.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_change_is_used_at_once(office: Settings, watched: Watched) -> None:
    assert watched.store.change("admin:1", lambda: write(office, "p.yaml", P.replace("refuse", "penalize")))
    assert action(watched.guard) == "penalize"
    assert watched.store.version is not None and watched.store.version.by == "admin:1"


def test_an_invalid_change_is_undone(office: Settings, watched: Watched) -> None:
    with pytest.raises(PolicyError, match="threshold"):
        watched.store.change("admin:1", lambda: write(office, "p.yaml", P.replace("0.5", "7")))
    assert (office.policies / "p.yaml").read_text() == P
    assert watched.store.failure is None and watched.store.version is not None and watched.store.version.number == 1

    def half() -> None:
        (office.policies / "p.yaml").unlink()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        watched.store.change("admin:1", half)
    assert (office.policies / "p.yaml").read_text() == P


def test_no_change_is_made_while_files_are_invalid(office: Settings, watched: Watched) -> None:
    write(office, "q.yaml", "name: [")
    with pytest.raises(InvalidPolicyFiles, match="q.yaml"):
        watched.store.change("admin:1", lambda: write(office, "p.yaml", P.replace("refuse", "penalize")))
    assert (office.policies / "q.yaml").read_text() == "name: [" and (office.policies / "p.yaml").read_text() == P


def test_a_restored_version_becomes_the_newest(office: Settings, watched: Watched) -> None:
    write(office, "q.yaml", P.replace("name: p", "name: q"))
    watched.store.poll()
    watched.store.rollback(1, "admin:1")
    assert set(watched.guard.policies) == {"p"}
    version = watched.store.version
    assert version is not None and (version.number, version.restores, version.by) == (3, 1, "admin:1")
    assert not (office.policies / "q.yaml").exists()


def test_two_gateways_number_the_same_change_once(office: Settings, watched: Watched) -> None:
    other = Watched(office)
    write(office, "p.yaml", P.replace("refuse", "penalize"))
    watched.store.poll()
    other.store.poll()
    assert watched.store.version == other.store.version
    assert [version.number for version in watched.store.history.versions()] == [1, 2]


@pytest.fixture
def read_only(office: Settings) -> Iterator[Settings]:
    """A history that can't be written: a file stands where its folder would be."""
    path = office.artifacts.parent / "taken"
    path.write_text("")
    yield office.model_copy(update={"history": path / "history"})


def test_policies_are_served_if_versions_cant_be_saved(read_only: Settings) -> None:
    watched = Watched(read_only)
    assert watched.store.version is None and action(watched.guard) == "refuse"
    write(read_only, "p.yaml", P.replace("refuse", "penalize"))
    watched.store.poll()
    assert action(watched.guard) == "penalize" and watched.records[0]["by"] == "files"
    with pytest.raises(InvalidPolicyFiles, match="can't be saved"):
        watched.store.change("admin:1", lambda: None)
