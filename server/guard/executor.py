"""Threads for the classifier, with a bounded queue in front of them that serves short prompts first.

A client that disconnects while its request waits is never judged. A request that waits too long, or takes too much
time to judge, is answered with 503 overload, regardless of the policies' `on_failure`: otherwise an attacker could
flood the queue to get past the guard, and a slow machine would look like a verdict.

Judging is done in turns (`classifier/work_limit.py`): when others wait, a request that has had its turn goes to the end
of the queue. So no request delays another by much more than a turn, and none uses more processor time than its share.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from threadpoolctl import threadpool_limits

from lethe.classifier.work_limit import WorkCancelled, WorkExceeded, WorkLimit
from lethe.server.errors import Overloaded
from lethe.server.observability.metrics import Metrics
from lethe.server.slot_queue import QueueFull, SlotQueue, WaitTimeout

T = TypeVar("T")

# Characters from which on a prompt counts as large: a tenth of a second of judging ordinary text on one core, and
# seconds where it is full of names to forget.
LARGE_CHARS = 5_000
# Assumed speed of judging, in characters per second, measured with ordinary code and text. It sets how long shorter
# prompts may overtake a longer one: for as long as judging it is expected to take.
CHARS_PER_S = 50_000
# Characters for which a request has the processor time of the setting; a longer one has more in proportion, as ordinary
# code and text of 200,000 characters take about four seconds. Chosen: 50,000 take about one second, half of the default
# of LETHE_JUDGE_CPU_S.
CPU_LIMIT_CHARS = 50_000
# Requests that may be paused at a time, each in a thread of its own; past that, turns don't end. Chosen: bounds the
# memory of half-judged requests.
MAX_PAUSED = 16
# Value of retry-after in seconds, when judging is too slow. Chosen: the queue empties within about a second.
RETRY_AFTER_S = 1.0


def limit_blas_threads() -> None:
    """Run matrix products in the calling thread, for the whole process.

    The products of judging are small: starting a BLAS library's worker threads takes longer than the products do.
    """
    threadpool_limits(limits=1, user_api="blas")


@dataclass
class _Slot:
    """The slot of one piece of work. large: as which it was taken. held: False after it was lost in a pause."""

    large: bool
    held: bool = True


class JudgeExecutor:
    """Runs judgements in threads. With two threads or more, large prompts never occupy the last one."""

    def __init__(
        self,
        threads: int,
        *,
        max_waiting: int,
        wait_s: float,
        timeout_s: float,
        metrics: Metrics,
        cpu_s: float = math.inf,
    ) -> None:
        """Start no thread yet.

        wait_s: maximum time in the queue; timeout_s: maximum time of one judgement, pauses included; cpu_s: maximum
        processor time of one judgement of up to CPU_LIMIT_CHARS characters; all in seconds.
        """
        limit_blas_threads()
        self._threads = ThreadPoolExecutor(threads + MAX_PAUSED, thread_name_prefix="lethe-judge")
        self._slots = SlotQueue(
            threads, max_waiting=max_waiting, wait_s=wait_s, length=metrics.judge_queue_length, reserved=1
        )
        self._wait_s = wait_s
        self._timeout_s = timeout_s
        self._cpu_s = cpu_s
        self._metrics = metrics
        self._paused: set[Future[None]] = set()
        self._closed = False

    def close(self) -> None:
        """Start no more work. Running work is not waited for: it ends by itself, and its result is unused."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for pause in list(self._paused):
            pause.cancel()

    async def run(self, work: Callable[[], T], *, size: int) -> T:
        """The result of `work`, run in a thread; size: characters to judge.

        Raises Overloaded when the queue is full, or when the wait, the work or its processor time is too long, and
        every exception of `work`. Work that nobody waits for any more stops at its next `check_work`; until then its
        thread stays occupied.
        """
        queued_at = time.monotonic()
        slot = _Slot(large=size >= LARGE_CHARS)
        try:
            await self._slots.acquire(priority=queued_at + size / CHARS_PER_S, large=slot.large)
        except QueueFull:
            raise Overloaded(
                "too many requests are waiting to be judged (LETHE_JUDGE_QUEUE)",
                code="judge_queue_full",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        except WaitTimeout:
            raise Overloaded(
                f"the request could not be judged within {self._wait_s:g} s (LETHE_JUDGE_WAIT_S)",
                code="judge_queue_timeout",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        self._metrics.judge_wait_seconds.observe(time.monotonic() - queued_at)
        loop = asyncio.get_running_loop()
        cpu_s = self._cpu_s * max(size / CPU_LIMIT_CHARS, 1.0)
        limit = WorkLimit(cpu_s, partial(self._end_turn, loop, slot))
        running = self._threads.submit(limit.run, work)
        running.add_done_callback(lambda _: self._release_from_thread(loop, slot))
        try:
            # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that arrives together with the result,
            # and the request of a client that has disconnected would be sent to vLLM.
            async with asyncio.timeout(self._timeout_s) as timeout:
                return await asyncio.wrap_future(running)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise Overloaded(
                f"judging the request took longer than {self._timeout_s:g} s (LETHE_JUDGE_TIMEOUT_S)",
                code="judge_timeout",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        except WorkExceeded:
            raise Overloaded(
                f"judging the request takes more than {cpu_s:g} s of processor time (LETHE_JUDGE_CPU_S); "
                "what has been judged is kept for a while, so a retry gets further",
                code="judge_work_exceeded",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        finally:
            limit.cancel()

    def _end_turn(self, loop: asyncio.AbstractEventLoop, slot: _Slot) -> None:
        """Let those that wait go first; runs in the work's own thread, and returns when it has a slot again."""
        if self._closed or not self._slots.waiting or len(self._paused) >= MAX_PAUSED:
            return
        was_large, slot.large, slot.held = slot.large, True, False
        pause = asyncio.run_coroutine_threadsafe(self._slots.pass_on(was_large=was_large, large=True), loop)
        self._paused.add(pause)
        try:
            pause.result(self._timeout_s)
            slot.held = True
        except BaseException:
            # The gateway stops, or the request's time is over: no slot is held.
            pause.cancel()
            raise WorkCancelled from None
        finally:
            self._paused.discard(pause)

    def _release_from_thread(self, loop: asyncio.AbstractEventLoop, slot: _Slot) -> None:
        """Free the slot; runs in the work's own thread."""
        if slot.held:
            # RuntimeError: the event loop was closed meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: self._slots.release(large=slot.large))
