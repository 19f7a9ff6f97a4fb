"""The judge executor: a bounded queue that serves short prompts first; disconnected clients are not judged."""

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

from lethe.classifier.work_limit import check_work
from lethe.server.errors import Overloaded
from lethe.server.guard.executor import CHARS_PER_S, CPU_LIMIT_CHARS, LARGE_CHARS, JudgeExecutor
from lethe.server.observability.metrics import Metrics


def judge_executor(
    threads: int = 1, *, max_waiting: int = 100, wait_s: float = 10, timeout_s: float = 10, cpu_s: float = 60
) -> JudgeExecutor:
    return JudgeExecutor(
        threads, max_waiting=max_waiting, wait_s=wait_s, timeout_s=timeout_s, metrics=Metrics(), cpu_s=cpu_s
    )


def blocked(gate: threading.Event, started: threading.Event | None = None) -> Callable[[], str]:
    def work() -> str:
        if started is not None:
            started.set()
        assert gate.wait(10)
        return "done"

    return work


async def submit(executor: JudgeExecutor, work: Callable[[], Any], size: int = 10) -> asyncio.Future[Any]:
    submitted = asyncio.ensure_future(executor.run(work, size=size))
    await asyncio.sleep(0)
    return submitted


async def test_results_and_exceptions_of_the_work_are_returned() -> None:
    executor = judge_executor()
    assert await executor.run(lambda: 5, size=1) == 5
    with pytest.raises(ZeroDivisionError):
        await executor.run(lambda: 1 // 0, size=1)
    assert await executor.run(lambda: 6, size=LARGE_CHARS) == 6
    executor.close()


async def test_a_request_is_rejected_at_once_when_the_queue_is_full() -> None:
    gate = threading.Event()
    executor = judge_executor(max_waiting=1)
    running = [await submit(executor, blocked(gate)) for _ in range(2)]
    with pytest.raises(Overloaded) as caught:
        await executor.run(lambda: 1, size=1)
    assert caught.value.code == "judge_queue_full" and "LETHE_JUDGE_QUEUE" in caught.value.message
    gate.set()
    assert await asyncio.gather(*running) == ["done", "done"]
    executor.close()


async def test_work_that_waits_too_long_is_overload_and_never_runs() -> None:
    gate, ran = threading.Event(), []
    executor = judge_executor(wait_s=0.02)
    running = await submit(executor, blocked(gate))
    with pytest.raises(Overloaded) as caught:
        await executor.run(lambda: ran.append(1), size=1)
    assert caught.value.code == "judge_queue_timeout"
    gate.set()
    await running
    assert await executor.run(lambda: 7, size=1) == 7 and ran == []
    executor.close()


async def test_cancelled_work_never_runs() -> None:
    gate, ran = threading.Event(), []
    executor = judge_executor()
    running = await submit(executor, blocked(gate))
    cancelled = [await submit(executor, lambda: ran.append(1)) for _ in range(3)]
    for submitted in cancelled:
        submitted.cancel()
    await asyncio.wait(cancelled)
    gate.set()
    await running
    assert await executor.run(lambda: 8, size=1) == 8 and ran == [] and executor._slots.waiting == 0
    executor.close()


async def test_work_over_the_time_limit_keeps_its_thread_until_done() -> None:
    gate = threading.Event()
    executor = judge_executor(timeout_s=0.05)
    with pytest.raises(Overloaded) as caught:
        await executor.run(blocked(gate), size=1)
    assert caught.value.code == "judge_timeout" and "LETHE_JUDGE_TIMEOUT_S" in caught.value.message
    assert caught.value.retry_after_s
    waiting = await submit(executor, lambda: 9)
    await asyncio.sleep(0.02)
    assert not waiting.done()
    gate.set()
    assert await asyncio.wait_for(waiting, 5) == 9
    executor.close()


async def test_a_timeout_of_the_work_itself_is_not_overload() -> None:
    def work() -> None:
        raise TimeoutError("of something else")

    executor = judge_executor()
    with pytest.raises(TimeoutError, match="of something else"):
        await executor.run(work, size=1)
    executor.close()


def spin(seconds: float) -> Callable[[], str]:
    """Work that uses processor time in short steps."""

    def work() -> str:
        started = time.thread_time()
        while time.thread_time() - started < seconds:
            check_work()
        return "done"

    return work


async def test_work_over_its_processor_time_is_overload_and_frees_its_thread() -> None:
    executor = judge_executor(cpu_s=0.05)
    with pytest.raises(Overloaded) as caught:
        await executor.run(spin(30), size=1)
    assert caught.value.code == "judge_work_exceeded" and "LETHE_JUDGE_CPU_S" in caught.value.message
    assert caught.value.retry_after_s
    assert await asyncio.wait_for(executor.run(lambda: 9, size=1), 5) == 9
    executor.close()


async def test_a_longer_request_has_more_processor_time() -> None:
    executor = judge_executor(cpu_s=0.05)
    assert await executor.run(spin(0.15), size=10 * CPU_LIMIT_CHARS) == "done"
    with pytest.raises(Overloaded):
        await executor.run(spin(0.15), size=CPU_LIMIT_CHARS)
    executor.close()


@pytest.mark.parametrize("end", ["timeout", "disconnect"])
async def test_work_that_nobody_waits_for_stops_at_its_next_step(end: str) -> None:
    executor = judge_executor(timeout_s=0.1 if end == "timeout" else 60)
    running = await submit(executor, spin(60))
    if end == "disconnect":
        await asyncio.sleep(0.05)
        running.cancel()
    with pytest.raises(Overloaded if end == "timeout" else asyncio.CancelledError):
        await running
    assert await asyncio.wait_for(executor.run(lambda: 9, size=1), 5) == 9
    executor.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [100, 10 * LARGE_CHARS])
async def test_long_work_lets_others_go_first(threads: int, size: int) -> None:
    executor = judge_executor(threads, timeout_s=60)
    long = [await submit(executor, spin(2), size=size) for _ in range(threads + 1)]
    await asyncio.sleep(0.05)
    for other in (100, LARGE_CHARS):
        assert await executor.run(lambda: "other", size=other) == "other"
        assert not any(submitted.done() for submitted in long)
    assert await asyncio.gather(*long) == ["done"] * (threads + 1)
    assert (executor._slots.free, executor._slots.waiting, executor._paused) == (threads, 0, set())
    assert executor._slots._free_for_large == 1
    executor.close()


async def test_pauses_that_end_in_any_way_lose_no_slot() -> None:
    executor = judge_executor(2, timeout_s=0.7)
    submitted = [asyncio.ensure_future(executor.run(spin(0.3), size=i % 2 * LARGE_CHARS)) for i in range(12)]
    await asyncio.sleep(0.3)
    for i in (1, 4, 7):
        submitted[i].cancel()
    await asyncio.gather(*submitted, return_exceptions=True)
    for _ in range(500):
        if executor._slots.free == 2:
            break
        await asyncio.sleep(0.01)
    assert (executor._slots.free, executor._slots._free_for_large, executor._slots.waiting) == (2, 1, 0)
    executor.close()


async def test_closing_ends_paused_work() -> None:
    executor = judge_executor(timeout_s=60)
    submitted = [await submit(executor, spin(60)) for _ in range(3)]
    for _ in range(500):
        if executor._paused:
            break
        await asyncio.sleep(0.01)
    assert executor._paused
    executor.close()
    for running in submitted:
        running.cancel()
    await asyncio.wait_for(asyncio.gather(*submitted, return_exceptions=True), 10)


async def test_closing_does_not_wait_for_running_work() -> None:
    gate, started = threading.Event(), threading.Event()
    executor = judge_executor()
    running = await submit(executor, blocked(gate, started))
    assert await asyncio.to_thread(started.wait, 5)
    before = time.monotonic()
    executor.close()
    assert time.monotonic() - before < 5 and not running.done()
    gate.set()
    assert await running == "done"


async def test_large_prompts_leave_one_thread_to_short_ones() -> None:
    gate, started = threading.Event(), threading.Event()
    executor = judge_executor(2)
    long = [await submit(executor, blocked(gate, started), size=LARGE_CHARS) for _ in range(4)]
    assert await asyncio.to_thread(started.wait, 5)
    for _ in range(20):
        assert await asyncio.wait_for(executor.run(lambda: "short", size=100), 5) == "short"
    assert not any(submitted.done() for submitted in long)
    gate.set()
    assert await asyncio.gather(*long) == ["done"] * 4
    executor.close()


async def test_shorter_prompts_go_first() -> None:
    gate, order = threading.Event(), []
    executor = judge_executor()
    running = await submit(executor, blocked(gate))
    submitted = [
        await submit(executor, lambda size=size: order.append(size), size=size) for size in (900, 50_000, 10, 400_000)
    ]
    gate.set()
    await asyncio.gather(running, *submitted)
    assert order == [10, 900, 50_000, 400_000]
    executor.close()


async def test_a_large_prompt_is_overtaken_only_for_its_own_judging_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, order = threading.Event(), []
    executor = judge_executor()
    running = await submit(executor, blocked(gate))
    now = time.monotonic()
    monkeypatch.setattr("lethe.server.guard.executor.time.monotonic", lambda: now)
    submitted = [await submit(executor, lambda: order.append("long"), size=3 * CHARS_PER_S)]
    for seconds in (1, 2, 4, 5):
        monkeypatch.setattr("lethe.server.guard.executor.time.monotonic", lambda seconds=seconds: now + seconds)
        submitted.append(await submit(executor, lambda seconds=seconds: order.append(seconds), size=10))
    gate.set()
    await asyncio.gather(running, *submitted)
    assert order == [1, 2, "long", 4, 5]
    executor.close()


async def test_cancelled_work_loses_no_threads() -> None:
    executor = judge_executor(2, wait_s=0.02)
    submitted = []
    for i in range(300):
        submitted.append(
            asyncio.ensure_future(executor.run(lambda: time.sleep(0.0005), size=LARGE_CHARS if i % 3 else 1))
        )
        if i % 4 == 0:
            await asyncio.sleep(0.001)
        if i % 5 == 0:
            submitted[i // 2].cancel()
    await asyncio.gather(*submitted, return_exceptions=True)
    for _ in range(500):
        if executor._slots.free == 2:
            break
        await asyncio.sleep(0.01)
    assert (executor._slots.free, executor._slots._free_for_large, executor._slots.waiting) == (2, 1, 0)
    executor.close()


@pytest.mark.parametrize("rounds", range(5))
async def test_cancellation_as_the_result_arrives_is_not_swallowed(rounds: int) -> None:
    gate, started = threading.Event(), threading.Event()
    executor = judge_executor()
    submitted = await submit(executor, blocked(gate, started))
    assert await asyncio.to_thread(started.wait, 5)
    gate.set()
    # The result arrives while the event loop is blocked, and is passed on over several rounds of the loop.
    time.sleep(0.05)
    for _ in range(rounds):
        await asyncio.sleep(0)
    if submitted.done():
        assert rounds and submitted.result() == "done"
        return
    submitted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitted
    assert await executor.run(lambda: 6, size=1) == 6
    executor.close()


COUNT_BLAS_THREADS = """
from lethe.server.guard.executor import CPU_LIMIT_CHARS, JudgeExecutor
from lethe.server.observability.metrics import Metrics
from threadpoolctl import threadpool_info
count = lambda: {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
before = count()
JudgeExecutor(1, max_waiting=1, wait_s=1, timeout_s=1, metrics=Metrics()).close()
print(before, count())
"""


def test_matrix_products_start_no_threads() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run(
        [sys.executable, "-c", f"import numpy{COUNT_BLAS_THREADS}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = ran.stdout.split()
    assert after == "{1}" and (before != "{1}" or len(os.sched_getaffinity(0)) == 1)
