"""Forgetting on request, and taking it back: items go into a policy's artifact, or into a new policy.

Each request is noted beside the versions (`forget/ID.json`) by the hashes of its items, without their text, so
that it can be taken back later: what other requests, or the policy's owner, want forgotten as well stays so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lethe.classifier import artifact as artifacts_io
from lethe.classifier import records
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import DEFAULT_ENCODER, Encoder, load_encoder
from lethe.classifier.records import Record
from lethe.classifier.training import incremental
from lethe.server.policy.schema import Policy, checked_name
from lethe.server.policy_store import seed_artifact
from lethe.server.policy_store.store import Live
from lethe.server.policy_store.versions import write
from lethe.server.upstream import verbatim_index


class Conflict(ValueError):
    """It can't be done as things are; the message says why."""


class Unknown(ValueError):
    """There is no such policy or request."""


@dataclass(frozen=True)
class Noted:
    """One request. items: hashes of its items; own: those that stood in the artifact already, by its owner's will.

    made: whether the policy came about by a request.
    """

    id: str
    time: float
    by: str
    policy: str
    artifact: str
    items: list[str]
    own: list[str]
    made: bool


@dataclass(frozen=True)
class Wanted:
    """A request to forget. action, models: of a new policy; None for one that is there, whose file says."""

    policy: str
    rows: Sequence[Record]
    action: str | None = None
    models: Sequence[str] | None = None


class Ledger:
    """The requests that were not taken back. Its callers hold the lock (`server/policy_store/versions.py`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Noted]:
        """The oldest first; a file that is none is passed over."""
        found = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(ValueError, TypeError):
                found.append(Noted(**json.loads(path.read_bytes())))
        return sorted(found, key=lambda noted: noted.time)

    def get(self, id: str) -> Noted:
        """Raises Unknown."""
        for noted in self.all():
            if noted.id == id:
                return noted
        raise Unknown("there is no such request; it may have been taken back")

    def note(self, noted: Noted) -> None:
        write(self._folder / f"{noted.id}.json", json.dumps(asdict(noted), indent=1).encode())

    def drop(self, noted: Noted) -> None:
        (self._folder / f"{noted.id}.json").unlink(missing_ok=True)


def ledger(live: Live) -> Ledger:
    return Ledger(live.history.folder / "forget")


def forget(live: Live, wanted: Wanted, by: str) -> dict[str, Any]:
    """Have items forgotten, and say what was done. Asking for the same again changes nothing.

    Raises ValueError for malformed rows, Conflict, base.NoBase, and as `Live.change` does.
    """
    started = time.perf_counter()
    rows = [records.check(row, f"items.{i}") for i, row in enumerate(wanted.rows)]
    try:
        checked_name(wanted.policy)
    except ValueError as error:
        raise ValueError(f"policy: {error}") from None

    notes = ledger(live)
    new: list[Noted] = []

    def make() -> tuple[Noted, int]:
        policy = _policy(live, wanted.policy)
        if policy is None:
            noted, change = _build(live, wanted, rows, by)
        elif wanted.action is not None or wanted.models is not None:
            raise Conflict(f"policy {policy.name!r} is there already; its own file says its action and models")
        else:
            noted, change = _extend(live, policy, rows, by)
        if all(other.id != noted.id for other in notes.all()):
            new.append(noted)
            # Before the items are there, so that none ever is without a note by which it can go.
            notes.note(noted)
        return noted, change()

    try:
        noted, added = live.change(by, make)
    except BaseException:
        for noted in new:
            notes.drop(noted)
        raise
    policy = _policy(live, noted.policy)
    assert policy is not None and live.version is not None
    return {
        "id": noted.id,
        "policy": policy.name,
        "version": live.version.number,
        "mode": policy.mode,
        "action": policy.action,
        "models": policy.models,
        "items": len(noted.items),
        "added": added,
        "seconds": round(time.perf_counter() - started, 3),
    }


def undo(live: Live, id: str, by: str) -> dict[str, Any]:
    """Take a request back, and say what was done. Raises Unknown, Conflict, and as `Live.change` does."""

    def make() -> tuple[Noted, int]:
        notes = ledger(live)
        noted = notes.get(id)
        others = {
            h for other in notes.all() if other.id != id and other.artifact == noted.artifact for h in other.items
        }
        going = set(noted.items) - others - set(noted.own)
        return noted, _take_out(live, noted, going)

    noted, removed = live.change(by, make)
    ledger(live).drop(noted)
    assert live.version is not None
    left = _policy(live, noted.policy)
    return {
        "id": noted.id,
        "policy": noted.policy,
        "version": live.version.number,
        "removed": removed,
        "policy_removed": left is None,
    }


def _build(live: Live, wanted: Wanted, rows: list[Record], by: str) -> tuple[Noted, Callable[[], int]]:
    """The note of a new policy, and what makes it and its artifact."""
    settings = live.settings
    place, path = settings.artifacts / wanted.policy, settings.policies / f"{wanted.policy}.yaml"
    if place.exists() or path.exists():
        raise Conflict(f"{place if place.exists() else path} is there already, and belongs to no policy of that name")
    encoder = _encoder(live)
    built = seed_artifact.build(seed_artifact.load(settings, encoder), rows, encoder)
    keys: dict[str, Any] = {"name": wanted.policy, "artifact": wanted.policy, "action": wanted.action or "penalize"}
    if wanted.models is not None:
        keys["models"] = list(wanted.models)

    def change() -> int:
        verbatim_index.save(built, place)
        try:
            write(path, yaml.safe_dump(keys, sort_keys=False, allow_unicode=True).encode())
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)  # it would stand in the way of the next try
            raise
        return len(built.live)

    return _noted(wanted.policy, wanted.policy, rows, (), by, made=True), change


def _extend(live: Live, policy: Policy, rows: list[Record], by: str) -> tuple[Noted, Callable[[], int]]:
    """The note of more items for a policy's artifact, and what puts them there."""
    artifact = _artifact(live, policy.artifact)
    there = {_hash(item.prompt, item.answer, item.text) for item in artifact.items if not item.removed}
    asked = [noted for noted in ledger(live).all() if noted.artifact == policy.artifact]
    own = there - {digest for noted in asked for digest in set(noted.items) - set(noted.own)}
    noted = _noted(policy.name, policy.artifact, rows, own, by, made=any(noted.made for noted in asked))
    new = {digest: row for row in rows if (digest := _row_hash(row)) not in there}

    def change() -> int:
        if new:
            grown = incremental.add(artifact, list(new.values()), _encoder(live))
            verbatim_index.save(grown, live.settings.artifacts / policy.artifact)
        return len(new)

    # The same request again leaves the first one's note, which knows what was there before it.
    return next((other for other in asked if other.id == noted.id), noted), change


def _take_out(live: Live, noted: Noted, going: set[str]) -> int:
    """How many items went."""
    settings, place = live.settings, live.settings.artifacts / noted.artifact
    if not place.is_dir():
        return 0
    artifact = _artifact(live, noted.artifact)
    numbers = [
        number
        for number, item in enumerate(artifact.items)
        if not item.removed and _hash(item.prompt, item.answer, item.text) in going
    ]
    if not numbers:
        return 0
    if len(numbers) < len(artifact.live):
        verbatim_index.save(incremental.remove(artifact, numbers), place)
        return len(numbers)
    users = [policy for policy in live.loaded.policies if policy.artifact == noted.artifact]
    if not noted.made or any(policy.name != noted.policy for policy in users):
        raise Conflict(f"nothing would be left for artifact {noted.artifact!r} to forget: disable its policies instead")
    for policy in users:
        (settings.policies / Path(policy.source).name).unlink()
    shutil.rmtree(place)
    return len(numbers)


def _policy(live: Live, name: str) -> Policy | None:
    return next((policy for policy in live.loaded.policies if policy.name == name), None)


def _artifact(live: Live, name: str) -> Artifact:
    return live.loaded.guard.artifacts.get(name) or artifacts_io.load(live.settings.artifacts / name)


def _encoder(live: Live) -> Encoder:
    return live.loaded.encoder or load_encoder(live.settings.encoder or DEFAULT_ENCODER)


def _noted(policy: str, artifact: str, rows: list[Record], own: Iterable[str], by: str, *, made: bool) -> Noted:
    hashes = sorted({_row_hash(row) for row in rows})
    # The same request again is the same request.
    id = hashlib.sha256(json.dumps([policy, hashes]).encode()).hexdigest()[:16]
    return Noted(id, time.time(), by, policy, artifact, hashes, sorted(set(own) & set(hashes)), made)


def _row_hash(row: Record) -> str:
    return _hash(row.get("prompt", ""), row.get("answer", ""), row.get("text", ""))


def _hash(prompt: str, answer: str, text: str) -> str:
    return hashlib.sha256(json.dumps([prompt, answer, text]).encode()).hexdigest()
