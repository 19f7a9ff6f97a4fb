"""`lethe policies` and `lethe report shadow`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store.store import PolicyStore
from lethe.server.settings import Settings

Lethe = Callable[..., tuple[int, str, str]]


@pytest.fixture
def at_office(office: Settings, lethe: Lethe, monkeypatch: pytest.MonkeyPatch) -> Lethe:
    """The command with the office's settings."""
    monkeypatch.setenv("LETHE_POLICIES", str(office.policies))
    monkeypatch.setenv("LETHE_ARTIFACTS", str(office.artifacts))
    monkeypatch.setenv("LETHE_AUDIT", str(office.audit))
    return lethe


def test_a_version_is_restored_and_used_by_the_gateway(office: Settings, at_office: Lethe) -> None:
    store = PolicyStore(office, Metrics())
    path = office.policies / "p.yaml"
    path.write_text(path.read_text().replace("refuse", "penalize"))
    store.poll()
    status, out, _ = at_office("policies", "list")
    assert status == 0 and "p " in out and "enforce" in out and "penalize" in out
    status, out, _ = at_office("policies", "rollback")
    assert (status, out) == (0, "restored version 1 as version 3\n")
    store.poll()
    assert store.version is not None and store.version.number == 3
    assert store.loaded.policies[0].action == "refuse"
    status, out, _ = at_office("policies", "history")
    lines = out.splitlines()
    assert len(lines) == 3 and "by start" in lines[0] and "by files" in lines[1] and "restores 1" in lines[2]


def test_a_failed_rollback_says_why(office: Settings, at_office: Lethe) -> None:
    status, _, error_text = at_office("policies", "rollback")
    assert status == 2 and "no previous version" in error_text
    PolicyStore(office, Metrics())
    status, _, error_text = at_office("policies", "rollback", "9")
    assert status == 2 and "no version 9" in error_text


def test_the_shadow_report_counts_flagged_requests(office: Settings, at_office: Lethe, tmp_path: Path) -> None:
    finding = {"policy": "p", "hash": "h", "mode": "shadow", "action": "refuse", "place": "prompt", "score": 0.9}
    record = {"time": 1.0, "request_id": "r", "model": None, "policies": [{**finding, "flagged": True}]}
    assert office.audit is not None
    office.audit.write_text(json.dumps(record) + "\n{\n")
    status, out, _ = at_office("report", "shadow")
    assert status == 0 and "p: 1 of 1 requests flagged" in out and "1 lines could not be read" in out
    status, out, _ = at_office("report", "shadow", "--json", "--audit", str(office.audit))
    assert json.loads(out)["models"] == {"(none)": 1}
    assert "no policy in shadow mode" in at_office("report", "shadow", "--policy", "q")[1]
    assert "no policy in shadow mode" in at_office("report", "shadow", "--since", "1h")[1]
    assert at_office("report", "shadow", "--audit", str(tmp_path / "nothing"))[0] == 2
    # Reports of other packages stay where they are.
    assert at_office("report", "html", "--help")[0] == 0
