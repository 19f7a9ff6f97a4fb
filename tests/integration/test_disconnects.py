"""Clients that leave at any moment: no connection, task, file or counter may stay behind.

The suite disconnects 1,000 of them; `DISCONNECTS=10000 pytest tests/integration/test_disconnects.py` that many.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections import Counter

from lethe.server.upstream.http1 import IDLE_TIMEOUT_S
from tests.integration.faulty import RAISE
from tests.integration.processes import Gateway, gateway, until, upstreams

log = logging.getLogger(__name__)

MANY = int(os.environ.get("DISCONNECTS", "1000"))
AT_ONCE = 32
GAUGES = ("requests_in_flight", "replica_in_flight", "queue_length", "judge_queue_length", "held_bytes", "connections")
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/models")


def request(draw: random.Random) -> bytes:
    """The bytes of one request: unguarded, judged, refused, failing, streamed or whole."""
    path = draw.choice(PATHS)
    if path == "/v1/models":
        return b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    model = draw.choice(["other", "other", "m-refuse", "m-pass"])
    text = draw.choice(["hello", "word " * 500, f"please {RAISE}"])
    body: dict[str, object] = {"model": model, "stream": draw.random() < 0.5}
    if path == "/v1/completions":
        body["prompt"] = text
    elif path == "/v1/responses":
        body["input"] = text
    else:
        body |= {"messages": [{"role": "user", "content": text}], "max_tokens": 5}
    raw = json.dumps(body).encode()
    fault = draw.choice(["", "", "", "no-headers", "no-chunk", "endless", "half-a-chunk", "not-http"])
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-canned: {fault}\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(raw) + raw


async def leave(port: int, draw: random.Random, how: Counter[str]) -> None:
    """Send a request, or a part of it, and be gone after a while: politely, or by a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        asked = request(draw)
        part = draw.choice([1.0, 1.0, 1.0, draw.random()])
        writer.write(asked[: max(1, int(part * len(asked)))])
        await writer.drain()
        try:
            async with asyncio.timeout(draw.choice([0, 0.001, 0.01, 0.1, 0.4])):
                how["answered" if await reader.read(65_536) else "closed"] += 1
        except TimeoutError:
            how["left waiting"] += 1
    except ConnectionError:
        how["reset"] += 1
    finally:
        if draw.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def all_leave(port: int) -> Counter[str]:
    how: Counter[str] = Counter()
    free = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with free:
            await leave(port, random.Random(number), how)

    await asyncio.gather(*(one(number) for number in range(MANY)))
    return how


def at_rest(gate: Gateway) -> tuple[int, int]:
    """Descriptors and tasks, once every gauge is at zero."""
    for gauge in GAUGES:
        until(lambda gauge=gauge: gate.count(gauge) == 0, f"{gauge} is not back at zero", within_s=60)
    # Health checks come and go: as few as were seen in a while.
    looks = [(gate.descriptors(), gate.tasks()) for _ in range(20)]
    return min(descriptors for descriptors, _ in looks), min(tasks for _, tasks in looks)


def test_clients_that_leave_leave_nothing_behind() -> None:
    with upstreams(2) as ups, gateway("leaving", [one.url for one in ups], LETHE_READ_TIMEOUT_S=5) as gate:
        port = int(gate.url.rsplit(":", 1)[1])
        before = at_rest(gate)
        how = asyncio.run(all_leave(port))
        time.sleep(IDLE_TIMEOUT_S + 1)
        after = at_rest(gate)
        assert after == before, (before, after, how)
        assert sum(one.running() for one in ups) == 0
        assert how.total() == MANY and min(how["answered"], how["left waiting"]) > MANY / 100, how
        gone = gate.count("client_gone_total")
        assert gone > MANY / 20, gone
        windows = ("headers", "first_byte", "streaming")
        assert all(gate.count("client_gone_total", window=window) for window in windows)
        assert gate.ask().status_code == 200
        log.info("%d requests: %s; %d left while served; descriptors, tasks: %s", MANY, dict(how), gone, after)
