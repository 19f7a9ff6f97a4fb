"""Limits per API key: requests per minute (a token bucket) and concurrent requests.

A single process counts in memory; the workers of one gateway count together in a memory-mapped file.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lethe.server.admission.api_keys import Key
from lethe.server.errors import Overloaded, RateLimited

# Value of retry-after, in seconds, for a key that has reached its concurrency: a guess, as in `concurrency.py`.
RETRY_AFTER_S = 1.0


@dataclass
class KeyUsage:
    """What one key has used.

    tokens: requests left in the bucket. updated_at: when `tokens` was computed, in seconds of the monotonic clock.
    in_flight: requests that are being served.
    """

    tokens: float
    updated_at: float
    in_flight: int = 0

    def refill(self, capacity: float, now: float) -> None:
        """Add the tokens of the time since the last update: `capacity` tokens per minute, at most `capacity`."""
        self.tokens = min(capacity, self.tokens + max(0.0, now - self.updated_at) * capacity / 60)
        self.updated_at = now


class KeyLimits:
    """Enforces each key's `requests_per_minute` and `concurrency`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, shared: SharedKeyUsage | None = None) -> None:
        """shared: the table in which all workers count together; None: this process counts alone."""
        self._clock = clock
        self._usage: dict[str, KeyUsage] = {}
        self._shared = shared

    def _usage_of(self, sha256: str, capacity: float) -> AbstractContextManager[KeyUsage]:
        now = self._clock()
        if self._shared is not None:
            return self._shared.usage_of(sha256, capacity, now)
        return nullcontext(self._usage.setdefault(sha256, KeyUsage(capacity, now)))

    @contextmanager
    def admit(self, key: Key | None) -> Iterator[None]:
        """Serve one request of `key` inside the block. Raises RateLimited."""
        if key is None or (key.requests_per_minute is None and key.concurrency is None):
            yield
            return
        capacity = float(key.requests_per_minute or 0)
        with self._usage_of(key.sha256, capacity) as usage:
            self._check(key, usage)
            usage.in_flight += 1
        try:
            yield
        finally:
            with self._usage_of(key.sha256, capacity) as usage:
                usage.in_flight -= 1

    def _check(self, key: Key, usage: KeyUsage) -> None:
        """Take a token from the key's bucket. Raises RateLimited."""
        if key.concurrency is not None and usage.in_flight >= key.concurrency:
            raise RateLimited(
                f"this key is limited to {key.concurrency} concurrent requests",
                code="concurrency_limit",
                retry_after_s=RETRY_AFTER_S,
            )
        if key.requests_per_minute is None:
            return
        usage.refill(key.requests_per_minute, self._clock())
        if usage.tokens < 1:
            raise RateLimited(
                f"this key is limited to {key.requests_per_minute} requests per minute",
                code="rate_limit_exceeded",
                retry_after_s=(1 - usage.tokens) * 60 / key.requests_per_minute,
            )
        usage.tokens -= 1


class SharedKeyUsage:
    """Each key's usage, counted by all workers of a gateway in one memory-mapped file.

    The file is an open-addressing hash table of SLOTS slots: the key's digest gives the first slot, and the key takes
    the first of the next PROBES slots that is its own, empty or expired. Every worker has its own counter of requests
    in flight, so that the supervisor can clear the counter of a worker that died (`clear_worker`). All workers use
    one system-wide clock (CLOCK_MONOTONIC).
    """

    # Keys with limits that can be in use within the same minute; about 1 MiB with few workers.
    SLOTS = 1 << 14
    # Slots searched for a key: bounds the time that the file lock is held.
    PROBES = 64
    # Per slot: SHA-256 digest of the key, tokens left, time of the last update in seconds.
    _HEADER = struct.Struct("32sdd")

    def __init__(self, path: Path, worker: int, workers: int) -> None:
        """worker: index of this process's counter, below `workers`. Raises OSError where the disk is full."""
        self._in_flight = struct.Struct(f"{workers}I")
        self._slot_bytes = self._HEADER.size + self._in_flight.size
        self._worker = worker
        self._file = path.open("a+b")
        # Not a sparse file: if the disk is full when a page is first written, the kernel kills the process (SIGBUS).
        os.posix_fallocate(self._file.fileno(), 0, self.SLOTS * self._slot_bytes)
        self._table = mmap.mmap(self._file.fileno(), self.SLOTS * self._slot_bytes)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # The kernel releases the lock of a process that dies.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextmanager
    def usage_of(self, sha256: str, capacity: float, now: float) -> Iterator[KeyUsage]:
        """The key's usage over all workers; changes made inside the block are stored. Raises Overloaded.

        capacity: tokens of a key that has no slot yet. now: seconds of the monotonic clock.
        """
        with self._locked():
            digest = bytes.fromhex(sha256)
            offset = self._find_slot(digest, now)
            owner, tokens, updated_at = self._HEADER.unpack_from(self._table, offset)
            in_flight = list(self._in_flight.unpack_from(self._table, offset + self._HEADER.size))
            usage = KeyUsage(tokens, updated_at, sum(in_flight)) if owner == digest else KeyUsage(capacity, now)
            before = usage.in_flight
            try:
                yield usage
            finally:
                in_flight[self._worker] = max(0, in_flight[self._worker] + usage.in_flight - before)
                self._HEADER.pack_into(self._table, offset, digest, usage.tokens, usage.updated_at)
                self._in_flight.pack_into(self._table, offset + self._HEADER.size, *in_flight)

    def _find_slot(self, digest: bytes, now: float) -> int:
        """The byte offset of the key's slot, or of one that the key can take. Raises Overloaded."""
        free = None
        first = int.from_bytes(digest[:4], "big")
        for step in range(self.PROBES):
            offset = (first + step) % self.SLOTS * self._slot_bytes
            owner, _, updated_at = self._HEADER.unpack_from(self._table, offset)
            if owner == digest:
                return offset
            if free is None and (owner == bytes(32) or self._is_expired(offset, now - updated_at)):
                free = offset
        if free is None:
            raise Overloaded("too many rate-limited keys are in use", code="keys_full", retry_after_s=60)
        return free

    def _is_expired(self, offset: int, age_s: float) -> bool:
        """Whether a slot holds no information: every bucket is full again after a minute, and nothing is in flight."""
        return age_s > 60 and not any(self._in_flight.unpack_from(self._table, offset + self._HEADER.size))

    def clear_worker(self, worker: int) -> None:
        """Set the in-flight counters of a worker that died to zero."""
        with self._locked():
            for start in range(self._HEADER.size, len(self._table), self._slot_bytes):
                offset = start + 4 * worker
                if self._table[offset : offset + 4] != bytes(4):
                    self._table[offset : offset + 4] = bytes(4)

    def close(self) -> None:
        self._table.close()
        self._file.close()
