"""Threads for the classifier, with a bounded queue in front of them that serves short prompts first.

A client that disconnects while its request waits is never judged. A request that waits too long is answered with 503
overload, regardless of the policies' `on_failure`: otherwise an attacker could flood the queue to get past the guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from lethe.server.errors import Overloaded
from lethe.server.observability.metrics import Metrics
from lethe.server.slot_queue import QueueFull, SlotQueue, WaitTimeout

T = TypeVar("T")

# Characters from which on a prompt counts as large: about one second of judging on one core.
LARGE_CHARS = 5_000
# Assumed speed of judging, in characters per second. It sets how long shorter prompts may overtake a longer one: for
# as long as judging it is expected to take.
CHARS_PER_S = 5_000


def limit_blas_threads() -> None:
    """Run matrix products in the calling thread, for the whole process.

    The products of judging are small: starting a BLAS library's worker threads takes longer than the products do.
    """
    threadpool_limits(limits=1, user_api="blas")


class JudgeExecutor:
    """Runs judgements in threads. With two threads or more, large prompts never occupy the last one."""

    def __init__(self, threads: int, *, max_waiting: int, wait_s: float, timeout_s: float, metrics: Metrics) -> None:
        """wait_s: maximum time in the queue; timeout_s: maximum time of one judgement; both in seconds."""
        limit_blas_threads()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="lethe-judge")
        self._slots = SlotQueue(
            threads, max_waiting=max_waiting, wait_s=wait_s, length=metrics.judge_queue_length, reserved=1
        )
        self._wait_s = wait_s
        self._timeout_s = timeout_s
        self._metrics = metrics

    def close(self) -> None:
        """Start no more work. Running work is not waited for: a thread can't be stopped, and its result is unused."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], T], *, size: int) -> T:
        """The result of `work`, run in a thread; size: characters to judge.

        Raises Overloaded when the queue is full or the wait is too long, TimeoutError when the work takes too long
        (its thread stays occupied until the work is done), and every exception of `work`.
        """
        queued_at = time.monotonic()
        large = size >= LARGE_CHARS
        try:
            await self._slots.acquire(priority=queued_at + size / CHARS_PER_S, large=large)
        except QueueFull:
            raise Overloaded(
                "too many requests are waiting to be judged (LETHE_JUDGE_QUEUE)",
                code="judge_queue_full",
                retry_after_s=1,
            ) from None
        except WaitTimeout:
            raise Overloaded(
                f"the request could not be judged within {self._wait_s:g} s (LETHE_JUDGE_WAIT_S)",
                code="judge_queue_timeout",
                retry_after_s=1,
            ) from None
        self._metrics.judge_wait_seconds.observe(time.monotonic() - queued_at)
        loop = asyncio.get_running_loop()
        running = self._threads.submit(work)
        running.add_done_callback(lambda _: self._release_from_thread(loop, large))
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that arrives together with the result,
        # and the request of a client that has disconnected would be sent to vLLM.
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.wrap_future(running)

    def _release_from_thread(self, loop: asyncio.AbstractEventLoop, large: bool) -> None:
        """Free the slot; runs in the work's own thread."""
        # RuntimeError: the event loop was closed meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: self._slots.release(large=large))
