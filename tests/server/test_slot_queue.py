"""Slots with a bounded queue: order, bounds, and slots reserved for small work."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import Gauge

from lethe.server.slot_queue import QueueFull, SlotQueue, WaitTimeout


def queue_of(slots: int, *, max_waiting: int = 10, wait_s: float = 5.0, reserved: int = 0) -> SlotQueue:
    length = Gauge("length", "Waiters.", registry=None)
    return SlotQueue(slots, max_waiting=max_waiting, wait_s=wait_s, length=length, reserved=reserved)


async def test_waiters_are_served_by_priority_then_arrival() -> None:
    queue, served = queue_of(1), []

    async def work(name: str, priority: float) -> None:
        await queue.acquire(priority=priority)
        served.append(name)
        queue.release()

    await queue.acquire()
    tasks = [asyncio.ensure_future(work(name, priority)) for name, priority in [("c", 2), ("a", 1), ("d", 2), ("b", 1)]]
    await asyncio.sleep(0)
    assert (queue.free, queue.waiting) == (0, 4)
    queue.release()
    await asyncio.gather(*tasks)
    assert served == ["a", "b", "c", "d"] and (queue.free, queue.waiting) == (1, 0)


async def test_a_free_slot_is_taken_without_a_queue() -> None:
    queue = queue_of(1, max_waiting=0)
    await queue.acquire()
    with pytest.raises(QueueFull):
        await queue.acquire()


async def test_waiting_too_long_raises_and_leaves_the_queue() -> None:
    queue = queue_of(1, wait_s=0.01)
    await queue.acquire()
    with pytest.raises(WaitTimeout):
        await queue.acquire()
    assert queue.waiting == 0


async def test_large_work_leaves_the_reserved_slot_to_small_work() -> None:
    queue = queue_of(2, max_waiting=1, reserved=1)
    await queue.acquire(large=True)
    second_large = asyncio.ensure_future(queue.acquire(large=True))
    await asyncio.sleep(0)
    # The queue is full, but small work doesn't need it.
    await queue.acquire()
    queue.release()
    await asyncio.sleep(0)
    assert not second_large.done()
    queue.release(large=True)
    await asyncio.wait_for(second_large, 1)


async def test_large_work_may_have_the_only_slot() -> None:
    queue = queue_of(1, reserved=1)
    await asyncio.wait_for(queue.acquire(large=True), 1)
