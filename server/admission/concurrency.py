"""Concurrency limit with a bounded FIFO queue, and a memory budget for request bodies.

Everything runs on the event loop's thread. Every wait is bounded; a request that gets no slot or memory is answered
with 503, an error message that names the setting, and a retry-after header.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lethe.server.admission.rate_limits import KeyLimits
from lethe.server.errors import GatewayError, Overloaded, TooSlow
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings
from lethe.server.slot_queue import QueueFull, SlotQueue, WaitTimeout

# Value of retry-after, in seconds, when the gateway is full: a guess: the duration of requests is unknown.
RETRY_AFTER_S = 1.0
# One part in this many of the memory is for small bodies alone. Chosen, not measured.
SMALL_BODIES_SHARE = 4
# Bytes up to which a body is small. Chosen: nearly all requests, also those of coding agents without pictures.
SMALL_BODY_BYTES = 1 << 20
# An upload is slow when fewer than MIN_BYTES arrived in SLOW_S seconds. Chosen: slower than any network of today.
SLOW_S, MIN_BYTES = 1.0, 64 * 1024


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
    """Bytes of request bodies that all requests together may hold in memory.

    Two rules keep uploads that stall from locking others out. A part of the budget is for small bodies alone. And when
    memory is short, the uploads that arrive slowest are given up, beginning with the client that holds the most: the
    gateway waits for a slow client only as long as nobody else needs the memory.
    """

    def __init__(self, max_bytes: int, metrics: Metrics | None = None, *, max_body_bytes: int = 0) -> None:
        """metrics: where the bytes in use are shown. max_body_bytes: the largest body, which must fit in any case."""
        self._max_bytes = max_bytes
        self._max_bytes_for_large = max(max_bytes - max_bytes // SMALL_BODIES_SHARE, min(max_body_bytes, max_bytes))
        self.used_bytes = 0
        self._uploads: dict[MemoryReservation, None] = {}
        if metrics is not None:
            metrics.compute(metrics.held_bytes, lambda: self.used_bytes)

    def reservation(self, client: str = "", give_up: Callable[[GatewayError], None] | None = None) -> MemoryReservation:
        """One request's part of the budget, as a context manager.

        client: whose request it is. give_up: ends the request with an error, if its upload is too slow; None: it can't
        be ended.
        """
        return MemoryReservation(self, client, give_up)

    def begin_upload(self, reservation: MemoryReservation) -> None:
        """The reservation may be given up from now on."""
        self._uploads[reservation] = None

    def end_upload(self, reservation: MemoryReservation) -> None:
        """The reservation may not be given up any more."""
        self._uploads.pop(reservation, None)

    def take(self, reservation: MemoryReservation, size: int) -> None:
        """Reserve `size` bytes more for one request. Raises Overloaded."""
        is_small = reservation.reserved_bytes + size <= SMALL_BODY_BYTES
        limit = self._max_bytes if is_small else self._max_bytes_for_large
        if self.used_bytes + size > limit:
            self._give_up_slow_uploads(self.used_bytes + size - limit, reservation)
        if self.used_bytes + size > limit:
            raise Overloaded(
                f"request bodies in memory exceed {self._max_bytes} bytes (LETHE_MAX_HELD_BYTES)",
                code="memory_full",
                retry_after_s=RETRY_AFTER_S,
            )
        self.used_bytes += size

    def give_back(self, size: int) -> None:
        self.used_bytes -= size

    def _give_up_slow_uploads(self, needed_bytes: int, by: MemoryReservation) -> None:
        """Give up the slowest uploads until `needed_bytes` are free, or none is slow."""
        now = time.monotonic()
        slow = [upload for upload in self._uploads if upload is not by and upload.is_slow(now)]
        bytes_of_client: dict[str, int] = {}
        for upload in self._uploads:
            bytes_of_client[upload.client] = bytes_of_client.get(upload.client, 0) + upload.reserved_bytes
        for upload in sorted(slow, key=lambda one: (-bytes_of_client[one.client], -one.reserved_bytes)):
            if needed_bytes <= 0:
                return
            needed_bytes -= upload.reserved_bytes
            upload.abandon()


class MemoryReservation:
    """The bytes that one request has reserved; they are given back at the end of the `with` block."""

    def __init__(self, budget: MemoryBudget, client: str, give_up: Callable[[GatewayError], None] | None) -> None:
        self._budget = budget
        self.client = client
        self._give_up = give_up
        self.reserved_bytes = 0
        # When MIN_BYTES had arrived for the last time, and the bytes that arrived since.
        self._last_progress_s = time.monotonic()
        self._bytes_since = 0

    def __enter__(self) -> MemoryReservation:
        if self._give_up is not None:
            self._budget.begin_upload(self)
        return self

    def take(self, size: int) -> None:
        """Reserve `size` bytes more, which have arrived. Raises Overloaded."""
        self._budget.take(self, size)
        self.reserved_bytes += size
        self._bytes_since += size
        if self._bytes_since >= MIN_BYTES:
            self._last_progress_s, self._bytes_since = time.monotonic(), 0

    def complete(self) -> None:
        """The whole body is here: the request is no upload any more."""
        self._budget.end_upload(self)

    def is_slow(self, now: float) -> bool:
        """Whether fewer than MIN_BYTES arrived in the last SLOW_S seconds."""
        return now - self._last_progress_s > SLOW_S

    def abandon(self) -> None:
        """End the request, and give its bytes back at once."""
        self._budget.end_upload(self)
        self._budget.give_back(self.reserved_bytes)
        self.reserved_bytes = 0
        if self._give_up is not None:
            message = "the body arrived too slowly while memory for bodies was short (LETHE_MAX_HELD_BYTES)"
            self._give_up(TooSlow(message, code="body_too_slow"))

    def __exit__(self, *_: object) -> None:
        self._budget.end_upload(self)
        self._budget.give_back(self.reserved_bytes)
        self.reserved_bytes = 0


class RequestLimits:
    """The limits that every request passes: its key's, the memory budget and the concurrency limit."""

    def __init__(self, settings: Settings, metrics: Metrics, key_limits: KeyLimits | None = None) -> None:
        self.key_limits = key_limits or KeyLimits()
        self.memory = MemoryBudget(settings.max_held_bytes, metrics, max_body_bytes=settings.max_body_bytes)
        self.concurrency = ConcurrencyLimit(
            settings.max_requests, max_waiting=settings.max_queue, wait_s=settings.queue_timeout_s, metrics=metrics
        )
