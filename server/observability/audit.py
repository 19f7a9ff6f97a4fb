"""The audit log: one JSON line per judged request, written by a thread of its own.

The request path only puts a record into a bounded queue. A record that doesn't fit is counted as lost; requests never
wait for the audit log. Every accepted record is written, or counted as lost, before `close` returns. A file that blocks
delays `close` by at most CLOSE_TIMEOUT_S.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from lethe.server.observability.metrics import Metrics

log = logging.getLogger("lethe.audit")

# Maximum number of records in the queue. Chosen: seconds of full load while a disk is slow.
QUEUE_RECORDS = 10_000
# Maximum number of records per write. Chosen, not measured.
BATCH_RECORDS = 256
# Seconds that `close` waits for the file, a choice below the usual 10 s that a service manager grants.
CLOSE_TIMEOUT_S = 5.0
# Seconds that records gather after a write: under load, waking a thread for each costs more than writing it.
GATHER_S = 0.02


class AuditLog:
    """The writer of one audit file. `put` and `close` must be called from one thread, the server's."""

    def __init__(self, path: Path | None, metrics: Metrics, lock_file: Path | None = None) -> None:
        """Open `path` for appending (None: no audit log). Raises OSError if it can't be opened.

        lock_file: a file by which the workers of a gateway take turns to append; None: a single process appends.
        """
        self._metrics = metrics
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUE_RECORDS)
        self._thread: threading.Thread | None = None
        self._records_in_write = 0
        self._is_enabled = path is not None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _LineFile(path.open("ab", buffering=0), lock_file)
            self._thread = threading.Thread(target=self._write_records, name="lethe-audit", daemon=True)
            self._thread.start()

    def put(self, record: dict[str, Any]) -> None:
        """Accept a record without blocking. If the queue is full or the log closed, count the record as lost."""
        if self._thread is None:
            self._metrics.audit_lost.inc(self._is_enabled)
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._metrics.audit_lost.inc()

    def close(self) -> None:
        """Write the accepted records, then close the file. Records that can't be written in time are lost."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            # A write that does not return (a dead network file system, a pipe without a reader) can't be cancelled.
            with self._queue.mutex:
                lost = self._records_in_write + sum(record is not None for record in self._queue.queue)
                self._queue.queue.clear()
            self._metrics.audit_lost.inc(lost)
            log.error("%d audit records were lost: writing to the file blocks", lost)
            return
        self._file.close()

    def _write_records(self) -> None:
        is_failing = False
        while True:
            batch = [self._queue.get()]
            while batch[-1] is not None and len(batch) < BATCH_RECORDS and not self._queue.empty():
                batch.append(self._queue.get())
            records = [record for record in batch if record is not None]
            self._records_in_write = len(records)
            lines = [line for record in records if (line := _to_line(record)) is not None]
            written, error = self._file.write(lines)
            if error is not None and not is_failing:
                # Logged once per outage; the metric counts the lost records.
                log.error("audit records can't be written: %s", error)
            is_failing = error is not None
            self._metrics.audit_records.inc(written)
            self._metrics.audit_lost.inc(len(records) - written)
            self._records_in_write = 0
            if batch[-1] is None:
                return
            if self._queue.qsize() < BATCH_RECORDS:
                time.sleep(GATHER_S)


def _to_line(record: dict[str, Any]) -> bytes | None:
    """The record as one line of JSON. If it can't be encoded: None, and a log message without its values."""
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        log.error("an audit record can't be encoded as JSON: %s", error)
        return None


class _LineFile:
    """Appends lines to a raw file, so that no line continues a truncated one."""

    def __init__(self, file: io.RawIOBase, lock_file: Path | None = None) -> None:
        """lock_file: locked while a process writes; its length says whether the file ends with a truncated line."""
        self._file = file
        self._ends_truncated = False
        self._lock = None if lock_file is None else lock_file.open("a+b", buffering=0)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is None:
            yield
            return
        handle = self._lock.fileno()
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            # A process may be killed while it writes: the length is 1 from before the write until after it.
            self._ends_truncated = os.fstat(handle).st_size > 0
            os.ftruncate(handle, 1)
            yield
            os.ftruncate(handle, self._ends_truncated)
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)

    def write(self, lines: list[bytes]) -> tuple[int, OSError | None]:
        """Append lines. Return how many are in the file completely, and the error that stopped the others."""
        if not lines:
            return 0, None
        with self._locked():
            return self._append(lines)

    def _append(self, lines: list[bytes]) -> tuple[int, OSError | None]:
        data = (b"\n" if self._ends_truncated else b"") + b"".join(lines)
        start, done, failure = int(self._ends_truncated), 0, None
        try:
            while done < len(data):
                done += self._write_some(data[done:])
        except OSError as error:
            failure = error
        if done:
            self._ends_truncated = data[done - 1] != ord("\n")
        return data.count(b"\n", start, max(done, start)), failure

    def _write_some(self, data: bytes) -> int:
        count = self._file.write(data)
        if not count:
            raise BlockingIOError("the file accepts no bytes now")
        return count

    def close(self) -> None:
        self._file.close()
        if self._lock is not None:
            self._lock.close()
