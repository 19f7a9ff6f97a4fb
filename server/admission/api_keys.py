"""API keys: a file of hashes, each with the policies, models and limits that apply to it.

A key has 256 random bits, so one SHA-256 is a sufficient hash: there are no likely keys to try, and a slow hash would
let strangers use up the CPU. Keys are looked up by their digest, which nobody can choose without knowing the key, so
the lookup's timing reveals nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lethe.server.atomic_file import write_atomically
from lethe.server.errors import BadRequest, NotFound, Unauthorized
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import check_name
from lethe.server.requests import request_body as bodies

log = logging.getLogger("lethe.keys")

PREFIX = "lethe-"
# Request headers that carry a key and nothing else: Anthropic's clients send the first, Azure's the second.
KEY_HEADERS = frozenset([b"x-api-key", b"api-key"])
# Request headers that carry a key; OpenAI's clients send Authorization, Anthropic's may send two.
CREDENTIALS = KEY_HEADERS | {b"authorization"}
# Seconds between two looks at the key file. Chosen: a revoked key stops working within a second.
POLL_INTERVAL_S = 0.5
# Lock file beside the key file, which `lethe keys` holds while it changes the keys.
LOCK_FILE = ".lethe.lock"

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class KeysError(ValueError):
    """The key file is invalid; the message names file, key and value."""


class Key(BaseModel):
    """One key's permissions. policies: only these policies apply; exempt: all but these; neither: all apply."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(max_length=64), AfterValidator(check_name)]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: datetime
    policies: Names | None = None
    exempt: Names | None = None
    models: Names | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    debug: bool = False

    @model_validator(mode="after")
    def _check_policies_or_exempt(self) -> Key:
        if self.policies is not None and self.exempt is not None:
            raise ValueError("give policies or exempt, not both")
        return self

    def applicable_policies(self, active: Iterable[str], existing: Iterable[str]) -> frozenset[str]:
        """Which of the `active` policies apply to this key's requests.

        existing: the names of all policies, those that are off included. All active policies apply to a key
        that names a policy that doesn't exist: a renamed policy must not stop applying.
        """
        if self.policies is not None and set(self.policies) <= set(existing):
            return frozenset(active) & frozenset(self.policies)
        return frozenset(active) - frozenset(self.exempt or ())

    def may_use(self, model: Any) -> bool:
        """Whether the key may use `model`. Only unrestricted keys may omit the name: vLLM would choose a model."""
        return self.models is None or (isinstance(model, str) and model in self.models)

    def check_model(self, body: dict[str, Any]) -> None:
        """Raises NotFound for a model that the key may not use, as for a model that doesn't exist."""
        if not self.may_use(body.get("model")):
            raise NotFound(
                "the model does not exist, or this key may not use it", param="model", code="model_not_found"
            )


def key_digest(token: str | bytes) -> str:
    """The SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises KeysError naming file, key and value."""
    try:
        data = bodies.parse(path.read_bytes())
    except OSError as error:
        hint = "; create it with `lethe keys make NAME`" if isinstance(error, FileNotFoundError) else ""
        raise KeysError(f"{path}: can't be read: {error.strerror}{hint} (LETHE_KEYS)") from None
    except BadRequest as error:
        raise KeysError(f"{path}: {error.message} (LETHE_KEYS)") from None
    rows = data.get("keys")
    if set(data) != {"keys"} or not isinstance(rows, list):
        raise KeysError(f'{path}: expected {{"keys": [...]}} (LETHE_KEYS)')
    keys = tuple(_validated_key(row, number, path) for number, row in enumerate(rows, 1))
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in keys]
        for value in {value for value in values if values.count(value) > 1}:
            raise KeysError(f"{path}: {field} {value!r} occurs more than once (LETHE_KEYS)")
    return keys


def _validated_key(row: Any, number: int, path: Path) -> Key:
    try:
        return Key.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        name = row.get("name", number) if isinstance(row, dict) else number
        raise KeysError(f"{path}: key {name!r}: {where}: {first['msg']} (LETHE_KEYS)") from None


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file atomically; only its owner can read and write it (mode 600)."""
    rows = ",\n ".join(key.model_dump_json(exclude_defaults=True) for key in keys)
    write_atomically(path, f'{{"keys": [\n {rows}\n]}}\n'.encode(), mode=0o600)


def create_key(path: Path, **fields: Any) -> str:
    """Add a key to the file, which is created if needed, and return the key: only its hash is stored.

    fields: of Key. Raises KeysError, also when a key of that name exists.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    key = _validated_key(
        {"sha256": key_digest(token), "created": datetime.now(UTC).replace(microsecond=0), **fields}, 0, path
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(LOCK_FILE)):
        keys = read_keys(path) if path.exists() else ()
        if any(existing.name == key.name for existing in keys):
            raise KeysError(f"{path}: key {key.name!r} exists already; revoke it first")
        _write(path, (*keys, key))
    return token


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from the file. Raises KeysError if there is no key of that name."""
    with FileLock(path.with_name(LOCK_FILE)):
        keys = read_keys(path)
        remaining = [key for key in keys if key.name != name]
        if len(remaining) == len(keys):
            names = ", ".join(key.name for key in keys) or "none"
            raise KeysError(f"{path}: no key {name!r} (existing keys: {names})")
        _write(path, remaining)


def presented_keys(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The keys that a request presents. An Authorization header of another scheme counts as an invalid key."""
    presented = set()
    for name, value in headers:
        if name in KEY_HEADERS:
            presented.add(value.strip())
        elif name == b"authorization":
            scheme, _, token = value.strip().partition(b" ")
            presented.add(token.strip() if scheme.lower() == b"bearer" else b"")
    return presented


class Keyring:
    """The current keys. The file is polled: changes take effect without a restart."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        """Raises KeysError."""
        self._path = path
        self._metrics = metrics
        self._loaded_stamp = self._stamp()
        self._use(read_keys(path))

    def _stamp(self) -> tuple[int, ...] | None:
        """Modification time, size and inode of the file, which change with its content; None if there is no file."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _use(self, keys: tuple[Key, ...]) -> None:
        self._by_digest = {key.sha256: key for key in keys}
        self._metrics.keys.set(len(keys))

    def warn_of_unknown_policies(self, policies: Iterable[str]) -> None:
        """Log the keys that name policies other than these."""
        for key in self._by_digest.values():
            for name in sorted({*(key.policies or ()), *(key.exempt or ())} - set(policies)):
                effect = "; all policies apply to it" if key.policies else ""
                log.warning("key %r names the unknown policy %r%s (%s)", key.name, name, effect, self._path)

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Key:
        """The key that a request presents. Raises Unauthorized for none, an unknown one, or several."""
        presented = presented_keys(headers)
        if not presented:
            raise Unauthorized(
                "no API key: send 'Authorization: Bearer KEY', 'x-api-key: KEY' or 'api-key: KEY'",
                code="missing_api_key",
            )
        keys = [self._by_digest.get(key_digest(token)) for token in presented]
        if len(keys) != 1 or keys[0] is None:
            raise Unauthorized("unknown API key", code="invalid_api_key")
        return keys[0]

    def reload(self) -> None:
        """Read the file again if it has changed. If it is invalid, the current keys are kept."""
        stamp = self._stamp()
        if stamp == self._loaded_stamp:
            return
        self._loaded_stamp = stamp
        try:
            self._use(read_keys(self._path))
            log.info("%d keys read from %s", len(self._by_digest), self._path)
            self._metrics.keys_stale.set(0)
        except KeysError as error:
            self._metrics.keys_stale.set(1)
            self._metrics.keys_reload_failed.inc()
            log.error("reloading the keys failed; keeping the current keys: %s", error)

    async def watch(self) -> None:
        """Poll the file until cancelled, in a thread, since the disk may block."""
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            await asyncio.to_thread(self.reload)
