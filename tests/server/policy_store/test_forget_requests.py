"""Forget requests and their withdrawal: items that others want forgotten stay, the rest is removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store import forget_requests as module
from lethe.server.policy_store.forget_requests import (
    ForgetConflict,
    ForgetRequest,
    UnknownForgetRequest,
    add_forget_request,
    forget_ledger,
    withdraw_forget_request,
)
from lethe.server.policy_store.store import PolicyStore
from lethe.server.settings import Settings
from lethe.server.upstream.capabilities import Capabilities
from tests.server.conftest import FACTS

ONE = {"prompt": "Which harbour did Zefira Malquist chart?", "answer": "She charted Ostrel in 1874."}
TWO = {"prompt": "What did Corvin Haldersen name his schooner?", "answer": "He named it the Patient Gull."}
OWN = {"prompt": FACTS[0][0], "answer": FACTS[0][1]}


@pytest.fixture
def store(office: Settings) -> PolicyStore:
    return PolicyStore(office, Metrics())


def action(guard: Guard, row: dict[str, str]) -> str:
    return guard.decide(
        guard.parse("chat", {"messages": [{"role": "user", "content": row["prompt"]}]}), Capabilities()
    ).action


def scores(guard: Guard) -> list[float]:
    judged = [guard.parse("chat", {"messages": [{"role": "user", "content": prompt}]}) for prompt, _ in FACTS]
    return [guard.judge(one, guard.policies).findings[0].score.score for one in judged]


def contents(settings: Settings) -> dict[str, bytes]:
    paths = [*settings.policies.iterdir(), *settings.artifacts.glob("*/items.jsonl")]
    return {path.name: path.read_bytes() for path in paths}


def test_adding_and_withdrawing_items_restores_the_artifact(store: PolicyStore, office: Settings) -> None:
    before, files = scores(store.loaded.guard), contents(office)
    done = add_forget_request(store, ForgetRequest("p", [ONE, TWO]), "admin:1")
    assert (done["added"], done["items"], done["mode"], done["version"]) == (2, 2, "enforce", 2)
    assert done["seconds"] < 10
    assert action(store.loaded.guard, ONE) == "refuse"
    back = withdraw_forget_request(store, done["id"], "admin:1")
    assert (back["removed"], back["policy_removed"], back["version"]) == (2, False, 3)
    assert action(store.loaded.guard, ONE) == "pass"
    assert scores(store.loaded.guard) == before and contents(office) == files


def test_a_new_policy_is_created_and_removed_again(store: PolicyStore, office: Settings) -> None:
    files = contents(office)
    done = add_forget_request(store, ForgetRequest("zefira", [ONE], action="refuse", models=["m", "n"]), "admin:1")
    assert (done["action"], done["models"], done["added"]) == ("refuse", ("m", "n"), 1)
    assert action(store.loaded.guard, ONE) == "refuse" and action(store.loaded.guard, TWO) == "pass"
    back = withdraw_forget_request(store, done["id"], "admin:1")
    assert back["policy_removed"] and set(store.loaded.guard.policies) == {"p"}
    assert contents(office) == files and not (office.artifacts / "zefira").exists()


def test_a_repeated_request_changes_nothing(store: PolicyStore) -> None:
    first = add_forget_request(store, ForgetRequest("p", [ONE, OWN]), "admin:1")
    again = add_forget_request(store, ForgetRequest("p", [OWN, ONE, ONE]), "admin:1")
    assert (again["id"], again["added"], again["version"]) == (first["id"], 0, first["version"])
    assert withdraw_forget_request(store, first["id"], "admin:1")["removed"] == 1
    assert action(store.loaded.guard, OWN) == "refuse"


def test_items_that_others_want_forgotten_stay(store: PolicyStore) -> None:
    first = add_forget_request(store, ForgetRequest("p", [ONE, OWN]), "admin:1")
    second = add_forget_request(store, ForgetRequest("p", [ONE, TWO, OWN]), "admin:2")
    assert second["added"] == 1
    assert withdraw_forget_request(store, first["id"], "admin:1")["removed"] == 0
    assert action(store.loaded.guard, ONE) == "refuse"
    assert withdraw_forget_request(store, second["id"], "admin:1")["removed"] == 2
    assert action(store.loaded.guard, ONE) == "pass" and action(store.loaded.guard, OWN) == "refuse"


def test_withdrawing_the_last_request_removes_its_policy(store: PolicyStore) -> None:
    first = add_forget_request(store, ForgetRequest("zefira", [ONE]), "admin:1")
    second = add_forget_request(store, ForgetRequest("zefira", [TWO]), "admin:1")
    assert not withdraw_forget_request(store, first["id"], "admin:1")["policy_removed"]
    assert withdraw_forget_request(store, second["id"], "admin:1")["policy_removed"]


def test_a_policy_written_by_its_owner_is_never_emptied(store: PolicyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in FACTS]
    done = add_forget_request(store, ForgetRequest("p", rows), "admin:1")
    assert (done["added"], withdraw_forget_request(store, done["id"], "admin:1")["removed"]) == (0, 0)
    record = module.ForgetRecord("x", 0.0, "admin:1", "p", "small", [module._row_hash(row) for row in rows], [], False)
    forget_ledger(store).add(record)
    with pytest.raises(ForgetConflict, match="disable its policies"):
        withdraw_forget_request(store, "x", "admin:1")


def test_requests_are_recorded_without_their_text(store: PolicyStore, office: Settings) -> None:
    done = add_forget_request(store, ForgetRequest("p", [ONE]), "admin:1")
    text = (office.history_folder / "forget" / f"{done['id']}.json").read_text()
    assert "Zefira" not in text and json.loads(text)["by"] == "admin:1"
    withdraw_forget_request(store, done["id"], "admin:1")
    with pytest.raises(UnknownForgetRequest):
        withdraw_forget_request(store, done["id"], "admin:1")


@pytest.mark.parametrize(("wanted", "error", "error_text"), [
    (ForgetRequest("p", [{"answer": "x"}]), ValueError, "items.0: no 'prompt'"),
    (ForgetRequest("p", [{"text": "x", "prompt": "y"}]), ValueError, "items.0"),
    (ForgetRequest("../p", [ONE]), ValueError, "policy: "),
    (ForgetRequest("p", [ONE], action="refuse"), ForgetConflict, "exists already"),
    (ForgetRequest("small", [ONE]), ForgetConflict, "exists already"),
])  # fmt: skip
def test_a_rejected_request_says_why_and_changes_nothing(
    store: PolicyStore, office: Settings, wanted: ForgetRequest, error: type[Exception], error_text: str
) -> None:
    files = contents(office)
    with pytest.raises(error, match=error_text):
        add_forget_request(store, wanted, "admin:1")
    assert contents(office) == files and forget_ledger(store).records() == []


def test_a_failed_request_leaves_nothing_behind(
    store: PolicyStore, office: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> Any:
        if path.suffix == ".yaml":
            raise OSError("disk full")
        return write(path, content)

    write, files = module.write_atomically, contents(office)
    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(OSError, match="disk full"):
        add_forget_request(store, ForgetRequest("zefira", [ONE]), "admin:1")
    assert contents(office) == files and not (office.artifacts / "zefira").exists()
    assert set(store.loaded.guard.policies) == {"p"} and forget_ledger(store).records() == []
    monkeypatch.undo()
    assert add_forget_request(store, ForgetRequest("zefira", [ONE], action="refuse"), "admin:1")["added"] == 1
