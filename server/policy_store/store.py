"""The current policies, replaced as a whole while requests are served.

A thread checks the policy files and the artifacts' manifests twice a second. When something has changed, all of it is
read and checked. Valid files become a new guard and a new version (`server/policy_store/versions.py`). If they are
invalid, the previous version stays in use, and the log and a metric say so. A request keeps the guard it started with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lethe.server.guard.guard import Guard
from lethe.server.observability.metrics import Metrics
from lethe.server.policy.files import policy_files
from lethe.server.policy.schema import PolicyError
from lethe.server.policy_store.load import LoadedPolicies, load_policies, manifest_hash
from lethe.server.policy_store.versions import HistoryError, Version, VersionHistory, policies_lock
from lethe.server.settings import Settings

log = logging.getLogger("lethe.policies")

# Seconds between two checks of the files. Chosen: a change is used within about a second.
POLL_S = 0.5
# Seconds without a change before files are read: longer than the clock resolution of file systems (up to 10 ms on
# Linux), and than programs take from one of several files to the next.
SETTLE_S = 0.05

FileStamp = tuple[int, int, int, int]
FileStamps = dict[Path, FileStamp]


class InvalidPolicyFiles(ValueError):
    """A change is rejected because the files on disk are invalid already."""


def file_stamps(settings: Settings) -> FileStamps:
    """Times (ns), size and inode of each policy file and artifact manifest; they differ after every change."""
    stamps: FileStamps = {}
    for path in (*policy_files(settings.policies), *settings.artifacts.glob("*/manifest.json")):
        if (stamp := _file_stamp(path)) is not None:
            stamps[path] = stamp
    return stamps


def _file_stamp(path: Path) -> FileStamp | None:
    """None for a file that was deleted in the meantime, which is a change."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


class PolicyStore:
    """The current policies. Safe to use from any thread.

    on_guard is called with each new guard, on_change with the audit record of each change, both from any thread.
    failure: why the files on disk are not used; None if they are. version: None if versions can't be saved.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Load the policies. Raises PolicyError or SettingsError if the files are invalid."""
        self.settings = settings
        self.history = VersionHistory(settings)
        self.version: Version | None = None
        self.failure: str | None = None
        self.on_guard: Callable[[Guard], object] = lambda guard: None
        self.on_change: Callable[[dict[str, Any]], object] = lambda record: None
        self._metrics = metrics
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        with policies_lock(settings):
            self._stamps = file_stamps(settings)
            self.loaded = load_policies(settings, metrics)
            self._start_record = self._save_version("start")
            self._ignore_own_links(self.loaded.artifact_hashes)

    @property
    def state(self) -> str:
        """A hash of the current policies and artifacts, equal in all processes that serve the same files."""
        return hashlib.sha256(json.dumps(_file_hashes(self.loaded), sort_keys=True).encode()).hexdigest()

    def start(self, on_guard: Callable[[Guard], object], on_change: Callable[[dict[str, Any]], object]) -> None:
        """Start watching the files."""
        self.on_guard, self.on_change = on_guard, on_change
        if self._start_record is not None:
            self.on_change(self._start_record)
        self._thread = threading.Thread(target=self._watch_files, name="lethe-policies", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching the files. Blocks until a reload in progress is finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def change(self, by: str, edit: Callable[[], Any]) -> Any:
        """Change files by calling `edit`, and use the result: all of it, or nothing.

        Returns what `edit` returned. Raises InvalidPolicyFiles if the files were invalid before, and PolicyError or
        SettingsError if they are invalid afterwards; in both cases the files are as they were.
        """
        with self._lock, policies_lock(self.settings):
            if file_stamps(self.settings) != self._stamps:
                with contextlib.suppress(ValueError, OSError):
                    self._reload("files")
            if self.failure is not None:
                raise InvalidPolicyFiles(f"correct the policy files first: {self.failure}")
            if self.version is None:
                raise InvalidPolicyFiles(
                    f"versions can't be saved in {self.history.folder}, so no change can be undone"
                )
            previous = self.version
            try:
                result = edit()
                self._reload(by)
            except BaseException:
                self.history.restore(previous)
                self._reload("taken back")
                raise
            return result

    def rollback(self, number: int, by: str) -> None:
        """Restore a version. Raises HistoryError, and as `change` does."""
        version = self.history.get(number)
        with self._lock, policies_lock(self.settings):
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
        """Reload the files if they have changed."""
        with self._lock:
            if file_stamps(self.settings) == self._stamps:
                return
            self._wait_until_settled()
            with policies_lock(self.settings):
                with contextlib.suppress(ValueError, OSError):
                    self._reload("files")  # it logs and counts failures

    def _watch_files(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.poll()
            except Exception:
                # The thread must survive every error: nobody would notice that it ended.
                log.exception("checking the policy files failed")

    def _wait_until_settled(self) -> None:
        """Wait until no file has changed for SETTLE_S: files are written one by one. Gives up after one second."""
        for _ in range(20):
            newest = max((stamp[0] for stamp in file_stamps(self.settings).values()), default=0)
            if not 0 <= time.time() - newest / 1e9 < SETTLE_S:
                return
            time.sleep(SETTLE_S)

    def _reload(self, by: str, *, restores: int | None = None) -> None:
        self._stamps = file_stamps(self.settings)
        started = time.perf_counter()
        try:
            loaded = load_policies(self.settings, self._metrics, self.loaded)
        except Exception as error:
            self._report_failure(error)
            raise
        self._metrics.policies_reload_seconds.observe(time.perf_counter() - started)
        if self.failure is not None:
            log.info("the policy files are valid again")
        self.failure = None
        self._metrics.policies_reload_failed.set(0)
        if _file_hashes(loaded) == _file_hashes(self.loaded):
            return
        known, self.loaded = self.loaded.artifact_hashes, loaded
        record = self._save_version(by, restores)
        self._ignore_own_links(n for n, digest in loaded.artifact_hashes.items() if known.get(n) != digest)
        self._metrics.policies_reloads.labels("accepted").inc()
        self.on_guard(loaded.guard)
        if record is not None:
            self.on_change(record)

    def _ignore_own_links(self, names: Iterable[str]) -> None:
        """Don't take the hard links of a saved version for a change: a link changes the status time of its file.

        Without this, each change would be read twice. names: the artifacts that the version linked.
        """
        for name in names:
            path = self.settings.artifacts / name / "manifest.json"
            stamp, old = _file_stamp(path), self._stamps.get(path)
            if old is None or stamp is None or (stamp[0], *stamp[2:]) != (old[0], *old[2:]):
                continue
            if manifest_hash(path.parent) == self.loaded.artifact_hashes.get(name):
                self._stamps[path] = stamp

    def _report_failure(self, error: Exception) -> None:
        # Only our own messages are known to name file, key and value, and to contain no text of an artifact.
        is_ours = isinstance(error, (PolicyError, ValueError, OSError))
        self.failure = str(error) if is_ours else type(error).__name__
        self._metrics.policies_reload_failed.set(1)
        self._metrics.policies_reloads.labels("failed").inc()
        log.error("policy reload failed; keeping the previous version: %s", self.failure)

    def _save_version(self, by: str, restores: int | None = None) -> dict[str, Any] | None:
        """Save the loaded policies as a version. Return its audit record, or None if the version existed already."""
        versions = self.history.versions()
        previous = self.version or (versions[-1] if versions else None)
        try:
            self.version = self.history.save(self.loaded, by, restores)
        except (HistoryError, OSError) as error:
            log.error("this version of the policies can't be saved: %s", error)
            self.version = None
            return {"event": "policies", "time": time.time(), "by": by, "before": previous and previous.number}
        self._metrics.policies_version.set(self.version.number)
        if previous is not None and self.version.number == previous.number:
            return None
        log.info("using version %d of the policies (%s)", self.version.number, self.version.by)
        return {
            "event": "policies",
            "time": time.time(),
            "by": self.version.by,
            "version": self.version.number,
            "hash": self.version.hash,
            "before": previous and previous.number,
            "restores": self.version.restores,
            "changed": _changed_names(previous, self.version),
        }


def _file_hashes(loaded: LoadedPolicies) -> tuple[dict[str, str], dict[str, str]]:
    return {policy.source: policy.hash for policy in loaded.policies}, dict(loaded.artifact_hashes)


def _changed_names(before: Version | None, after: Version) -> list[str]:
    """The files and artifacts that were added, removed or changed."""
    old = {**before.policies, **before.artifacts} if before else {}
    new = {**after.policies, **after.artifacts}
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
