"""When a request is given up: its deadlines, and the client that disconnects."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from typing import Any, Protocol

from lethe.server.errors import GatewayError, TooSlow, UpstreamTimeout
from lethe.server.observability.metrics import Metrics
from lethe.server.settings import Settings

# Longest time between two looks at the deadlines, in seconds. Chosen: short against any timeout that makes sense.
MAX_INTERVAL_S = 1.0


class Deadlines:
    """When a request is given up: its deadlines, and the client that disconnects.

    A caller that aborts the request stores the reason here and cancels the request's task, so that the task itself
    never waits for two things. stage: where the request is, for the metric of disconnected clients.
    """

    def __init__(self, task: asyncio.Task[Any], total_s: float, now: float) -> None:
        """total_s: seconds for the whole request, from `now` on (`time.perf_counter`)."""
        self.task = task
        self.stage = "reading"
        self.request_ends = now + total_s
        self.stage_ends = math.inf
        self.client_disconnected = False
        self.error: GatewayError | None = None
        self._finished = False

    def enter(self, stage: str, ends: float = math.inf) -> None:
        """Begin a stage that has to end at `ends` (`time.perf_counter`)."""
        self.stage, self.stage_ends = stage, ends

    def headers_arrived(self) -> None:
        """Upstream has sent headers; the deadline for the first byte of the body stays."""
        self.stage = "first_byte"

    def body_arrives(self) -> None:
        """A byte of the response body is here."""
        self.enter("streaming")

    def expired(self, now: float) -> bool:
        """Whether one of the deadlines has passed."""
        return now > self.stage_ends or now > self.request_ends

    def on_disconnect(self) -> None:
        """The client is gone: cancel the request."""
        if not (self._finished or self.client_disconnected):
            self.client_disconnected = True
            self.task.cancel()

    def give_up(self, error: GatewayError) -> None:
        """Cancel the request, to be answered with `error`.

        A deadline has passed, or the upload was too slow while memory was short.
        """
        if not (self._finished or self.client_disconnected or self.error):
            self.error = error
            self.task.cancel()

    def finish(self) -> None:
        """From now on nothing cancels the request."""
        self._finished = True


class HasDeadlines(Protocol):
    @property
    def deadlines(self) -> Deadlines: ...


async def watch_deadlines(requests: Iterable[HasDeadlines], settings: Settings, metrics: Metrics) -> None:
    """Give up the requests whose deadline has passed, until cancelled. One loop costs less than a timer for each.

    requests: those in flight; it changes while this runs.
    """
    shortest = min(settings.body_timeout_s, settings.first_byte_timeout_s, settings.request_timeout_s)
    # An eighth of the shortest timeout, so that none is exceeded by more than that.
    interval_s = min(shortest / 8, MAX_INTERVAL_S)
    while True:
        await asyncio.sleep(interval_s)
        now = time.perf_counter()
        for request in list(requests):
            if request.deadlines.expired(now):
                request.deadlines.give_up(_timeout_error(request.deadlines, now, settings, metrics))


def _timeout_error(deadlines: Deadlines, now: float, settings: Settings, metrics: Metrics) -> GatewayError:
    if now > deadlines.stage_ends and deadlines.stage == "reading":
        message = f"the body did not arrive within {settings.body_timeout_s:g} s (LETHE_BODY_TIMEOUT_S)"
        return TooSlow(message, code="body_timeout")
    if now > deadlines.stage_ends:
        seconds = settings.first_byte_timeout_s
        metrics.upstream_errors.labels("first_byte_timeout").inc()
        message = f"the model server sent nothing within {seconds:g} s (LETHE_FIRST_BYTE_TIMEOUT_S)"
        return UpstreamTimeout(message, code="first_byte_timeout")
    message = f"the request took longer than {settings.request_timeout_s:g} s (LETHE_REQUEST_TIMEOUT_S)"
    return UpstreamTimeout(message, code="request_timeout")
