"""The concurrency limit and the memory budget: every wait is bounded, and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.server.admission import concurrency
from lethe.server.admission.concurrency import SLOW_S, SMALL_BODY_BYTES, ConcurrencyLimit, MemoryBudget
from lethe.server.errors import GatewayError, Overloaded
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
        first.take(60)
        with budget.reservation() as second:
            second.take(40)
            with pytest.raises(Overloaded, match="LETHE_MAX_HELD_BYTES"):
                second.take(1)
            assert metrics.registry.get_sample_value("lethe_held_bytes") == 100
        first.take(40)
        assert budget.used_bytes == 100
    assert budget.used_bytes == 0 and metrics.registry.get_sample_value("lethe_held_bytes") == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the memory budget sees, in seconds; tests change its only entry."""
    now = [100.0]
    monkeypatch.setattr(concurrency.time, "monotonic", lambda: now[0])
    return now


class Upload:
    """A request whose body arrives."""

    def __init__(self, budget: MemoryBudget, client: str, size: int) -> None:
        self.errors: list[GatewayError] = []
        self.reservation = budget.reservation(client, self.errors.append)
        self.reservation.__enter__()
        self.arrive(size)

    def arrive(self, size: int) -> None:
        self.reservation.take(size)

    @property
    def is_given_up(self) -> bool:
        return bool(self.errors)


MIB = 1 << 20


def test_a_part_of_the_memory_is_for_small_bodies(clock: list[float]) -> None:
    budget = MemoryBudget(32 * MIB, max_body_bytes=8 * MIB)
    large = [Upload(budget, "a", 8 * MIB - 5) for _ in range(3)]
    with pytest.raises(Overloaded):
        Upload(budget, "b", 2 * MIB)
    small = [Upload(budget, f"c{i}", SMALL_BODY_BYTES) for i in range(8)]
    assert not any(upload.is_given_up for upload in (*large, *small))
    # The largest body fits in any case.
    only = MemoryBudget(8 * MIB, max_body_bytes=8 * MIB)
    assert Upload(only, "a", 8 * MIB).reservation.reserved_bytes == 8 * MIB


def test_uploads_that_stall_make_room_for_others(clock: list[float]) -> None:
    budget = MemoryBudget(256 * MIB, max_body_bytes=8 * MIB)
    with pytest.raises(Overloaded):
        stalled = []
        while True:
            stalled.append(Upload(budget, "attacker", 8 * MIB - 5))
    clock[0] += SLOW_S + 0.1
    others = [Upload(budget, f"other {i}", 8 * MIB) for i in range(16)]
    assert sum(upload.is_given_up for upload in stalled) >= 15
    assert not any(upload.is_given_up for upload in others)
    given_up = next(upload for upload in stalled if upload.is_given_up)
    assert (given_up.errors[0].status, given_up.errors[0].code) == (408, "body_too_slow")
    held = sum(upload.reservation.reserved_bytes for upload in (*stalled, *others))
    for upload in (*stalled, *others):
        upload.reservation.__exit__()
    assert held <= 256 * MIB and budget.used_bytes == 0


def test_a_byte_now_and_then_is_still_slow(clock: list[float]) -> None:
    budget = MemoryBudget(16 * MIB, max_body_bytes=8 * MIB)
    dripping, fast = Upload(budget, "a", 6 * MIB), Upload(budget, "b", 3 * MIB)
    for _ in range(20):
        clock[0] += 0.3
        dripping.arrive(1)
        fast.arrive(100_000)
    Upload(budget, "c", 5 * MIB)
    assert dripping.is_given_up and not fast.is_given_up


def test_the_client_that_holds_most_is_given_up_first(clock: list[float]) -> None:
    budget = MemoryBudget(16 * MIB, max_body_bytes=8 * MIB)
    slow = Upload(budget, "slow but honest", 3 * MIB)
    many = [Upload(budget, "many", 2 * MIB) for _ in range(4)]
    clock[0] += SLOW_S + 0.1
    for _ in range(2):
        Upload(budget, "other", 2 * MIB)
    assert not slow.is_given_up and any(upload.is_given_up for upload in many)


def test_a_complete_body_is_never_given_up(clock: list[float]) -> None:
    budget = MemoryBudget(16 * MIB, max_body_bytes=8 * MIB)
    complete = [Upload(budget, "a", 6 * MIB) for _ in range(2)]
    for upload in complete:
        upload.reservation.complete()
    clock[0] += 100
    with pytest.raises(Overloaded, match="LETHE_MAX_HELD_BYTES"):
        Upload(budget, "b", 5 * MIB)
    assert not any(upload.is_given_up for upload in complete)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(1, 4 * MIB)), max_size=60))
def test_the_budget_is_never_exceeded_and_adds_up(steps: list[tuple[int, int, int]]) -> None:
    budget, uploads = MemoryBudget(16 * MIB, max_body_bytes=8 * MIB), {}
    for number, action, size in steps:
        with contextlib.suppress(Overloaded):
            if number not in uploads:
                uploads[number] = Upload(budget, f"client {number % 3}", 0)
            elif action == 0:
                uploads.pop(number).reservation.__exit__()
            elif action == 1:
                uploads[number].reservation.complete()
            elif not uploads[number].is_given_up:
                uploads[number].reservation._last_progress_s -= size % 3
                uploads[number].arrive(size)
        assert budget.used_bytes == sum(upload.reservation.reserved_bytes for upload in uploads.values()) <= 16 * MIB
