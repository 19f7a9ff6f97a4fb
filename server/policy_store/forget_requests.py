"""Forget requests over HTTP, and their withdrawal: items are added to a policy's artifact, or to a new policy.

Each request is recorded beside the versions (`forget/ID.json`) by the hashes of its items, without their text, so that
it can be withdrawn later. An item that another request or the policy's owner also wants forgotten then stays.
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

from lethe.classifier import artifact_io, records
from lethe.classifier.artifact import Artifact
from lethe.classifier.encoder.encoder import Encoder
from lethe.classifier.encoder.folders import DEFAULT_ENCODER
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.records import Record
from lethe.classifier.training import incremental
from lethe.server.atomic_file import write_atomically
from lethe.server.policy.schema import Policy, check_name
from lethe.server.policy_store import seed_artifact
from lethe.server.policy_store.store import PolicyStore
from lethe.server.upstream import verbatim_index

# What the answer says where the policy's documents have a verbatim index.
INDEX_NOTE = (
    "vLLM needs the index of the documents: copy the artifact's folder to LETHE_VERBATIM on its host. Until vLLM has "
    "it, the output filter limits copies in answers to flagged requests; `penalize.always` follows `on_failure`"
)


class ForgetConflict(ValueError):
    """The request contradicts the current policies. The message says why."""


class UnknownForgetRequest(ValueError):
    """There is no forget request of that id."""


@dataclass(frozen=True)
class ForgetRequest:
    """What is to be forgotten. action, models: for a new policy; None for an existing one, whose file has them."""

    policy: str
    rows: Sequence[Record]
    action: str | None = None
    models: Sequence[str] | None = None


@dataclass(frozen=True)
class ForgetRecord:
    """The record of one request.

    items: hashes of its items. already_forgotten: those that the policy's owner had put into the artifact before.
    created_policy: whether the policy was created by a forget request.
    """

    id: str
    time: float
    by: str
    policy: str
    artifact: str
    items: list[str]
    already_forgotten: list[str]
    created_policy: bool


class ForgetLedger:
    """The records of all requests that were not withdrawn. Callers must hold `policies_lock` (versions.py)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def records(self) -> list[ForgetRecord]:
        """All records, oldest first. Invalid files are ignored."""
        result = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(ValueError, TypeError):
                result.append(ForgetRecord(**json.loads(path.read_bytes())))
        return sorted(result, key=lambda record: record.time)

    def get(self, id: str) -> ForgetRecord:
        """Return a record. Raises UnknownForgetRequest."""
        for record in self.records():
            if record.id == id:
                return record
        raise UnknownForgetRequest("there is no such request; it may have been withdrawn")

    def add(self, record: ForgetRecord) -> None:
        write_atomically(self._folder / f"{record.id}.json", json.dumps(asdict(record), indent=1).encode())

    def remove(self, record: ForgetRecord) -> None:
        (self._folder / f"{record.id}.json").unlink(missing_ok=True)


def forget_ledger(store: PolicyStore) -> ForgetLedger:
    """The ledger of a policy store."""
    return ForgetLedger(store.history.folder / "forget")


def add_forget_request(store: PolicyStore, request: ForgetRequest, by: str) -> dict[str, Any]:
    """Forget items, and return the answer of the admin API. The same request again changes nothing.

    Raises ValueError for malformed rows, ForgetConflict, SeedArtifactNotReady, and as `PolicyStore.change` does.
    """
    started = time.perf_counter()
    rows = [records.check_record(row, f"items.{i}") for i, row in enumerate(request.rows)]
    try:
        check_name(request.policy)
    except ValueError as error:
        raise ValueError(f"policy: {error}") from None

    ledger = forget_ledger(store)
    new_records: list[ForgetRecord] = []

    def edit() -> tuple[ForgetRecord, int]:
        policy = _find_policy(store, request.policy)
        if policy is None:
            record, apply = _plan_new_policy(store, request, rows, by)
        elif request.action is not None or request.models is not None:
            raise ForgetConflict(f"policy {policy.name!r} exists already; its file sets its action and models")
        else:
            record, apply = _plan_more_items(store, policy, rows, by)
        if all(other.id != record.id for other in ledger.records()):
            new_records.append(record)
            # Recorded before the items are added, so that no item is ever without a record to withdraw it by.
            ledger.add(record)
        return record, apply()

    try:
        record, added = store.change(by, edit)
    except BaseException:
        for record in new_records:
            ledger.remove(record)
        raise
    policy = _find_policy(store, record.policy)
    assert policy is not None and store.version is not None
    index = store.loaded.guard.indexes.get(record.artifact)
    waiting = {} if index is None else {"index": index, "note": INDEX_NOTE}
    return {
        "id": record.id,
        "policy": policy.name,
        "version": store.version.number,
        "mode": policy.mode,
        "action": policy.action,
        "models": policy.models,
        "items": len(record.items),
        "added": added,
        "seconds": round(time.perf_counter() - started, 3),
        **waiting,
    }


def withdraw_forget_request(store: PolicyStore, id: str, by: str) -> dict[str, Any]:
    """Withdraw a request, and return the answer of the admin API.

    Raises UnknownForgetRequest, ForgetConflict, and as `PolicyStore.change` does.
    """

    def edit() -> tuple[ForgetRecord, int]:
        ledger = forget_ledger(store)
        record = ledger.get(id)
        items_of_others = {
            item
            for other in ledger.records()
            if other.id != id and other.artifact == record.artifact
            for item in other.items
        }
        return record, _remove_items(store, record, set(record.items) - items_of_others - set(record.already_forgotten))

    record, removed = store.change(by, edit)
    forget_ledger(store).remove(record)
    assert store.version is not None
    return {
        "id": record.id,
        "policy": record.policy,
        "version": store.version.number,
        "removed": removed,
        "policy_removed": _find_policy(store, record.policy) is None,
    }


def _plan_new_policy(
    store: PolicyStore, request: ForgetRequest, rows: list[Record], by: str
) -> tuple[ForgetRecord, Callable[[], int]]:
    """The record of a request for a new policy, and a function that creates the policy and its artifact."""
    settings = store.settings
    folder, path = settings.artifacts / request.policy, settings.policies / f"{request.policy}.yaml"
    if folder.exists() or path.exists():
        existing = folder if folder.exists() else path
        raise ForgetConflict(f"{existing} exists already and belongs to no policy of that name")
    encoder = _encoder_of(store)
    seed = seed_artifact.load_seed_artifact(settings, encoder)
    artifact = seed_artifact.artifact_from_seed(seed, rows, encoder)
    keys: dict[str, Any] = {"name": request.policy, "artifact": request.policy, "action": request.action or "penalize"}
    if request.models is not None:
        keys["models"] = list(request.models)

    def apply() -> int:
        verbatim_index.save_with_index(artifact, folder)
        try:
            write_atomically(path, yaml.safe_dump(keys, sort_keys=False, allow_unicode=True).encode())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # it would block the next attempt
            raise
        return len(artifact.live_items)

    return _forget_record(request.policy, request.policy, rows, (), by, created_policy=True), apply


def _plan_more_items(
    store: PolicyStore, policy: Policy, rows: list[Record], by: str
) -> tuple[ForgetRecord, Callable[[], int]]:
    """The record of a request for an existing policy, and a function that adds the items to its artifact."""
    artifact = _artifact_of(store, policy.artifact)
    current = {_item_hash(item.prompt, item.answer, item.text) for item in artifact.items if not item.removed}
    earlier = [record for record in forget_ledger(store).records() if record.artifact == policy.artifact]
    requested = {item for record in earlier for item in set(record.items) - set(record.already_forgotten)}
    created_policy = any(record.created_policy for record in earlier)
    record = _forget_record(policy.name, policy.artifact, rows, current - requested, by, created_policy=created_policy)
    new_rows = {item: row for row in rows if (item := _row_hash(row)) not in current}

    def apply() -> int:
        if new_rows:
            extended = incremental.add_items(artifact, list(new_rows.values()), _encoder_of(store))
            verbatim_index.save_with_index(extended, store.settings.artifacts / policy.artifact)
        return len(new_rows)

    # A repeated request keeps its first record, which says what was in the artifact before.
    return next((other for other in earlier if other.id == record.id), record), apply


def _remove_items(store: PolicyStore, record: ForgetRecord, items: set[str]) -> int:
    """Remove items from the record's artifact, and the artifact with its policy if none remain; return how many.

    Raises ForgetConflict if nothing would remain of an artifact that no forget request created.
    """
    folder = store.settings.artifacts / record.artifact
    if not folder.is_dir():
        return 0
    artifact = _artifact_of(store, record.artifact)
    numbers = [
        number
        for number, item in enumerate(artifact.items)
        if not item.removed and _item_hash(item.prompt, item.answer, item.text) in items
    ]
    if not numbers:
        return 0
    if len(numbers) < len(artifact.live_items):
        verbatim_index.save_with_index(incremental.remove_items(artifact, numbers), folder)
        return len(numbers)
    users = [policy for policy in store.loaded.policies if policy.artifact == record.artifact]
    if not record.created_policy or any(policy.name != record.policy for policy in users):
        raise ForgetConflict(f"artifact {record.artifact!r} would be left without items: disable its policies instead")
    for policy in users:
        (store.settings.policies / Path(policy.source).name).unlink()
    shutil.rmtree(folder)
    return len(numbers)


def _find_policy(store: PolicyStore, name: str) -> Policy | None:
    return next((policy for policy in store.loaded.policies if policy.name == name), None)


def _artifact_of(store: PolicyStore, name: str) -> Artifact:
    return store.loaded.guard.artifacts.get(name) or artifact_io.load_artifact(store.settings.artifacts / name)


def _encoder_of(store: PolicyStore) -> Encoder:
    return store.loaded.encoder or load_encoder(store.settings.encoder or DEFAULT_ENCODER)


def _forget_record(
    policy: str, artifact: str, rows: list[Record], present: Iterable[str], by: str, *, created_policy: bool
) -> ForgetRecord:
    """present: hashes of items that the policy's owner has put into the artifact."""
    items = sorted({_row_hash(row) for row in rows})
    # The id is a hash of the content, so that a repeated request has the same id.
    id = hashlib.sha256(json.dumps([policy, items]).encode()).hexdigest()[:16]
    already_forgotten = sorted(set(present) & set(items))
    return ForgetRecord(id, time.time(), by, policy, artifact, items, already_forgotten, created_policy)


def _row_hash(row: Record) -> str:
    return _item_hash(row.get("prompt", ""), row.get("answer", ""), row.get("text", ""))


def _item_hash(prompt: str, answer: str, text: str) -> str:
    return hashlib.sha256(json.dumps([prompt, answer, text]).encode()).hexdigest()
