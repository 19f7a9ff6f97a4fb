"""The line in front of the classifier: few threads, a bounded number of requests that wait, the short ones first.

A request that waits can leave and is then never judged. One whose turn does not come in time is turned away as
overload, whatever policies' `on_failure` says: else a flood would open the way for what follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from threadpoolctl import threadpool_limits

from lethe.server.errors import Overloaded
from lethe.server.observability.metrics import Metrics

T = TypeVar("T")

# Characters from which on a request counts as long: about a second of judging on one core.
LONG = 5_000
# Characters that are assumed to be judged in a second. A request lets others pass for as long as its own judging
# is expected to take, and no longer.
PACE = 5_000


@dataclass
class _Turn:
    due: float
    long: bool
    come: asyncio.Future[None]
    asked: float = field(default_factory=time.monotonic)


def one_thread_each() -> None:
    """Have matrices multiplied by the thread that asks, in all of this process.

    Those of judging are small: the threads that a library starts for them take longer than the products.
    """
    threadpool_limits(limits=1, user_api="blas")


class Judging:
    """Runs judgements in threads. Long ones never take the last thread, if there are two."""

    def __init__(self, threads: int, *, waiting: int, wait_s: float, timeout_s: float, metrics: Metrics) -> None:
        one_thread_each()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lethe-judge")
        self._free = threads
        self._free_for_long = max(1, threads - 1)
        self._most_waiting = waiting
        self._wait_s = wait_s
        self._timeout_s = timeout_s
        self._line: list[_Turn] = []
        self._metrics = metrics

    def close(self) -> None:
        """Begin no more work. What runs is not waited for: it can't be stopped, and nobody wants its result."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], T], *, size: int) -> T:
        """The result of `work`, run in a thread; size: characters to be judged.

        Raises Overloaded when too many wait or the wait is too long, TimeoutError when the work takes too long
        (a thread can't be stopped: it stays taken until its work is done), and whatever the work raises.
        """
        if len(self._line) >= self._most_waiting:
            raise Overloaded(
                "too many requests wait to be judged (LETHE_JUDGE_QUEUE)", code="judge_queue_full", retry_after_s=1
            )
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        turn = _Turn(now + size / PACE, size >= LONG, loop.create_future(), now)
        self._line.append(turn)
        self._next()
        try:
            async with asyncio.timeout(self._wait_s):
                await turn.come
        except BaseException as error:
            if turn.come.cancelled():
                self._line.remove(turn)
            else:
                # The turn came in the moment in which we stopped to wait for it.
                self._done(turn.long)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"the request could not be judged within {self._wait_s:g} s (LETHE_JUDGE_WAIT_S)",
                    code="judge_queue_timeout",
                    retry_after_s=1,
                ) from None
            raise
        finally:
            self._metrics.judge_queue_length.set(len(self._line))
        self._metrics.judge_wait_seconds.observe(time.monotonic() - turn.asked)
        running = self._pool.submit(work)
        running.add_done_callback(lambda _: self._told(loop, turn.long))
        # Not wait_for, which before Python 3.12 forgets that it was cancelled if the work is done in that moment: the
        # request of a client that has left would then go on to vLLM, and nobody would end it.
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.wrap_future(running)

    def _next(self) -> None:
        while self._free:
            ready = [t for t in self._line if not t.come.cancelled() and (self._free_for_long or not t.long)]
            if not ready:
                break
            turn = min(ready, key=lambda t: t.due)
            self._line.remove(turn)
            self._free -= 1
            self._free_for_long -= turn.long
            turn.come.set_result(None)
        self._metrics.judge_queue_length.set(len(self._line))

    def _told(self, loop: asyncio.AbstractEventLoop, long: bool) -> None:
        # In the work's own thread. The loop may have ended meanwhile, and with it the line.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._done, long)

    def _done(self, long: bool) -> None:
        self._free += 1
        self._free_for_long += long
        self._next()
