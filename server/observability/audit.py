"""The audit trail: one JSON line a judged request, written by a thread of its own.

The request path only puts a record into a bounded queue. A record that can't be kept is counted, never
waited for. Everything accepted is written, or counted as lost, before `close` returns; a file that takes nothing
holds up the end for CLOSE_S at most.
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

QUEUE_RECORDS = 10_000
BATCH_RECORDS = 256
CLOSE_S = 5.0
# After a write the next records gather for so long: under load, waking a thread for each costs more than writing it.
GATHER_S = 0.02


class Audit:
    """The writer of one file. `put` and `close` belong to one thread, the server's."""

    def __init__(self, path: Path | None, metrics: Metrics, turns: Path | None = None) -> None:
        """Open `path` for appending (None: no trail). Raises OSError when it can't be opened.

        turns: a file by which the workers of a gateway take turns to append; None: nobody else appends.
        """
        self._metrics = metrics
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUE_RECORDS)
        self._thread: threading.Thread | None = None
        self._writing = 0  # records that the thread has in hand
        self._kept = path is not None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = _Lines(path.open("ab", buffering=0), turns)
            self._thread = threading.Thread(target=self._write, name="lethe-audit", daemon=True)
            self._thread.start()

    def put(self, record: dict[str, Any]) -> None:
        """Accept a record without blocking; a full queue, or a closed trail, loses it and counts the loss."""
        if self._thread is None:
            self._metrics.audit_lost.inc(self._kept)
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._metrics.audit_lost.inc()

    def close(self) -> None:
        """Write what was accepted, then close the file; what a file does not take in time is lost."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        until = time.monotonic() + CLOSE_S
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_S)
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            # A write that does not return (a dead network file system, a pipe that nobody reads) can't be ended.
            with self._queue.mutex:
                lost = self._writing + sum(record is not None for record in self._queue.queue)
                self._queue.queue.clear()
            self._metrics.audit_lost.inc(lost)
            log.error("%d audit records were not written: the file takes nothing", lost)
            return
        self._lines.close()

    def _write(self) -> None:
        failing = False
        while True:
            batch = [self._queue.get()]
            while batch[-1] is not None and len(batch) < BATCH_RECORDS and not self._queue.empty():
                batch.append(self._queue.get())
            records = [record for record in batch if record is not None]
            self._writing = len(records)
            lines = [line for record in records if (line := _line(record)) is not None]
            written, error = self._lines.write(lines)
            if error is not None and not failing:
                # Said once per outage; the counter says how much was lost.
                log.error("audit records can't be written: %s", error)
            failing = error is not None
            self._metrics.audit_records.inc(written)
            self._metrics.audit_lost.inc(len(records) - written)
            self._writing = 0
            if batch[-1] is None:
                return
            if self._queue.qsize() < BATCH_RECORDS:
                time.sleep(GATHER_S)


def _line(record: dict[str, Any]) -> bytes | None:
    """The record as one line of JSON; None, and a log line without its values, when it can't be."""
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        log.error("an audit record can't be written as JSON: %s", error)
        return None


class _Lines:
    """Lines appended to a raw file, none of them ever joined to the torn end of another."""

    def __init__(self, file: io.RawIOBase, turns: Path | None = None) -> None:
        """turns: locked while a process writes; what it holds says whether the last one left a torn line."""
        self._file = file
        self._torn = False
        self._turns = None if turns is None else turns.open("a+b", buffering=0)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._turns is None:
            yield
            return
        handle = self._turns.fileno()
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            # Only the length tells, for a process may be killed while it writes: then the line counts as torn.
            self._torn = os.fstat(handle).st_size > 0
            os.ftruncate(handle, 1)
            yield
            os.ftruncate(handle, self._torn)
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)

    def write(self, lines: list[bytes]) -> tuple[int, OSError | None]:
        """How many lines are in the file whole, and what stopped the rest."""
        if not lines:
            return 0, None
        with self._turn():
            return self._append(lines)

    def _append(self, lines: list[bytes]) -> tuple[int, OSError | None]:
        data = (b"\n" if self._torn else b"") + b"".join(lines)
        start, done, stopped = int(self._torn), 0, None
        try:
            while done < len(data):
                done += self._write(data[done:])
        except OSError as error:
            stopped = error
        if done:
            self._torn = data[done - 1] != ord("\n")
        return data.count(b"\n", start, max(done, start)), stopped

    def _write(self, data: bytes) -> int:
        taken = self._file.write(data)
        if not taken:
            raise BlockingIOError("the file takes no bytes now")
        return taken

    def close(self) -> None:
        self._file.close()
        if self._turns is not None:
            self._turns.close()
