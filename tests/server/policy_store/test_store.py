"""Policies that change while they are served: what is good goes into force, what is bad leaves the old in force."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lethe.classifier import artifact as artifacts_io
from lethe.classifier.encoder.encoder import load_encoder
from lethe.classifier.training import incremental
from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import PolicyError
from lethe.server.policy_store.store import Live, Unusable
from lethe.server.settings import Settings
from lethe.server.upstream import verbatim_index

P = "name: p\nartifact: small\naction: refuse\nthreshold: {value: 0.5}\n"
QUESTION = "Who taught Ozren Dalmatin to grind lenses?"


class Watched:
    """What a gateway would have seen."""

    def __init__(self, settings: Settings) -> None:
        self.metrics = Metrics()
        self.live = Live(settings, self.metrics)
        self.guards: list[Guard] = []
        self.records: list[dict[str, Any]] = []
        self.live.serve, self.live.audit = self.guards.append, self.records.append

    @property
    def guard(self) -> Guard:
        return self.live.loaded.guard

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def watched(office: Settings) -> Watched:
    return Watched(office)


def action(guard: Guard, text: str = QUESTION) -> str:
    return guard.examine(guard.read("chat", {"messages": [{"role": "user", "content": text}]})).action


def write(settings: Settings, name: str, text: str) -> Path:
    path = settings.policies / name
    path.write_text(text)
    return path


def test_nothing_is_read_again_while_nothing_changes(watched: Watched) -> None:
    watched.live.poll()
    assert watched.guards == [] and watched.records == []
    assert watched.live.version is not None and watched.live.version.number == 1
    assert watched.count("lethe_policies_version") == 1


def test_a_changed_file_goes_into_force_as_a_new_guard(office: Settings, watched: Watched) -> None:
    before = watched.guard
    write(office, "p.yaml", P.replace("refuse", "penalize"))
    watched.live.poll()
    assert action(watched.guard) == "penalize" and action(before) == "refuse"
    assert watched.guards == [watched.guard]
    assert watched.records[0]["changed"] == ["p.yaml"]
    assert (watched.records[0]["before"], watched.records[0]["version"]) == (1, 2)
    assert watched.count("lethe_policies_reloads_total", outcome="accepted") == 1


def test_what_does_not_change_is_kept(office: Settings, watched: Watched) -> None:
    before = watched.live.loaded
    words = before.guard._words["small"]
    write(office, "q.yaml", P.replace("name: p", "name: q"))
    watched.live.poll()
    after = watched.live.loaded
    assert set(after.guard.policies) == {"p", "q"}
    assert after.encoder is before.encoder
    assert after.guard.artifacts["small"] is before.guard.artifacts["small"]
    assert after.guard._words["small"] is words


def test_an_artifact_that_changes_is_read_again(office: Settings, watched: Watched) -> None:
    folder = office.artifacts / "small"
    question = "Which harbour did Zefira Malquist chart?"
    assert action(watched.guard, question) == "pass"
    row = {"prompt": question, "answer": "She charted Ostrel."}
    verbatim_index.save(incremental.add(artifacts_io.load(folder), [row], load_encoder()), folder)
    watched.live.poll()
    assert action(watched.guard, question) == "refuse"
    assert watched.records[0]["changed"] == ["small"]


@pytest.mark.parametrize(("name", "text", "said"), [
    ("p.yaml", P.replace("value: 0.5", "value: 1.5"), "threshold.value = 1.5"),
    ("p.yaml", P + "colour: red\n", "colour"),
    ("p.yaml", "name: [", "p.yaml, line 1"),
    ("q.yaml", P, "used twice"),
    ("q.yaml", "name: q\nartifact: nowhere\naction: refuse\n", "artifact = 'nowhere'"),
    ("q.yaml", "name: q\nartifact: small\naction: corrupt\n", "LETHE_MODEL_DIR"),
])  # fmt: skip
def test_a_bad_file_leaves_the_old_in_force_and_says_so(
    office: Settings, watched: Watched, caplog: pytest.LogCaptureFixture, name: str, text: str, said: str
) -> None:
    before = watched.guard
    write(office, name, text)
    watched.live.poll()
    watched.live.poll()
    assert watched.guard is before and watched.guards == []
    assert watched.live.failed is not None and said in watched.live.failed
    assert len([record for record in caplog.records if said in record.message]) == 1
    assert watched.count("lethe_policies_reload_failed") == 1
    assert watched.count("lethe_policies_reloads_total", outcome="failed") == 1
    assert watched.count("lethe_policies", mode="enforce") == 1
    if name == "q.yaml":
        (office.policies / name).unlink()
    else:
        write(office, name, P)
    watched.live.poll()
    assert watched.live.failed is None and watched.count("lethe_policies_reload_failed") == 0
    assert action(watched.guard) == "refuse" and watched.guards == []


def test_a_torn_artifact_leaves_the_old_in_force_until_it_is_whole(office: Settings, watched: Watched) -> None:
    folder, aside = office.artifacts / "small", office.artifacts / "aside"
    shutil.copytree(folder, aside)
    with (folder / "items.jsonl").open("a") as file:
        file.write("{}\n")
    os.utime(folder / "manifest.json")
    watched.live.poll()
    # The manifest is the same, so what was loaded from it is what it says.
    assert watched.live.failed is None and action(watched.guard) == "refuse"
    (folder / "manifest.json").write_text("{}")
    watched.live.poll()
    assert watched.live.failed is not None and "manifest.json" in watched.live.failed
    assert action(watched.guard) == "refuse"
    shutil.rmtree(folder)
    aside.rename(folder)
    watched.live.poll()
    assert watched.live.failed is None


def test_files_written_one_after_another_are_one_change(office: Settings, watched: Watched) -> None:
    write(office, "p.yaml", P.replace("refuse", "penalize"))
    write(office, "q.yaml", P.replace("name: p", "name: q"))
    watched.live.poll()
    assert len(watched.guards) == 1


def test_the_thread_sees_a_change_within_two_seconds(office: Settings, watched: Watched) -> None:
    watched.live.start(watched.guards.append, watched.records.append)
    try:
        write(office, "p.yaml", P.replace("refuse", "penalize"))
        until(lambda: bool(watched.guards))
    finally:
        watched.live.stop()


def until(said: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_change_goes_into_force_at_once(office: Settings, watched: Watched) -> None:
    assert watched.live.change("admin:1", lambda: write(office, "p.yaml", P.replace("refuse", "penalize")))
    assert action(watched.guard) == "penalize"
    assert watched.live.version is not None and watched.live.version.by == "admin:1"


def test_a_change_that_can_t_be_used_is_taken_back(office: Settings, watched: Watched) -> None:
    with pytest.raises(PolicyError, match="threshold"):
        watched.live.change("admin:1", lambda: write(office, "p.yaml", P.replace("0.5", "7")))
    assert (office.policies / "p.yaml").read_text() == P
    assert watched.live.failed is None and watched.live.version is not None and watched.live.version.number == 1

    def half() -> None:
        (office.policies / "p.yaml").unlink()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        watched.live.change("admin:1", half)
    assert (office.policies / "p.yaml").read_text() == P


def test_no_change_over_files_that_somebody_is_mending(office: Settings, watched: Watched) -> None:
    write(office, "q.yaml", "name: [")
    with pytest.raises(Unusable, match="q.yaml"):
        watched.live.change("admin:1", lambda: write(office, "p.yaml", P.replace("refuse", "penalize")))
    assert (office.policies / "q.yaml").read_text() == "name: [" and (office.policies / "p.yaml").read_text() == P


def test_a_version_comes_back_as_a_new_one(office: Settings, watched: Watched) -> None:
    write(office, "q.yaml", P.replace("name: p", "name: q"))
    watched.live.poll()
    watched.live.rollback(1, "admin:1")
    assert set(watched.guard.policies) == {"p"}
    version = watched.live.version
    assert version is not None and (version.number, version.restores, version.by) == (3, 1, "admin:1")
    assert not (office.policies / "q.yaml").exists()


def test_two_gateways_number_the_same_change_once(office: Settings, watched: Watched) -> None:
    other = Watched(office)
    write(office, "p.yaml", P.replace("refuse", "penalize"))
    watched.live.poll()
    other.live.poll()
    assert watched.live.version == other.live.version
    assert [version.number for version in watched.live.history.versions()] == [1, 2]


@pytest.fixture
def read_only(office: Settings) -> Iterator[Settings]:
    """A history that can't be written: a file stands where its folder would be."""
    path = office.artifacts.parent / "taken"
    path.write_text("")
    yield office.model_copy(update={"history": path / "history"})


def test_policies_are_served_where_versions_cant_be_kept(read_only: Settings) -> None:
    watched = Watched(read_only)
    assert watched.live.version is None and action(watched.guard) == "refuse"
    write(read_only, "p.yaml", P.replace("refuse", "penalize"))
    watched.live.poll()
    assert action(watched.guard) == "penalize" and watched.records[0]["by"] == "files"
    with pytest.raises(Unusable, match="can't be kept"):
        watched.live.change("admin:1", lambda: None)
