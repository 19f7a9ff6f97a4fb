"""A load generator that costs little: raw keep-alive connections in a process of its own.

    python -m benchmarks.load        reads orders as JSON lines from its standard input, answers each with one line

Order: {"port", "asked" (requests' bytes, as Latin-1, asked in turns), "requests", "connections"}. Answer: seconds, p50
and p99 of the time of a whole answer and p50 to its first byte, in milliseconds; requests that failed; one answer's
bytes; own CPU seconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_END = b"0\r\n\r\n"


class _Client(asyncio.Protocol):
    """One connection: asks, waits for the whole answer, asks again, as long as the order has requests left."""

    def __init__(self, round_: _Order) -> None:
        self._order = round_
        self._reset()

    def _reset(self) -> None:
        self._begun = time.perf_counter()
        self._got: list[bytes] = []
        self._size = 0
        self._wanted: int | None = None  # bytes of head and body; None: not known (yet), -1: chunked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._next()

    def _next(self) -> None:
        request = self._order.take()
        if request is None:
            self._transport.close()
            return
        self._reset()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self._got:
            self._order.first.append(time.perf_counter() - self._begun)
        self._got.append(data)
        self._size += len(data)
        if self._wanted is None:
            head, found, _ = b"".join(self._got).partition(b"\r\n\r\n")
            if not found:
                return
            length = _LENGTH.search(head + b"\r\n")
            self._wanted = len(head) + 4 + int(length[1]) if length else -1
            if not head.startswith(b"HTTP/1.1 200"):
                self._order.failed += 1
        if self._wanted >= 0:
            done = self._size >= self._wanted
        else:
            done = (data if len(data) >= 5 else b"".join(self._got[-5:])).endswith(_END)
        if done:
            self._order.took.append(time.perf_counter() - self._begun)
            self._order.last = self._got
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._order.lost(self)


class _Order:
    """One order and what came of it."""

    def __init__(self, port: int, asked: Sequence[bytes], requests: int, connections: int) -> None:
        self.port, self.asked, self.left, self.connections = port, asked, requests, connections
        self.wanted = requests
        self.took: list[float] = []
        self.first: list[float] = []
        self.failed = 0
        self.last: list[bytes] = []
        self._open = 0
        self._done = asyncio.get_running_loop().create_future()

    def take(self) -> bytes | None:
        """The next request; None where all were asked."""
        self.left -= 1
        return self.asked[self.left % len(self.asked)] if self.left >= 0 else None

    def lost(self, client: _Client) -> None:
        self._open -= 1
        if self.left > 0:
            # Closed by the server: a new connection goes on.
            self._dialling = asyncio.ensure_future(self._connect())
        elif self._open == 0 and not self._done.done():
            self._done.set_result(None)

    async def _connect(self) -> None:
        self._open += 1
        await asyncio.get_running_loop().create_connection(lambda: _Client(self), "127.0.0.1", self.port)

    async def run(self) -> dict[str, Any]:
        begun, cpu = time.perf_counter(), time.process_time()
        for _ in range(min(self.connections, self.wanted)):
            await self._connect()
        await self._done
        seconds = time.perf_counter() - begun
        took, first = sorted(self.took), sorted(self.first)
        return {
            "seconds": seconds,
            "p50_ms": 1e3 * statistics.median(took),
            "p99_ms": 1e3 * took[min(len(took) - 1, int(0.99 * len(took)))],
            "first_p50_ms": 1e3 * statistics.median(first),
            "failed": self.failed + self.wanted - len(took),
            "last": b"".join(self.last).decode("latin-1"),
            "cpu_s": time.process_time() - cpu,
        }


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        order["asked"] = [request.encode("latin-1") for request in order["asked"]]
        print(json.dumps(await _Order(**order).run()), flush=True)


class Load:
    """The generator's process, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def run(self, port: int, request: bytes | Sequence[bytes], *, requests: int, connections: int) -> Mapping[str, Any]:
        """Ask so often over so many connections; several requests are asked in turns, from the last to the first.

        Raises RuntimeError when the generator has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = [one.decode("latin-1") for one in ([request] if isinstance(request, bytes) else request)]
        order = {"port": port, "asked": asked, "requests": requests, "connections": connections}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the load generator ended with status {self._process.wait()}")
        return json.loads(answer)


@contextmanager
def generator() -> Iterator[Load]:
    """A load generator, ended on leaving."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Load(process)
    finally:
        process.kill()
        process.communicate()


def post(path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request, as OpenAI's Python client would send it."""
    payload = json.dumps(body, separators=(",", ":")).encode()
    sent = {
        "host": "127.0.0.1", "accept": "application/json", "content-type": "application/json",
        "user-agent": "OpenAI/Python 2.26.0", "x-stainless-lang": "python", "x-stainless-async": "false",
        "authorization": "Bearer sk-none", "content-length": str(len(payload)), **(headers or {}),
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + payload


if __name__ == "__main__":
    uvloop.run(_serve())
