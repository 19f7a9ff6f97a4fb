"""How much at once: places for requests, a bounded line in front of them, each key's limits, memory for bodies.

All on the event loop's own thread. Nothing is waited for without end: what can't be had is refused, with the
setting's name in the message and a time after which it is worth trying again.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lethe.server.errors import Overloaded, RateLimited
from lethe.server.http.api_keys import Key
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings

# A place comes free within about this time, or not for long: a guess, told to clients that are sent away.
SOON_S = 1.0


class Places:
    """A number of places, given in the order of asking; who can't be seated waits in a bounded line."""

    def __init__(self, places: int, *, waiting: int, wait_s: float, metrics: Metrics) -> None:
        self._free = places
        self._most_waiting = waiting
        self._wait_s = wait_s
        self._line: deque[asyncio.Future[None]] = deque()
        self._metrics = metrics

    async def __aenter__(self) -> None:
        """A place, kept inside the block. Raises Overloaded: the line is full, or the wait was too long."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait()

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    async def _wait(self) -> None:
        if len(self._line) >= self._most_waiting:
            raise Overloaded(
                "the gateway is full (LETHE_MAX_REQUESTS, LETHE_MAX_QUEUE)", code="queue_full", retry_after_s=SOON_S
            )
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._metrics.queue_length.set(len(self._line))
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.cancelled():
                self._line.remove(turn)
            else:
                # The place was given in the moment in which we stopped to wait for it.
                self._leave()
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"no place was free within {self._wait_s:g} s (LETHE_QUEUE_TIMEOUT_S)",
                    code="queue_timeout",
                    retry_after_s=SOON_S,
                ) from None
            raise
        finally:
            self._metrics.queue_length.set(len(self._line))

    def _leave(self) -> None:
        turn = next((turn for turn in self._line if not turn.cancelled()), None)
        if turn is None:
            self._free += 1
        else:
            self._line.remove(turn)
            turn.set_result(None)


class Memory:
    """Bytes of request bodies that all requests together may hold."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = most
        self.held = 0
        metrics.compute(metrics.held_bytes, lambda: self.held)

    def share(self) -> Share:
        """A context whose `take` takes so many bytes more, given back at its end. It raises Overloaded."""
        return Share(self)

    def take(self, size: int) -> None:
        if self.held + size > self._most:
            raise Overloaded(
                "the gateway holds too many request bodies (LETHE_MAX_HELD_BYTES)",
                code="memory_full",
                retry_after_s=SOON_S,
            )
        self.held += size


class Share:
    """What one request holds of the memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._mine = 0

    def __enter__(self) -> Callable[[int], None]:
        return self._take

    def _take(self, size: int) -> None:
        self._memory.take(size)
        self._mine += size

    def __exit__(self, *_: object) -> None:
        self._memory.held -= self._mine


@dataclass
class _Usage:
    """What one key has used: requests it still has, as of a time, and those being served."""

    requests: float
    at: float
    serving: int = 0

    def fill(self, full: float, now: float) -> None:
        """Let the bucket fill as far as it did since it was last looked at."""
        self.requests, self.at = min(full, self.requests + max(0.0, now - self.at) * full / 60), now


class KeyLimits:
    """Each key's own limits: requests a minute (a bucket that fills steadily), and requests at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, usage: SharedUsage | None = None) -> None:
        """usage: where all workers count together; None: this process counts for itself."""
        self._clock = clock
        self._usage: dict[str, _Usage] = {}
        self._shared = usage

    def _of(self, sha256: str, full: float) -> AbstractContextManager[_Usage]:
        now = self._clock()
        if self._shared is not None:
            return self._shared.of(sha256, full, now)
        return nullcontext(self._usage.setdefault(sha256, _Usage(full, now)))

    @contextmanager
    def one(self, key: Key | None) -> Iterator[None]:
        """One request of a key's, served inside the block. Raises RateLimited."""
        if key is None or (key.requests_per_minute is None and key.concurrency is None):
            yield
            return
        full = float(key.requests_per_minute or 0)
        with self._of(key.sha256, full) as usage:
            if key.concurrency is not None and usage.serving >= key.concurrency:
                raise RateLimited(
                    f"this key may have {key.concurrency} requests at a time",
                    code="concurrency_limit",
                    retry_after_s=SOON_S,
                )
            if key.requests_per_minute is not None:
                usage.fill(full, self._clock())
                if usage.requests < 1:
                    raise RateLimited(
                        f"this key may make {key.requests_per_minute} requests a minute",
                        code="rate_limit_exceeded",
                        retry_after_s=(1 - usage.requests) * 60 / full,
                    )
                usage.requests -= 1
            usage.serving += 1
        try:
            yield
        finally:
            with self._of(key.sha256, full) as usage:
                usage.serving -= 1


class SharedUsage:
    """What each key has used, counted by all workers of a gateway in one file.

    A table of SLOTS places; a key's lie from the place that its digest names, and it takes the first of PROBES
    there that is its own or that nobody needs. Each worker counts those that it serves for itself, so that what
    a dead one was serving can be taken off (`leave_out`). One system-wide clock (CLOCK_MONOTONIC) dates the buckets.
    """

    SLOTS = 1 << 14
    PROBES = 64
    # Digest, requests left, as of when.
    _HEAD = struct.Struct("32sdd")

    def __init__(self, path: Path, number: int, workers: int) -> None:
        self._slot = struct.Struct(f"{workers}I")
        self._size = self._HEAD.size + self._slot.size
        self._workers, self._number = workers, number
        self._file = path.open("a+b")
        # Not a file with holes: where there is no room to fill one, the process would end (SIGBUS).
        os.posix_fallocate(self._file.fileno(), 0, self.SLOTS * self._size)
        self._table = mmap.mmap(self._file.fileno(), self.SLOTS * self._size)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # The system gives it back when its holder dies.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextmanager
    def of(self, sha256: str, full: float, now: float) -> Iterator[_Usage]:
        """What the key has used, over all workers, to be changed inside the block. Raises Overloaded: no place is left.

        full: the requests that a key has which was not seen before.
        """
        with self._alone():
            digest = bytes.fromhex(sha256)
            at = self._find(digest, now)
            owner, requests, dated = self._HEAD.unpack_from(self._table, at)
            serving = list(self._slot.unpack_from(self._table, at + self._HEAD.size))
            usage = _Usage(requests, dated, sum(serving)) if owner == digest else _Usage(full, now)
            before = usage.serving
            try:
                yield usage
            finally:
                serving[self._number] = max(0, serving[self._number] + usage.serving - before)
                self._HEAD.pack_into(self._table, at, digest, usage.requests, usage.at)
                self._slot.pack_into(self._table, at + self._HEAD.size, *serving)

    def _find(self, digest: bytes, now: float) -> int:
        """Where in the table the key's place is, or can be."""
        free = None
        first = int.from_bytes(digest[:4], "big")
        for step in range(self.PROBES):
            at = (first + step) % self.SLOTS * self._size
            owner, _, dated = self._HEAD.unpack_from(self._table, at)
            if owner == digest:
                return at
            if free is None and (owner == bytes(32) or self._is_done_with(at, now - dated)):
                free = at
        if free is None:
            raise Overloaded("too many keys are in use at a time", code="keys_full", retry_after_s=60)
        return free

    def _is_done_with(self, at: int, since_s: float) -> bool:
        """Any bucket is full again after a minute, as that of a key which was never seen."""
        return since_s > 60 and not any(self._slot.unpack_from(self._table, at + self._HEAD.size))

    def leave_out(self, number: int) -> None:
        """The worker of that number has died, and serves nothing any more."""
        with self._alone():
            for start in range(self._HEAD.size, len(self._table), self._size):
                at = start + 4 * number
                if self._table[at : at + 4] != bytes(4):
                    self._table[at : at + 4] = bytes(4)

    def close(self) -> None:
        self._table.close()
        self._file.close()


class Admission:
    """The three together, as the settings say."""

    def __init__(self, settings: Settings, metrics: Metrics, keys: KeyLimits | None = None) -> None:
        self.keys = keys or KeyLimits()
        self.memory = Memory(settings.max_held_bytes, metrics)
        self.places = Places(
            settings.max_requests, waiting=settings.max_queue, wait_s=settings.queue_timeout_s, metrics=metrics
        )
