"""Policies in force, exchanged as a whole while requests are served.

A thread looks at the policy files and the artifacts' manifests twice a second. When something has changed, all
of it is read and checked; what can be used becomes a new guard and a new version (`server/policy_store/versions.py`), and
what can't leaves the old one in force and says so. Requests hold on to the guard that they began with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.schema import PolicyError, files
from lethe.server.policy_store.load import Loaded, load
from lethe.server.policy_store.versions import History, HistoryError, Version, locked
from lethe.server.settings import Settings

log = logging.getLogger("lethe.policies")

POLL_S = 0.5
# Coarser than a file system's clock, and longer than a program takes from one of several files to the next.
QUIET_S = 0.05

Stamps = dict[Path, tuple[int, int, int, int]]


class Unusable(ValueError):
    """A change can't be made, because the files on disk can't be used as they are."""


def look(settings: Settings) -> Stamps:
    """What tells that a policy file or an artifact was changed: times, size and inode of each."""
    found: Stamps = {}
    for path in (*files(settings.policies), *settings.artifacts.glob("*/manifest.json")):
        try:
            status = path.stat()
        except OSError:
            continue  # gone meanwhile, which is a change
        found[path] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    return found


class Live:
    """The policies in force. `serve` is given each new guard, `audit` each change; both may be called from any thread.

    failed: why the files on disk are not what is in force, None when they are. version: None where versions can't
    be kept.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Raises PolicyError or SettingsError when the files can't be used now."""
        self.settings = settings
        self.history = History(settings)
        self.version: Version | None = None
        self.failed: str | None = None
        self.serve: Callable[[Guard], object] = lambda guard: None
        self.audit: Callable[[dict[str, Any]], object] = lambda record: None
        self._metrics = metrics
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        with locked(settings):
            self._seen = look(settings)
            self.loaded = load(settings, metrics)
            self._first = self._keep("start")

    @property
    def state(self) -> str:
        """What tells the policies in force from any others, alike in all processes that serve the same files."""
        return hashlib.sha256(json.dumps(_content(self.loaded), sort_keys=True).encode()).hexdigest()

    def start(self, serve: Callable[[Guard], object], audit: Callable[[dict[str, Any]], object]) -> None:
        """Begin to watch the files."""
        self.serve, self.audit = serve, audit
        if self._first is not None:
            self.audit(self._first)
        self._thread = threading.Thread(target=self._run, name="lethe-policies", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def change(self, by: str, make: Callable[[], Any]) -> Any:
        """Change files by `make`, and serve what they say; all of it, or nothing.

        Returns what `make` returned. Raises Unusable when the files can't be used even before, and PolicyError
        or SettingsError when they can't be afterwards: then they are as they were.
        """
        with self._lock, locked(self.settings):
            if look(self.settings) != self._seen:
                with contextlib.suppress(ValueError, OSError):
                    self._reload("files")
            if self.failed is not None:
                raise Unusable(f"the files of the policies have to be mended first: {self.failed}")
            if self.version is None:
                raise Unusable(f"versions can't be kept in {self.history.folder}, so that nothing could be taken back")
            before = self.version
            try:
                made = make()
                self._reload(by)
            except BaseException:
                self.history.restore(before)
                self._reload("taken back")
                raise
            return made

    def rollback(self, number: int, by: str) -> None:
        """Put a version back in force. Raises HistoryError, and as `change` does."""
        version = self.history.get(number)
        with self._lock, locked(self.settings):
            current = self.version
            self.history.restore(version)
            try:
                self._reload(by, restores=number)
            except BaseException:
                if current is not None:
                    self.history.restore(current)
                    self._reload("taken back")
                raise

    def poll(self) -> None:
        """Serve what the files say, if they have changed."""
        with self._lock:
            if look(self.settings) == self._seen:
                return
            self._wait_for_quiet()
            with locked(self.settings):
                with contextlib.suppress(ValueError, OSError):
                    self._reload("files")  # what fails is said and counted there

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.poll()
            except Exception:
                # The watch must outlive whatever it meets: nobody else would notice that it ended.
                log.exception("watching the policies failed")

    def _wait_for_quiet(self) -> None:
        """Until nothing was changed for a moment: files come one by one, and clocks of file systems are coarse."""
        for _ in range(20):
            newest = max((stamp[0] for stamp in look(self.settings).values()), default=0)
            if not 0 <= time.time() - newest / 1e9 < QUIET_S:
                return
            time.sleep(QUIET_S)

    def _reload(self, by: str, *, restores: int | None = None) -> None:
        self._seen = look(self.settings)
        started = time.perf_counter()
        try:
            loaded = load(self.settings, self._metrics, self.loaded)
        except Exception as error:
            self._failed(error)
            raise
        self._metrics.policies_reload_seconds.observe(time.perf_counter() - started)
        if self.failed is not None:
            log.info("the policies' files can be used again")
        self.failed = None
        self._metrics.policies_reload_failed.set(0)
        if _content(loaded) == _content(self.loaded):
            return
        self.loaded = loaded
        record = self._keep(by, restores)
        self._metrics.policies_reloads.labels("accepted").inc()
        self.serve(loaded.guard)
        if record is not None:
            self.audit(record)

    def _failed(self, error: Exception) -> None:
        # Only our own messages are known to say file, key and value, and to hold no text of an artifact.
        said = str(error) if isinstance(error, (PolicyError, ValueError, OSError)) else type(error).__name__
        self.failed = said
        self._metrics.policies_reload_failed.set(1)
        self._metrics.policies_reloads.labels("failed").inc()
        log.error("the policies before stay in force: %s", said)

    def _keep(self, by: str, restores: int | None = None) -> dict[str, Any] | None:
        """Keep what is loaded as a version; what the audit trail says about it, None for one that was there."""
        known = self.history.versions()
        before = self.version or (known[-1] if known else None)
        try:
            self.version = self.history.keep(self.loaded, by, restores)
        except (HistoryError, OSError) as error:
            log.error("this version of the policies can't be kept: %s", error)
            self.version = None
            return {"event": "policies", "time": time.time(), "by": by, "before": before and before.number}
        self._metrics.policies_version.set(self.version.number)
        if before is not None and self.version.number == before.number:
            return None
        log.info("version %d of the policies is in force (%s)", self.version.number, self.version.by)
        return {
            "event": "policies",
            "time": time.time(),
            "by": self.version.by,
            "version": self.version.number,
            "hash": self.version.hash,
            "before": before and before.number,
            "restores": self.version.restores,
            "changed": _changed(before, self.version),
        }


def _content(loaded: Loaded) -> tuple[Any, ...]:
    return {policy.source: policy.hash for policy in loaded.policies}, dict(loaded.stamps)


def _changed(before: Version | None, after: Version) -> list[str]:
    """Which files and artifacts came, went or changed."""
    old = {**before.policies, **before.artifacts} if before else {}
    new = {**after.policies, **after.artifacts}
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
