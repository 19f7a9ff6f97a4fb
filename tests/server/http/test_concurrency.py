"""Places, the line before them, memory, and each key's limits: nothing is waited for without end, nothing leaks."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from lethe.server.errors import Overloaded, RateLimited
from lethe.server.http.api_keys import Key
from lethe.server.http.concurrency import KeyLimits, Memory, Places, SharedUsage
from lethe.server.observability.metrics import Metrics


def places(number: int, *, waiting: int = 10, wait_s: float = 10.0, metrics: Metrics | None = None) -> Places:
    return Places(number, waiting=waiting, wait_s=wait_s, metrics=metrics or Metrics())


async def hold(given: Places, seated: list[int], number: int, leave: asyncio.Event) -> None:
    async with given:
        seated.append(number)
        await leave.wait()


async def start(given: Places, seated: list[int], number: int) -> tuple[asyncio.Task[None], asyncio.Event]:
    leave = asyncio.Event()
    task = asyncio.ensure_future(hold(given, seated, number, leave))
    await asyncio.sleep(0)
    return task, leave


async def test_places_are_given_in_the_order_of_asking() -> None:
    metrics = Metrics()
    given, seated = places(2, metrics=metrics), []
    started = [await start(given, seated, i) for i in range(5)]
    assert seated == [0, 1]
    assert metrics.registry.get_sample_value("lethe_queue_length") == 3
    for i in (1, 0, 2, 3, 4):
        started[i][1].set()
        await asyncio.wait_for(started[i][0], 1)
        await asyncio.sleep(0)
    assert seated == [0, 1, 2, 3, 4]
    assert metrics.registry.get_sample_value("lethe_queue_length") == 0


async def test_a_full_line_is_refused_at_once() -> None:
    given, seated = places(1, waiting=1), []
    started = [await start(given, seated, i) for i in range(2)]
    with pytest.raises(Overloaded) as caught:
        async with given:
            raise AssertionError("there was no place")
    assert caught.value.code == "queue_full" and caught.value.retry_after_s
    assert "LETHE_MAX_REQUESTS" in caught.value.message
    for task, leave in started:
        leave.set()
        await task


async def test_a_wait_has_an_end_and_keeps_no_place() -> None:
    given, seated = places(1, wait_s=0.02), []
    task, leave = await start(given, seated, 0)
    with pytest.raises(Overloaded) as caught:
        async with given:
            raise AssertionError("there was no place")
    assert caught.value.code == "queue_timeout"
    leave.set()
    await task
    async with asyncio.timeout(1), given:
        pass


async def test_no_place_is_lost_whoever_leaves_whenever() -> None:
    """Hundreds come, leave, are cancelled in the moment they are seated; in the end all places are free."""
    chance = random.Random(7)
    given = places(3, waiting=50, wait_s=0.005)
    at_once = most = 0

    async def one() -> None:
        nonlocal at_once, most
        async with given:
            at_once += 1
            most = max(most, at_once)
            try:
                await asyncio.sleep(chance.random() * 0.003)
            finally:
                at_once -= 1

    tasks = []
    for _ in range(600):
        tasks.append(asyncio.ensure_future(one()))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.002)
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in ended} <= {type(None), Overloaded, asyncio.CancelledError}
    assert ended.count(None) > 50 and most == 3
    async with asyncio.timeout(1), given, given, given:
        assert given._free == 0 and not given._line
    assert given._free == 3


def test_memory_is_shared_and_given_back() -> None:
    metrics = Metrics()
    memory = Memory(100, metrics)
    with memory.share() as first:
        first(60)
        with memory.share() as second:
            second(40)
            with pytest.raises(Overloaded, match="LETHE_MAX_HELD_BYTES"):
                second(1)
            assert metrics.registry.get_sample_value("lethe_held_bytes") == 100
        first(40)
        assert memory.held == 100
    assert memory.held == 0 and metrics.registry.get_sample_value("lethe_held_bytes") == 0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(name: str = "k", **given: Any) -> Key:
    digest = f"{ord(name[0]):064x}"
    return Key.model_validate({"name": name, "sha256": digest, "created": "2026-01-01T00:00:00Z", **given})


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one() -> None:
    clock = Clock()
    limits, one = KeyLimits(clock), key(requests_per_minute=30)

    def tried() -> bool:
        try:
            with limits.one(one):
                return True
        except RateLimited as error:
            assert error.code == "rate_limit_exceeded" and error.retry_after_s is not None
            assert 0 < error.retry_after_s <= 2.0
            return False

    assert [tried() for _ in range(31)] == [True] * 30 + [False]
    clock.now += 1.9
    assert not tried()
    clock.now += 0.2
    assert tried() and not tried()
    clock.now += 3600
    assert sum(tried() for _ in range(100)) == 30


def test_in_any_minute_no_more_than_twice_the_rate_gets_through() -> None:
    clock, chance = Clock(), random.Random(3)
    limits, one = KeyLimits(clock), key(requests_per_minute=20)
    passed = []
    for _ in range(3000):
        clock.now += chance.expovariate(5)
        try:
            with limits.one(one):
                passed.append(clock.now)
        except RateLimited:
            pass
    assert max(sum(t <= at < t + 60 for at in passed) for t in passed) <= 40
    assert len(passed) <= 20 + (clock.now - 1000) / 3 + 1


def test_a_keys_requests_at_a_time_are_bounded_and_freed() -> None:
    limits, one, other = KeyLimits(), key(concurrency=2), key("o", concurrency=1)
    with ExitStack() as serving:
        serving.enter_context(limits.one(one))
        serving.enter_context(limits.one(one))
        with pytest.raises(RateLimited) as caught, limits.one(one):
            pass
        assert caught.value.code == "concurrency_limit" and caught.value.retry_after_s
        with limits.one(other):
            pass
    with limits.one(one):
        pass


def test_a_request_turned_away_for_concurrency_costs_none_of_the_rate() -> None:
    limits, one = KeyLimits(Clock()), key(concurrency=1, requests_per_minute=2)
    with limits.one(one):
        for _ in range(5):
            with pytest.raises(RateLimited, match="at a time"), limits.one(one):
                pass
    with limits.one(one):
        pass
    with pytest.raises(RateLimited, match="a minute"), limits.one(one):
        pass


def test_without_limits_nothing_is_counted() -> None:
    limits = KeyLimits()
    with limits.one(None), limits.one(key()):
        assert limits._usage == {}


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Callable[..., KeyLimits]]:
    """Limits as several workers have them: they count in one file."""
    with ExitStack() as stack:

        def worker(number: int, clock: Callable[[], float] = time.monotonic) -> KeyLimits:
            usage = SharedUsage(tmp_path / "keys", number, 3)
            stack.callback(usage.close)
            return KeyLimits(clock, usage)

        yield worker


def test_workers_count_a_keys_requests_together(counted: Callable[..., KeyLimits]) -> None:
    clock, one = Clock(), key(requests_per_minute=30)
    workers = [counted(number, clock) for number in range(3)]

    def passed(tries: int) -> int:
        count = 0
        for attempt in range(tries):
            with suppress(RateLimited), workers[attempt % 3].one(one):
                count += 1
        return count

    assert passed(90) == 30
    clock.now += 10
    assert passed(90) == 5


def test_workers_count_a_keys_requests_at_a_time_together_and_a_dead_ones_no_more(
    counted: Callable[..., KeyLimits],
) -> None:
    first, second, third = (counted(number) for number in range(3))
    one, other = key(concurrency=2), key("o", concurrency=1)
    with first.one(one), ExitStack() as dies, second.one(other):
        dies.enter_context(second.one(one))
        for limits in (first, second, third):
            with pytest.raises(RateLimited), limits.one(one):
                pass
        assert third._shared is not None
        third._shared.leave_out(1)
        with third.one(one), third.one(other), pytest.raises(RateLimited), third.one(one):
            pass
        with pytest.raises(RateLimited), second.one(one), second.one(one):
            pass
    with first.one(one), second.one(one):
        pass


def test_the_table_has_its_room_from_the_start(counted: Callable[..., KeyLimits], tmp_path: Path) -> None:
    counted(0)
    status = (tmp_path / "keys").stat()
    assert 0 < status.st_size <= 512 * status.st_blocks


def test_places_of_keys_that_are_done_are_given_to_others(
    counted: Callable[..., KeyLimits], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedUsage, "SLOTS", 2)
    monkeypatch.setattr(SharedUsage, "PROBES", 2)
    clock = Clock()
    limits = counted(0, clock)
    a, b, c = (key(name, requests_per_minute=1, concurrency=1) for name in "abc")
    with limits.one(a):
        with limits.one(b):
            pass
        # Whoever can't be counted is not served.
        with pytest.raises(Overloaded) as caught, limits.one(c):
            pass
        assert caught.value.code == "keys_full"
        clock.now += 61
        with limits.one(c):
            pass
        with pytest.raises(RateLimited), limits.one(a):
            pass


def test_processes_count_together(tmp_path: Path) -> None:
    """No count is lost however closely they follow each other."""
    code = (
        "import sys; from pathlib import Path; from contextlib import suppress\n"
        "from lethe.server.http.concurrency import KeyLimits, SharedUsage; from lethe.server.errors import RateLimited\n"
        "from tests.server.http.test_concurrency import key\n"
        "limits = KeyLimits(lambda: 100.0, SharedUsage(Path(sys.argv[1]), int(sys.argv[2]), 3)); passed = 0\n"
        "for _ in range(400):\n"
        "    with suppress(RateLimited), limits.one(key(requests_per_minute=500)):\n"
        "        passed += 1\n"
        "print(passed)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "keys"), str(number)], stdout=subprocess.PIPE)
        for number in range(2)
    ]
    assert sum(int(process.communicate(timeout=60)[0]) for process in running) == 500
