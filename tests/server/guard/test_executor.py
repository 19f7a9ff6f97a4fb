"""The line in front of the classifier: bounded, short ones first, nobody judged who has left."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from lethe.server.errors import Overloaded
from lethe.server.guard.executor import LONG, PACE, Judging
from lethe.server.observability.metrics import Metrics


def judging(threads: int = 1, *, waiting: int = 100, wait_s: float = 10, timeout_s: float = 10) -> Judging:
    return JudgeExecutor(threads, waiting=waiting, wait_s=wait_s, timeout_s=timeout_s, metrics=Metrics())


def blocked(gate: threading.Event, begun: threading.Event | None = None) -> Callable[[], str]:
    def work() -> str:
        if begun is not None:
            begun.set()
        assert gate.wait(10)
        return "done"

    return work


async def ask(line: JudgeExecutor, work: Callable[[], Any], size: int = 10) -> asyncio.Future[Any]:
    asked = asyncio.ensure_future(line.run(work, size=size))
    await asyncio.sleep(0)
    return asked


async def test_the_result_and_the_error_of_the_work_come_back() -> None:
    line = judging()
    assert await line.run(lambda: 5, size=1) == 5
    with pytest.raises(ZeroDivisionError):
        await line.run(lambda: 1 // 0, size=1)
    assert await line.run(lambda: 6, size=LONG) == 6
    line.close()


async def test_a_full_line_is_refused_at_once() -> None:
    gate = threading.Event()
    line = judging(waiting=1)
    held = [await ask(line, blocked(gate)) for _ in range(2)]
    with pytest.raises(Overloaded) as caught:
        await line.run(lambda: 1, size=1)
    assert caught.value.code == "judge_queue_full" and "LETHE_JUDGE_QUEUE" in caught.value.message
    gate.set()
    assert await asyncio.gather(*held) == ["done", "done"]
    line.close()


async def test_a_turn_that_does_not_come_is_overload_and_never_runs() -> None:
    gate, ran = threading.Event(), []
    line = judging(wait_s=0.02)
    held = await ask(line, blocked(gate))
    with pytest.raises(Overloaded) as caught:
        await line.run(lambda: ran.append(1), size=1)
    assert caught.value.code == "judge_queue_timeout"
    gate.set()
    await held
    assert await line.run(lambda: 7, size=1) == 7 and ran == []
    line.close()


async def test_who_left_is_not_judged() -> None:
    gate, ran = threading.Event(), []
    line = judging()
    held = await ask(line, blocked(gate))
    leaving = [await ask(line, lambda: ran.append(1)) for _ in range(3)]
    for asked in leaving:
        asked.cancel()
    await asyncio.wait(leaving)
    gate.set()
    await held
    assert await line.run(lambda: 8, size=1) == 8 and ran == [] and line._line == []
    line.close()


async def test_work_that_takes_too_long_keeps_its_thread_until_it_ends() -> None:
    gate = threading.Event()
    line = judging(timeout_s=0.05)
    with pytest.raises(TimeoutError):
        await line.run(blocked(gate), size=1)
    waiting = await ask(line, lambda: 9)
    await asyncio.sleep(0.02)
    assert not waiting.done()
    gate.set()
    assert await asyncio.wait_for(waiting, 5) == 9
    line.close()


async def test_closing_waits_for_nobody() -> None:
    gate, begun = threading.Event(), threading.Event()
    line = judging()
    held = await ask(line, blocked(gate, begun))
    assert await asyncio.to_thread(begun.wait, 5)
    before = time.monotonic()
    line.close()
    assert time.monotonic() - before < 5 and not held.done()
    gate.set()
    assert await held == "done"


async def test_long_ones_leave_a_thread_to_the_short_ones() -> None:
    gate, begun = threading.Event(), threading.Event()
    line = judging(2)
    long = [await ask(line, blocked(gate, begun), size=LONG) for _ in range(4)]
    assert await asyncio.to_thread(begun.wait, 5)
    for _ in range(20):
        assert await asyncio.wait_for(line.run(lambda: "short", size=100), 5) == "short"
    assert not any(asked.done() for asked in long)
    gate.set()
    assert await asyncio.gather(*long) == ["done"] * 4
    line.close()


async def test_shorter_ones_go_first() -> None:
    gate, order = threading.Event(), []
    line = judging()
    held = await ask(line, blocked(gate))
    asked = [await ask(line, lambda size=size: order.append(size), size=size) for size in (900, 50_000, 10, 400_000)]
    gate.set()
    await asyncio.gather(held, *asked)
    assert order == [10, 900, 50_000, 400_000]
    line.close()


async def test_a_long_one_is_passed_by_only_for_as_long_as_it_takes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, order = threading.Event(), []
    line = judging()
    held = await ask(line, blocked(gate))
    now = time.monotonic()
    monkeypatch.setattr("lethe.server.guard.executor.time.monotonic", lambda: now)
    asked = [await ask(line, lambda: order.append("long"), size=3 * PACE)]
    for seconds in (1, 2, 4, 5):
        monkeypatch.setattr("lethe.server.guard.executor.time.monotonic", lambda seconds=seconds: now + seconds)
        asked.append(await ask(line, lambda seconds=seconds: order.append(seconds), size=10))
    gate.set()
    await asyncio.gather(held, *asked)
    assert order == [1, 2, "long", 4, 5]
    line.close()


async def test_no_thread_is_lost_whoever_leaves_whenever() -> None:
    line = judging(2, wait_s=0.02)
    asked = []
    for i in range(300):
        asked.append(asyncio.ensure_future(line.run(lambda: time.sleep(0.0005), size=LONG if i % 3 else 1)))
        if i % 4 == 0:
            await asyncio.sleep(0.001)
        if i % 5 == 0:
            asked[i // 2].cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    for _ in range(500):
        if line._free == 2:
            break
        await asyncio.sleep(0.01)
    assert (line._free, line._free_for_long, line._line) == (2, 1, [])
    line.close()


@pytest.mark.parametrize("rounds", range(5))
async def test_who_leaves_in_the_moment_in_which_the_judgement_ends_has_left(rounds: int) -> None:
    gate, begun = threading.Event(), threading.Event()
    line = judging()
    asked = await ask(line, blocked(gate, begun))
    assert await asyncio.to_thread(begun.wait, 5)
    gate.set()
    # The result arrives while the loop is held up, and is handed on step by step afterwards.
    time.sleep(0.05)
    for _ in range(rounds):
        await asyncio.sleep(0)
    if asked.done():
        assert rounds and asked.result() == "done"
        return
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await line.run(lambda: 6, size=1) == 6
    line.close()


COUNTED = """
from lethe.server.guard.executor import Judging
from lethe.server.observability.metrics import Metrics
from threadpoolctl import threadpool_info
count = lambda: {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}
before = count()
JudgeExecutor(1, waiting=1, wait_s=1, timeout_s=1, metrics=Metrics()).close()
print(before, count())
"""


def test_products_of_matrices_start_no_threads() -> None:
    given = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run(
        [sys.executable, "-c", f"import numpy{COUNTED}"], env=given, capture_output=True, text=True, check=True
    )
    before, after = ran.stdout.split()
    assert after == "{1}" and (before != "{1}" or len(os.sched_getaffinity(0)) == 1)
