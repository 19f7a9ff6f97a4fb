"""Concurrency limit with a bounded FIFO queue, and a memory budget for request bodies.

Everything runs on the event loop's thread. Every wait is bounded; a request that gets no slot or memory is answered
with 503, an error message that names the setting, and a retry-after header.
"""

from __future__ import annotations

from collections.abc import Callable

from lethe.server.admission.rate_limits import KeyLimits
from lethe.server.errors import Overloaded
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings
from lethe.server.slot_queue import QueueFull, SlotQueue, WaitTimeout

# Value of retry-after, in seconds, when the gateway is full: a guess: the duration of requests is unknown.
RETRY_AFTER_S = 1.0


class ConcurrencyLimit:
    """The number of requests that are served at a time: `async with limit:` waits for a slot, first in, first out."""

    def __init__(self, max_requests: int, *, max_waiting: int, wait_s: float, metrics: Metrics) -> None:
        """wait_s: maximum time in the queue, in seconds."""
        self._wait_s = wait_s
        self._slots = SlotQueue(max_requests, max_waiting=max_waiting, wait_s=wait_s, length=metrics.queue_length)

    async def __aenter__(self) -> None:
        """Take a slot. Raises Overloaded: the queue is full, or the wait took too long."""
        try:
            await self._slots.acquire()
        except QueueFull:
            raise Overloaded(
                "the gateway is full (LETHE_MAX_REQUESTS, LETHE_MAX_QUEUE)",
                code="queue_full",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        except WaitTimeout:
            raise Overloaded(
                f"no request slot became free within {self._wait_s:g} s (LETHE_QUEUE_TIMEOUT_S)",
                code="queue_timeout",
                retry_after_s=RETRY_AFTER_S,
            ) from None

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()


class MemoryBudget:
    """Bytes of request bodies that all requests together may hold in memory."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self.used_bytes = 0
        metrics.compute(metrics.held_bytes, lambda: self.used_bytes)

    def reservation(self) -> MemoryReservation:
        """One request's part of the budget, as a context manager."""
        return MemoryReservation(self)

    def take(self, size: int) -> None:
        """Reserve `size` bytes. Raises Overloaded."""
        if self.used_bytes + size > self._max_bytes:
            raise Overloaded(
                f"request bodies in memory exceed {self._max_bytes} bytes (LETHE_MAX_HELD_BYTES)",
                code="memory_full",
                retry_after_s=RETRY_AFTER_S,
            )
        self.used_bytes += size

    def give_back(self, size: int) -> None:
        self.used_bytes -= size


class MemoryReservation:
    """The bytes that one request has reserved; they are given back at the end of the `with` block.

    The block gets a function that reserves a number of bytes more and raises Overloaded.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._reserved_bytes = 0

    def __enter__(self) -> Callable[[int], None]:
        return self._take

    def _take(self, size: int) -> None:
        self._budget.take(size)
        self._reserved_bytes += size

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._reserved_bytes)


class RequestLimits:
    """The limits that every request passes: its key's, the memory budget and the concurrency limit."""

    def __init__(self, settings: Settings, metrics: Metrics, key_limits: KeyLimits | None = None) -> None:
        self.key_limits = key_limits or KeyLimits()
        self.memory = MemoryBudget(settings.max_held_bytes, metrics)
        self.concurrency = ConcurrencyLimit(
            settings.max_requests, max_waiting=settings.max_queue, wait_s=settings.queue_timeout_s, metrics=metrics
        )
