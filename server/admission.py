"""How much at once: places for requests, a bounded line in front of them, each key's limits, memory for bodies.

All on the event loop's own thread. Nothing is waited for without end: what can't be had is refused, with the
setting's name in the message and a time after which it is worth trying again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.errors import Overloaded, RateLimited
from server.keys import Key
from server.metrics import Metrics
from server.settings import Settings

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
        metrics.held_bytes.set_function(lambda: self.held)

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


class KeyLimits:
    """Each key's own limits: requests a minute (a bucket that fills steadily), and requests at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usage: dict[str, _Usage] = {}

    @contextmanager
    def one(self, key: Key | None) -> Iterator[None]:
        """One request of a key's, served inside the block. Raises RateLimited."""
        if key is None or (key.requests_per_minute is None and key.concurrency is None):
            yield
            return
        now = self._clock()
        full = float(key.requests_per_minute or 0)
        usage = self._usage.setdefault(key.sha256, _Usage(full, now))
        if key.concurrency is not None and usage.serving >= key.concurrency:
            raise RateLimited(
                f"this key may have {key.concurrency} requests at a time",
                code="concurrency_limit",
                retry_after_s=SOON_S,
            )
        if key.requests_per_minute is not None:
            usage.requests = min(full, usage.requests + (now - usage.at) * full / 60)
            usage.at = now
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
            usage.serving -= 1


class Admission:
    """The three together, as the settings say."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.keys = KeyLimits()
        self.memory = Memory(settings.max_held_bytes, metrics)
        self.places = Places(
            settings.max_requests, waiting=settings.max_queue, wait_s=settings.queue_timeout_s, metrics=metrics
        )
