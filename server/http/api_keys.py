"""Who may ask: API keys in a file, as hashes, each with what it may use.

A key is 256 random bits, so one SHA-256 is hash enough: there is no list of likely keys to try, and a slow hash
would only let strangers use up our cores. A key is looked up by its digest. How long that takes depends on the
digest, which nobody can choose without knowing the key, so time tells nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lethe.classifier.artifact import locked
from lethe.server.errors import BadRequest, NotFound, Unauthorized
from lethe.server.http import request_body as bodies
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import checked_name

log = logging.getLogger("lethe.keys")

PREFIX = "lethe-"
# What carries a client's key: OpenAI's clients send the first, Anthropic's the second or both.
CREDENTIALS = frozenset([b"authorization", b"x-api-key"])
POLL_S = 0.5

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class KeysError(ValueError):
    """The key file can't be used; the message names file, key and value."""


class Key(BaseModel):
    """What one key may do. `policies`: only these apply; `exempt`: all but these; neither: all apply."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(max_length=64), AfterValidator(checked_name)]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: datetime
    policies: Names | None = None
    exempt: Names | None = None
    models: Names | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    debug: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Key:
        if self.policies is not None and self.exempt is not None:
            raise ValueError("give policies or exempt, not both")
        return self

    def held_to(self, active: Iterable[str], known: Iterable[str]) -> frozenset[str]:
        """Which of the `active` policies judge this key's requests; known: those that are off included.

        A key that names a policy nobody knows is held to all: a renamed policy must not stop to apply.
        """
        if self.policies is not None and set(self.policies) <= set(known):
            return frozenset(active) & frozenset(self.policies)
        return frozenset(active) - frozenset(self.exempt or ())

    def may_use(self, model: Any) -> bool:
        """Whether the key may ask for `model`; without a name vLLM would choose, so only a free key may."""
        return self.models is None or (isinstance(model, str) and model in self.models)

    def check_model(self, body: dict[str, Any]) -> None:
        """Raises NotFound for a model that the key may not use, as if there were none of that name."""
        if not self.may_use(body.get("model")):
            raise NotFound("this key has no model of that name", param="model", code="model_not_found")


def digest(token: str | bytes) -> str:
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).hexdigest()


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises KeysError naming file, key and value."""
    try:
        data = bodies.parse(path.read_bytes())
    except OSError as error:
        hint = "; `lethe keys make NAME` makes the first one" if isinstance(error, FileNotFoundError) else ""
        raise KeysError(f"{path}: can't be read: {error.strerror}{hint} (LETHE_KEYS)") from None
    except BadRequest as error:
        raise KeysError(f"{path}: {error.message} (LETHE_KEYS)") from None
    rows = data.get("keys")
    if set(data) != {"keys"} or not isinstance(rows, list):
        raise KeysError(f'{path}: a key file is {{"keys": [...]}} (LETHE_KEYS)')
    keys = tuple(_key(row, number, path) for number, row in enumerate(rows, 1))
    for what in ("name", "sha256"):
        values = [getattr(key, what) for key in keys]
        for value in {value for value in values if values.count(value) > 1}:
            raise KeysError(f"{path}: {what} {value!r} is used twice (LETHE_KEYS)")
    return keys


def _key(row: Any, number: int, path: Path) -> Key:
    try:
        return Key.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        name = row.get("name", number) if isinstance(row, dict) else number
        raise KeysError(f"{path}: key {name!r}: {where}: {first['msg']} (LETHE_KEYS)") from None


def _write(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file whole, readable and writable by its owner alone (mode 600)."""
    rows = ",\n ".join(key.model_dump_json(exclude_defaults=True) for key in keys)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f'{{"keys": [\n {rows}\n]}}\n')
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def make(path: Path, **given: Any) -> str:
    """Add a key to the file (made if there is none) and return it: it is kept nowhere else.

    given: the fields of Key. Raises KeysError, also when there is a key of that name.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    made = _key({"sha256": digest(token), "created": datetime.now(UTC).replace(microsecond=0), **given}, 0, path)
    with locked(path):
        there = read(path) if path.exists() else ()
        if any(key.name == made.name for key in there):
            raise KeysError(f"{path}: there is a key {made.name!r}; revoke it first")
        _write(path, (*there, made))
    return token


def revoke(path: Path, name: str) -> None:
    """Take a key out of the file. Raises KeysError when there is none of that name."""
    with locked(path):
        there = read(path)
        left = [key for key in there if key.name != name]
        if len(left) == len(there):
            names = ", ".join(key.name for key in there) or "none"
            raise KeysError(f"{path}: there is no key {name!r} (there: {names})")
        _write(path, left)


def presented(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The keys that a request shows, as they came; an Authorization of another scheme counts as one that is none."""
    shown = set()
    for name, value in headers:
        if name == b"x-api-key":
            shown.add(value.strip())
        elif name == b"authorization":
            scheme, _, token = value.strip().partition(b" ")
            shown.add(token.strip() if scheme.lower() == b"bearer" else b"")
    return shown


class Keyring:
    """The keys in force. The file is looked at again and again: a change counts without a restart."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        """Raises KeysError."""
        self._path = path
        self._metrics = metrics
        self._seen = self._stamp()
        self._take(read(path))

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _take(self, keys: tuple[Key, ...]) -> None:
        self._by_digest = {key.sha256: key for key in keys}
        self._metrics.keys.set(len(keys))

    def warn(self, policies: Iterable[str]) -> None:
        """Log keys that name policies nobody knows."""
        for key in self._by_digest.values():
            for name in sorted({*(key.policies or ()), *(key.exempt or ())} - set(policies)):
                held = "; it is held to all policies" if key.policies else ""
                log.warning("key %r names policy %r, which is not there%s (%s)", key.name, name, held, self._path)

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Key:
        """The one key that a request shows. Raises Unauthorized."""
        shown = presented(headers)
        if not shown:
            raise Unauthorized(
                "no API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'", code="missing_api_key"
            )
        found = [self._by_digest.get(digest(token)) for token in shown]
        if len(found) != 1 or found[0] is None:
            raise Unauthorized("the API key is not known here", code="invalid_api_key")
        return found[0]

    def reload(self) -> None:
        """Read the file again if it has changed. A file that can't be used leaves the old keys in force."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._take(read(self._path))
            log.info("%d keys read from %s", len(self._by_digest), self._path)
            self._metrics.keys_stale.set(0)
        except KeysError as error:
            self._metrics.keys_stale.set(1)
            self._metrics.keys_reload_failed.inc()
            log.error("the keys stay as they were: %s", error)

    async def watch(self) -> None:
        """Look at the file until cancelled; the disk is waited for in a thread."""
        while True:
            await asyncio.sleep(POLL_S)
            await asyncio.to_thread(self.reload)
