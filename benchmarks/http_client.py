"""CPU time of one upstream request: the gateway's own HTTP/1.1 client beside aiohttp, in one process, alternating.

    python -m benchmarks.http_client [--rounds 7] [--requests 3200]

Both clients send the same POST (benchmarks/proxy.py) over 32 connections to the fast upstream, which is a process of
its own, and read the whole response, or a stream of 32 chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import orjson
import uvloop

from benchmarks import peers, proxy
from lethe.server.upstream.client import Upstream

CONNECTIONS = 32
PATH = "/v1/chat/completions"
HEADERS = {"content-type": "application/json", "accept": "*/*", "authorization": "Bearer key"}

Send = Callable[[bytes], Awaitable[None]]


def own_client(upstream: Upstream) -> Send:
    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def send(body: bytes) -> None:
        async with upstream.open("POST", PATH.encode(), headers, body) as response:
            async for _ in response.chunks():
                pass

    return send


def aiohttp_client(session: aiohttp.ClientSession, url: str) -> Send:
    async def send(body: bytes) -> None:
        async with session.post(url + PATH, headers=HEADERS, data=body, allow_redirects=False) as response:
            async for _ in response.content.iter_any():
                pass

    return send


async def cpu_us(send: Send, body: bytes, requests: int) -> float:
    """CPU time of this process per request, in microseconds."""

    async def connection() -> None:
        for _ in range(requests // CONNECTIONS):
            await send(body)

    started = time.process_time()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return 1e6 * (time.process_time() - started) / requests


async def measure(port: int, rounds: int, requests: int) -> None:
    url = f"http://127.0.0.1:{port}"
    upstream = Upstream(url, connect_timeout_s=5, read_timeout_s=60)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4), auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )  # fmt: skip
    clients = {"own": own_client(upstream), "aiohttp": aiohttp_client(session, url)}
    for kind in ("whole", "streamed"):
        body = orjson.dumps({**proxy.BODY, **proxy.KINDS[kind]})
        values: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(rounds + 1):
            for name, send in clients.items():
                value = await cpu_us(send, body, requests)
                if number:  # the first round warms up
                    values[name].append(value)
        ratios = [theirs / ours for ours, theirs in zip(values["own"], values["aiohttp"], strict=True)]
        for name, found in values.items():
            print(f"{kind}, {name}: {statistics.median(found):.1f} µs ({min(found):.1f} to {max(found):.1f})")
        print(f"{kind}, aiohttp / own: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    await upstream.close()
    await session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=3200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, peers.run_fast_upstream(Path(folder)) as (port, _):
        uvloop.run(measure(port, args.rounds, args.requests))


if __name__ == "__main__":
    main()
