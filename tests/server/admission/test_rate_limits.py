"""Limits per API key: token bucket and concurrency, in one process and across workers."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from lethe.server.admission.api_keys import Key
from lethe.server.admission.rate_limits import KeyLimits, SharedKeyUsage
from lethe.server.errors import Overloaded, RateLimited


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(name: str = "k", **limits: Any) -> Key:
    digest = f"{ord(name[0]):064x}"
    return Key.model_validate({"name": name, "sha256": digest, "created": "2026-01-01T00:00:00Z", **limits})


def test_a_full_bucket_allows_a_burst_then_a_steady_rate() -> None:
    clock = Clock()
    limits, limited = KeyLimits(clock), key(requests_per_minute=30)

    def admitted() -> bool:
        try:
            with limits.admit(limited):
                return True
        except RateLimited as error:
            assert error.code == "rate_limit_exceeded" and error.retry_after_s is not None
            assert 0 < error.retry_after_s <= 2.0
            return False

    assert [admitted() for _ in range(31)] == [True] * 30 + [False]
    clock.now += 1.9
    assert not admitted()
    clock.now += 0.2
    assert admitted() and not admitted()
    clock.now += 3600
    assert sum(admitted() for _ in range(100)) == 30


def test_no_minute_sees_more_than_twice_the_rate() -> None:
    clock, rng = Clock(), random.Random(3)
    limits, limited = KeyLimits(clock), key(requests_per_minute=20)
    admitted = []
    for _ in range(3000):
        clock.now += rng.expovariate(5)
        try:
            with limits.admit(limited):
                admitted.append(clock.now)
        except RateLimited:
            pass
    assert max(sum(start <= at < start + 60 for at in admitted) for start in admitted) <= 40
    assert len(admitted) <= 20 + (clock.now - 1000) / 3 + 1


def test_concurrent_requests_of_a_key_are_limited() -> None:
    limits, limited, other = KeyLimits(), key(concurrency=2), key("o", concurrency=1)
    with ExitStack() as in_flight:
        in_flight.enter_context(limits.admit(limited))
        in_flight.enter_context(limits.admit(limited))
        with pytest.raises(RateLimited) as caught, limits.admit(limited):
            pass
        assert caught.value.code == "concurrency_limit" and caught.value.retry_after_s
        with limits.admit(other):
            pass
    with limits.admit(limited):
        pass


def test_a_request_over_the_concurrency_takes_no_token() -> None:
    limits, limited = KeyLimits(Clock()), key(concurrency=1, requests_per_minute=2)
    with limits.admit(limited):
        for _ in range(5):
            with pytest.raises(RateLimited, match="concurrent"), limits.admit(limited):
                pass
    with limits.admit(limited):
        pass
    with pytest.raises(RateLimited, match="per minute"), limits.admit(limited):
        pass


def test_keys_without_limits_are_not_counted() -> None:
    limits = KeyLimits()
    with limits.admit(None), limits.admit(key()):
        assert limits._usage == {}


Worker = Callable[..., KeyLimits]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """A function that makes the limits of one of three workers, which count in one file."""
    with ExitStack() as stack:

        def make(number: int, clock: Callable[[], float] = time.monotonic) -> KeyLimits:
            shared = SharedKeyUsage(tmp_path / "keys", number, 3)
            stack.callback(shared.close)
            return KeyLimits(clock, shared)

        yield make


def test_workers_share_a_keys_token_bucket(worker: Worker) -> None:
    clock, limited = Clock(), key(requests_per_minute=30)
    workers = [worker(number, clock) for number in range(3)]

    def admitted(attempts: int) -> int:
        count = 0
        for attempt in range(attempts):
            with suppress(RateLimited), workers[attempt % 3].admit(limited):
                count += 1
        return count

    assert admitted(90) == 30
    clock.now += 10
    assert admitted(90) == 5


def test_workers_share_concurrency_and_a_dead_one_is_cleared(worker: Worker) -> None:
    first, second, third = (worker(number) for number in range(3))
    limited, other = key(concurrency=2), key("o", concurrency=1)
    with first.admit(limited), ExitStack() as of_the_dead_worker, second.admit(other):
        of_the_dead_worker.enter_context(second.admit(limited))
        for limits in (first, second, third):
            with pytest.raises(RateLimited), limits.admit(limited):
                pass
        assert third._shared is not None
        third._shared.clear_worker(1)
        with third.admit(limited), third.admit(other), pytest.raises(RateLimited), third.admit(limited):
            pass
        with pytest.raises(RateLimited), second.admit(limited), second.admit(limited):
            pass
    with first.admit(limited), second.admit(limited):
        pass


def test_the_shared_table_is_allocated_on_disk_at_once(worker: Worker, tmp_path: Path) -> None:
    worker(0)
    status = (tmp_path / "keys").stat()
    assert 0 < status.st_size <= 512 * status.st_blocks


def test_slots_of_expired_keys_are_reused(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedKeyUsage, "SLOTS", 2)
    monkeypatch.setattr(SharedKeyUsage, "PROBES", 2)
    clock = Clock()
    limits = worker(0, clock)
    a, b, c = (key(name, requests_per_minute=1, concurrency=1) for name in "abc")
    with limits.admit(a):
        with limits.admit(b):
            pass
        # A request that can't be counted is not served.
        with pytest.raises(Overloaded) as caught, limits.admit(c):
            pass
        assert caught.value.code == "keys_full"
        clock.now += 61
        with limits.admit(c):
            pass
        with pytest.raises(RateLimited), limits.admit(a):
            pass


def test_processes_that_count_at_the_same_time_lose_no_count(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from contextlib import suppress\n"
        "from lethe.server.errors import RateLimited\n"
        "from lethe.server.admission.rate_limits import KeyLimits, SharedKeyUsage\n"
        "from tests.server.admission.test_rate_limits import key\n"
        "limits = KeyLimits(lambda: 100.0, SharedKeyUsage(Path(sys.argv[1]), int(sys.argv[2]), 3)); admitted = 0\n"
        "for _ in range(400):\n"
        "    with suppress(RateLimited), limits.admit(key(requests_per_minute=500)):\n"
        "        admitted += 1\n"
        "print(admitted)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "keys"), str(number)], stdout=subprocess.PIPE)
        for number in range(2)
    ]
    assert sum(int(process.communicate(timeout=60)[0]) for process in running) == 500
