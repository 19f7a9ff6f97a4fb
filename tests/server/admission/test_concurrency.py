"""The concurrency limit and the memory budget: every wait is bounded, and nothing leaks."""

from __future__ import annotations

import asyncio
import random

import pytest

from lethe.server.admission.concurrency import ConcurrencyLimit, MemoryBudget
from lethe.server.errors import Overloaded
from lethe.server.observability.metrics import Metrics


def limit_of(
    max_requests: int, *, max_waiting: int = 10, wait_s: float = 10.0, metrics: Metrics | None = None
) -> ConcurrencyLimit:
    return ConcurrencyLimit(max_requests, max_waiting=max_waiting, wait_s=wait_s, metrics=metrics or Metrics())


async def hold(limit: ConcurrencyLimit, served: list[int], number: int, finish: asyncio.Event) -> None:
    async with limit:
        served.append(number)
        await finish.wait()


async def start(limit: ConcurrencyLimit, served: list[int], number: int) -> tuple[asyncio.Task[None], asyncio.Event]:
    finish = asyncio.Event()
    task = asyncio.ensure_future(hold(limit, served, number, finish))
    await asyncio.sleep(0)
    return task, finish


async def test_slots_are_granted_first_in_first_out() -> None:
    metrics = Metrics()
    limit, served = limit_of(2, metrics=metrics), []
    started = [await start(limit, served, i) for i in range(5)]
    assert served == [0, 1]
    assert metrics.registry.get_sample_value("lethe_queue_length") == 3
    for i in (1, 0, 2, 3, 4):
        started[i][1].set()
        await asyncio.wait_for(started[i][0], 1)
        await asyncio.sleep(0)
    assert served == [0, 1, 2, 3, 4]
    assert metrics.registry.get_sample_value("lethe_queue_length") == 0


async def test_a_request_is_rejected_at_once_when_the_queue_is_full() -> None:
    limit, served = limit_of(1, max_waiting=1), []
    started = [await start(limit, served, i) for i in range(2)]
    with pytest.raises(Overloaded) as caught:
        async with limit:
            raise AssertionError("the limit let a third request in")
    assert caught.value.code == "queue_full" and caught.value.retry_after_s
    assert "LETHE_MAX_REQUESTS" in caught.value.message
    for task, finish in started:
        finish.set()
        await task


async def test_a_wait_that_times_out_holds_no_slot() -> None:
    limit, served = limit_of(1, wait_s=0.02), []
    task, finish = await start(limit, served, 0)
    with pytest.raises(Overloaded) as caught:
        async with limit:
            raise AssertionError("the limit let a second request in")
    assert caught.value.code == "queue_timeout"
    finish.set()
    await task
    async with asyncio.timeout(1), limit:
        pass


async def test_cancelled_requests_lose_no_slots() -> None:
    """Hundreds of requests arrive, time out, or are cancelled as they get a slot; in the end all slots are free."""
    rng = random.Random(7)
    limit = limit_of(3, max_waiting=50, wait_s=0.005)
    in_flight = max_in_flight = 0

    async def request() -> None:
        nonlocal in_flight, max_in_flight
        async with limit:
            in_flight += 1
            max_in_flight = max(max_in_flight, in_flight)
            try:
                await asyncio.sleep(rng.random() * 0.003)
            finally:
                in_flight -= 1

    tasks = []
    for _ in range(600):
        tasks.append(asyncio.ensure_future(request()))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 0.002)
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), Overloaded, asyncio.CancelledError}
    assert results.count(None) > 50 and max_in_flight == 3
    async with asyncio.timeout(1), limit, limit, limit:
        assert limit._slots.free == 0 and limit._slots.waiting == 0
    assert limit._slots.free == 3


def test_the_memory_budget_is_shared_and_given_back() -> None:
    metrics = Metrics()
    budget = MemoryBudget(100, metrics)
    with budget.reservation() as first:
        first(60)
        with budget.reservation() as second:
            second(40)
            with pytest.raises(Overloaded, match="LETHE_MAX_HELD_BYTES"):
                second(1)
            assert metrics.registry.get_sample_value("lethe_held_bytes") == 100
        first(40)
        assert budget.used_bytes == 100
    assert budget.used_bytes == 0 and metrics.registry.get_sample_value("lethe_held_bytes") == 0
