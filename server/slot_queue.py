"""A fixed number of slots with a bounded queue in front of them.

The concurrency limit (`server/admission/concurrency.py`) and the judge executor (`server/guard/executor.py`) are built
on it. anyio's CapacityLimiter can't replace it: its queue has no bound and no priorities, its slots belong to a task
(the executor frees them from a thread), and it yields to the event loop even when a slot is free.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from dataclasses import dataclass, field

from prometheus_client import Gauge


class QueueFull(Exception):
    """The queue holds as many waiters as it may."""


class WaitTimeout(Exception):
    """No slot became free within the maximum wait."""


@dataclass(order=True)
class _Waiter:
    priority: float
    number: int  # arrival order: breaks ties of priority
    large: bool = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)


class SlotQueue:
    """Slots for concurrent work. Waiters get a slot in order of priority (lowest first), then of arrival.

    Work may be marked as large; `reserved` slots are never given to large work, except the only slot there is.
    All methods must be called on the event loop's thread.
    """

    def __init__(self, slots: int, *, max_waiting: int, wait_s: float, length: Gauge, reserved: int = 0) -> None:
        """wait_s: maximum wait for a slot in seconds. length: the gauge that shows how many are waiting."""
        self._free = slots
        self._free_for_large = max(1, slots - reserved)
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._length = length
        self._waiters: list[_Waiter] = []  # sorted
        self._numbers = itertools.count()

    @property
    def free(self) -> int:
        """Slots that are not taken."""
        return self._free

    @property
    def waiting(self) -> int:
        """Callers of `acquire` that have no slot yet."""
        return len(self._waiters)

    async def acquire(self, *, priority: float = 0.0, large: bool = False) -> None:
        """Take a slot; the caller must `release` it. Raises QueueFull or WaitTimeout."""
        # A free slot means that no waiter could use it, so no waiter is overtaken here.
        if self._free and (self._free_for_large or not large):
            self._take(large)
            return
        if len(self._waiters) >= self._max_waiting:
            raise QueueFull
        waiter = _Waiter(priority, next(self._numbers), large, asyncio.get_running_loop().create_future())
        insort(self._waiters, waiter)
        self._length.set(len(self._waiters))
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter.granted
        except BaseException as error:
            if waiter.granted.cancelled():
                self._waiters.remove(waiter)
                self._length.set(len(self._waiters))
            else:
                # The slot was granted in the same round of the event loop in which the wait ended.
                self.release(large=large)
            if isinstance(error, TimeoutError):
                raise WaitTimeout from None
            raise

    async def pass_on(self, *, was_large: bool = False, large: bool = False) -> None:
        """Give the slot to those that wait now, and wait behind them for another, without a limit of time or number.

        was_large: as in the call of `acquire`; large: how the next slot is taken. If the wait is cancelled, the caller
        has no slot any more.
        """
        last = self._waiters[-1].priority if self._waiters else 0.0
        waiter = _Waiter(last, next(self._numbers), large, asyncio.get_running_loop().create_future())
        insort(self._waiters, waiter)
        self.release(large=was_large)
        try:
            await waiter.granted
        except BaseException:
            if waiter.granted.cancelled():
                self._waiters.remove(waiter)
                self._length.set(len(self._waiters))
            else:
                self.release(large=large)
            raise

    def release(self, *, large: bool = False) -> None:
        """Give a slot back. large: as in the call of `acquire`."""
        self._free += 1
        self._free_for_large += large
        if self._waiters:
            self._grant()

    def _take(self, large: bool) -> None:
        self._free -= 1
        self._free_for_large -= large

    def _grant(self) -> None:
        """Give free slots to the first waiters that may have one."""
        while self._free:
            eligible = (
                index
                for index, waiter in enumerate(self._waiters)
                if not waiter.granted.cancelled() and (self._free_for_large or not waiter.large)
            )
            index = next(eligible, None)
            if index is None:
                break
            waiter = self._waiters.pop(index)
            self._take(waiter.large)
            waiter.granted.set_result(None)
        self._length.set(len(self._waiters))
