"""Forgetting on request and taking it back: what others want forgotten stays, what nobody does goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy_store import forget_requests as module
from lethe.server.policy_store.forget_requests import Conflict, Unknown, Wanted, forget, ledger, undo
from lethe.server.policy_store.store import Live
from lethe.server.settings import Settings
from tests.server.conftest import FACTS

ONE = {"prompt": "Which harbour did Zefira Malquist chart?", "answer": "She charted Ostrel in 1874."}
TWO = {"prompt": "What did Corvin Haldersen name his schooner?", "answer": "He named it the Patient Gull."}
OWN = {"prompt": FACTS[0][0], "answer": FACTS[0][1]}


@pytest.fixture
def live(office: Settings) -> Live:
    return Live(office, Metrics())


def action(guard: Guard, row: dict[str, str]) -> str:
    return guard.examine(guard.read("chat", {"messages": [{"role": "user", "content": row["prompt"]}]})).action


def scores(guard: Guard) -> list[float]:
    judged = [guard.read("chat", {"messages": [{"role": "user", "content": prompt}]}) for prompt, _ in FACTS]
    return [guard.find(one, guard.policies).findings[0].score.score for one in judged]


def contents(settings: Settings) -> dict[str, bytes]:
    paths = [*settings.policies.iterdir(), *settings.artifacts.glob("*/items.jsonl")]
    return {path.name: path.read_bytes() for path in paths}


def test_a_policy_is_extended_and_is_afterwards_as_it_was(live: Live, office: Settings) -> None:
    before, files = scores(live.loaded.guard), contents(office)
    done = forget(live, Wanted("p", [ONE, TWO]), "admin:1")
    assert (done["added"], done["items"], done["mode"], done["version"]) == (2, 2, "enforce", 2)
    assert done["seconds"] < 10
    assert action(live.loaded.guard, ONE) == "refuse"
    back = undo(live, done["id"], "admin:1")
    assert (back["removed"], back["policy_removed"], back["version"]) == (2, False, 3)
    assert action(live.loaded.guard, ONE) == "pass"
    assert scores(live.loaded.guard) == before and contents(office) == files


def test_a_new_policy_is_built_and_goes_again(live: Live, office: Settings) -> None:
    files = contents(office)
    done = forget(live, Wanted("zefira", [ONE], action="refuse", models=["m", "n"]), "admin:1")
    assert (done["action"], done["models"], done["added"]) == ("refuse", ("m", "n"), 1)
    assert action(live.loaded.guard, ONE) == "refuse" and action(live.loaded.guard, TWO) == "pass"
    back = undo(live, done["id"], "admin:1")
    assert back["policy_removed"] and set(live.loaded.guard.policies) == {"p"}
    assert contents(office) == files and not (office.artifacts / "zefira").exists()


def test_the_same_request_twice_is_one(live: Live) -> None:
    first = forget(live, Wanted("p", [ONE, OWN]), "admin:1")
    again = forget(live, Wanted("p", [OWN, ONE, ONE]), "admin:1")
    assert (again["id"], again["added"], again["version"]) == (first["id"], 0, first["version"])
    assert undo(live, first["id"], "admin:1")["removed"] == 1
    assert action(live.loaded.guard, OWN) == "refuse"


def test_what_another_request_or_the_owner_wants_forgotten_stays(live: Live) -> None:
    first = forget(live, Wanted("p", [ONE, OWN]), "admin:1")
    second = forget(live, Wanted("p", [ONE, TWO, OWN]), "admin:2")
    assert second["added"] == 1
    assert undo(live, first["id"], "admin:1")["removed"] == 0
    assert action(live.loaded.guard, ONE) == "refuse"
    assert undo(live, second["id"], "admin:1")["removed"] == 2
    assert action(live.loaded.guard, ONE) == "pass" and action(live.loaded.guard, OWN) == "refuse"


def test_a_policy_that_requests_made_goes_with_the_last_of_them(live: Live) -> None:
    first = forget(live, Wanted("zefira", [ONE]), "admin:1")
    second = forget(live, Wanted("zefira", [TWO]), "admin:1")
    assert not undo(live, first["id"], "admin:1")["policy_removed"]
    assert undo(live, second["id"], "admin:1")["policy_removed"]


def test_a_policy_of_its_owner_is_never_emptied(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in FACTS]
    done = forget(live, Wanted("p", rows), "admin:1")
    assert (done["added"], undo(live, done["id"], "admin:1")["removed"]) == (0, 0)
    noted = module.Noted("x", 0.0, "admin:1", "p", "small", [module._row_hash(row) for row in rows], [], False)
    ledger(live).note(noted)
    with pytest.raises(Conflict, match="disable its policies"):
        undo(live, "x", "admin:1")


def test_requests_are_noted_without_their_text(live: Live, office: Settings) -> None:
    done = forget(live, Wanted("p", [ONE]), "admin:1")
    text = (office.history_folder / "forget" / f"{done['id']}.json").read_text()
    assert "Zefira" not in text and json.loads(text)["by"] == "admin:1"
    undo(live, done["id"], "admin:1")
    with pytest.raises(Unknown):
        undo(live, done["id"], "admin:1")


@pytest.mark.parametrize(("wanted", "error", "said"), [
    (Wanted("p", [{"prompt": "x"}]), ValueError, "items.0: no 'answer'"),
    (Wanted("p", [{"text": "x", "prompt": "y"}]), ValueError, "items.0"),
    (Wanted("../p", [ONE]), ValueError, "policy: "),
    (Wanted("p", [ONE], action="refuse"), Conflict, "there already"),
    (Wanted("small", [ONE]), Conflict, "there already"),
])  # fmt: skip
def test_what_cant_be_done_says_why_and_changes_nothing(
    live: Live, office: Settings, wanted: Wanted, error: type[Exception], said: str
) -> None:
    files = contents(office)
    with pytest.raises(error, match=said):
        forget(live, wanted, "admin:1")
    assert contents(office) == files and ledger(live).all() == []


def test_a_request_that_fails_half_way_leaves_nothing(
    live: Live, office: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> Any:
        if path.suffix == ".yaml":
            raise OSError("disk full")
        return write(path, content)

    write, files = module.write, contents(office)
    monkeypatch.setattr(module, "write", full)
    with pytest.raises(OSError, match="disk full"):
        forget(live, Wanted("zefira", [ONE]), "admin:1")
    assert contents(office) == files and not (office.artifacts / "zefira").exists()
    assert set(live.loaded.guard.policies) == {"p"} and ledger(live).all() == []
    monkeypatch.undo()
    assert forget(live, Wanted("zefira", [ONE], action="refuse"), "admin:1")["added"] == 1
