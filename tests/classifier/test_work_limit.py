"""The bound on the work of one request: processor time, cancelling and turns."""

from __future__ import annotations

import threading
import time

import pytest

from lethe.classifier.work_limit import TURN_S, WorkCancelled, WorkExceeded, WorkLimit, check_work


def spin(seconds: float) -> None:
    """Use processor time, and check between short steps."""
    started = time.thread_time()
    while time.thread_time() - started < seconds:
        check_work()


def test_without_a_limit_nothing_is_checked() -> None:
    check_work()
    assert WorkLimit(60).run(lambda: 5) == 5
    check_work()


def test_work_stops_when_its_processor_time_is_used() -> None:
    before = time.thread_time()
    with pytest.raises(WorkExceeded):
        WorkLimit(0.05).run(lambda: spin(10))
    assert 0.05 <= time.thread_time() - before < 5
    # No limit stays in force.
    spin(0.06)


def test_waiting_costs_no_processor_time() -> None:
    def wait() -> str:
        for _ in range(5):
            time.sleep(0.03)
            check_work()
        return "done"

    assert WorkLimit(0.1).run(wait) == "done"


def test_cancelled_work_stops_at_its_next_step() -> None:
    limit, stopped = WorkLimit(60), threading.Event()

    def work() -> None:
        with pytest.raises(WorkCancelled):
            spin(30)
        stopped.set()

    thread = threading.Thread(target=limit.run, args=(work,))
    thread.start()
    limit.cancel()
    assert stopped.wait(5)
    thread.join()


def test_turns_end_only_after_their_time() -> None:
    ends: list[float] = []
    WorkLimit(60, lambda: ends.append(time.monotonic())).run(lambda: spin(3 * TURN_S))
    assert ends and min(b - a for a, b in zip(ends, ends[1:], strict=False)) > 0.9 * TURN_S if len(ends) > 1 else ends
