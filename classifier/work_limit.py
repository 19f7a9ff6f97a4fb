"""The bound on the work of one request. Judging calls `check_work` between its steps, each of which is short.

A thread can't be stopped from outside, so work stops itself: `check_work` raises when the request has used its
processor time or nobody waits for its result any more, and it lets others go first when the thread's turn is over.
Without a limit in force (fitting, benchmarks, tests) it does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

# Seconds (wall clock) that work may go on before others that wait may go first. Chosen: short against one second, the
# longest delay that one request may cause another, and long against a change of threads.
TURN_S = 0.2


class WorkExceeded(Exception):
    """The work took more processor time than one request may use."""


class WorkCancelled(Exception):
    """Nobody waits for the result of the work any more."""


class WorkLimit:
    """The bound on one piece of work. `run` puts it in force; `cancel` may be called from another thread.

    seconds: processor time that the work may use. end_turn: called in the work's thread each time that a turn is over;
    it may block while others work, which costs no processor time.
    """

    def __init__(self, seconds: float, end_turn: Callable[[], None] = lambda: None) -> None:
        self.seconds = seconds
        self._end_turn = end_turn
        self._cancelled = False
        self._started_cpu_s = self._turn_started_s = 0.0

    @property
    def used_s(self) -> float:
        """Seconds of processor time used so far; only in the work's own thread."""
        return time.thread_time() - self._started_cpu_s

    def cancel(self) -> None:
        """Let the work raise WorkCancelled at its next step."""
        self._cancelled = True

    def run(self, work: Callable[[], T]) -> T:
        """The result of `work`. Raises WorkExceeded or WorkCancelled, and what `work` raises."""
        self._started_cpu_s, self._turn_started_s = time.thread_time(), time.monotonic()
        token = _limit_in_force.set(self)
        try:
            return work()
        finally:
            _limit_in_force.reset(token)

    def check(self) -> None:
        """Raise WorkExceeded or WorkCancelled if the work has to stop; end the turn if it is over."""
        self._raise_if_over()
        if time.monotonic() - self._turn_started_s > TURN_S:
            self._end_turn()
            self._turn_started_s = time.monotonic()
            self._raise_if_over()

    def _raise_if_over(self) -> None:
        if self._cancelled:
            raise WorkCancelled
        if self.used_s > self.seconds:
            raise WorkExceeded


_limit_in_force: ContextVar[WorkLimit | None] = ContextVar("work limit", default=None)


def check_work() -> None:
    """Stop or pause the work of this thread where its limit says so. Raises WorkExceeded or WorkCancelled."""
    limit = _limit_in_force.get()
    if limit is not None:
        limit.check()
