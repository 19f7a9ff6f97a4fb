"""Deadlines of a request, and the context that is known before its body is read."""

from __future__ import annotations

import asyncio
import time

import pytest

from lethe.server.errors import Overloaded
from lethe.server.http.deadlines import Deadlines
from lethe.server.http.exchange import RequestContext


def context(path: str, query: bytes = b"", endpoint: str | None = None) -> RequestContext:
    scope = {"method": "POST", "path": path, "query_string": query, "headers": []}
    return RequestContext(scope, endpoint, "id", 0.0)  # type: ignore[arg-type]


def test_the_target_keeps_the_routes_own_spelling() -> None:
    assert context("/v1/models").target == b"/v1/models"
    assert context("/v1/models", b"a=%2F").target == b"/v1/models?a=%2F"


def test_an_endpoint_that_is_relayed_unread_is_named_by_its_path() -> None:
    assert context("/v1/models").endpoint_name == "models"
    assert context("/v1/chat/completions", endpoint="chat").endpoint_name == "chat"


async def waiting() -> None:
    await asyncio.sleep(10)


@pytest.mark.parametrize("end", ["disconnect", "deadline"])
async def test_whatever_ends_a_request_cancels_its_task_once(end: str) -> None:
    task = asyncio.ensure_future(waiting())
    deadlines = Deadlines(task, 60, time.perf_counter())
    await asyncio.sleep(0)
    error = Overloaded("too late")
    if end == "disconnect":
        deadlines.on_disconnect()
        deadlines.give_up(error)
    else:
        deadlines.give_up(error)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert deadlines.client_disconnected is (end == "disconnect")
    assert deadlines.error is (None if end == "disconnect" else error)


async def test_nothing_cancels_a_request_that_has_finished() -> None:
    task = asyncio.ensure_future(waiting())
    deadlines = Deadlines(task, 60, time.perf_counter())
    deadlines.finish()
    deadlines.on_disconnect()
    deadlines.give_up(Overloaded("too late"))
    await asyncio.sleep(0)
    assert not task.cancelling() and not deadlines.client_disconnected
    task.cancel()


async def test_a_stage_or_the_whole_request_expires() -> None:
    task = asyncio.ensure_future(waiting())
    deadlines = Deadlines(task, 60, now=100.0)
    assert not deadlines.expired(159.0) and deadlines.expired(161.0)
    deadlines.enter("headers", 110.0)
    assert deadlines.expired(111.0)
    deadlines.body_arrives()
    assert deadlines.stage == "streaming" and not deadlines.expired(111.0)
    task.cancel()
