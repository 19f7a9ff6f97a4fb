"""A load generator with little CPU use of its own: raw keep-alive connections in a process of its own.

Other benchmarks start it with `load_generator()`. As a process it reads orders as JSON lines from standard input and
answers each with one line:

    python -m benchmarks.load

Order: {"port", "payloads" (the bytes of requests as Latin-1, sent in turns), "requests", "connections"}. Reply:
seconds, p50 and p99 of the time to the end of the response and p50 of the time to its first byte, in milliseconds;
failed requests; the bytes of one response; CPU seconds of the generator.
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


class _LoadConnection(asyncio.Protocol):
    """One connection: sends a request, waits for the whole response, and repeats until the order is done."""

    def __init__(self, order: _LoadOrder) -> None:
        self._order = order
        self._reset()

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._received: list[bytes] = []
        self._size = 0
        # Bytes of head and body; None before the head is complete, -1 for a chunked body.
        self._expected_size: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._send_next()

    def _send_next(self) -> None:
        request = self._order.take()
        if request is None:
            self._transport.close()
            return
        self._reset()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self._received:
            self._order.first_byte_s.append(time.perf_counter() - self._started)
        self._received.append(data)
        self._size += len(data)
        if self._expected_size is None:
            head, separator, _ = b"".join(self._received).partition(b"\r\n\r\n")
            if not separator:
                return
            length = _LENGTH.search(head + b"\r\n")
            self._expected_size = len(head) + 4 + int(length[1]) if length else -1
            if not head.startswith(b"HTTP/1.1 200"):
                self._order.failed += 1
        if self._expected_size >= 0:
            done = self._size >= self._expected_size
        else:
            done = (data if len(data) >= 5 else b"".join(self._received[-5:])).endswith(_END)
        if done:
            self._order.durations_s.append(time.perf_counter() - self._started)
            self._order.last = self._received
            self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._order.connection_closed(self)


class _LoadOrder:
    """One order and its measurements."""

    def __init__(self, port: int, payloads: Sequence[bytes], requests: int, connections: int) -> None:
        self.port, self.payloads, self.connections = port, payloads, connections
        self.requests = self.remaining = requests
        self.durations_s: list[float] = []
        self.first_byte_s: list[float] = []
        self.failed = 0
        self.last: list[bytes] = []
        self._open = 0
        self._done = asyncio.get_running_loop().create_future()

    def take(self) -> bytes | None:
        """Return the next request; None after the last one."""
        self.remaining -= 1
        return self.payloads[self.remaining % len(self.payloads)] if self.remaining >= 0 else None

    def connection_closed(self, client: _LoadConnection) -> None:
        self._open -= 1
        if self.remaining > 0:
            # Closed by the server: continue on a new connection.
            self._reconnecting = asyncio.ensure_future(self._connect())
        elif self._open == 0 and not self._done.done():
            self._done.set_result(None)

    async def _connect(self) -> None:
        self._open += 1
        await asyncio.get_running_loop().create_connection(lambda: _LoadConnection(self), "127.0.0.1", self.port)

    async def run(self) -> dict[str, Any]:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(min(self.connections, self.requests)):
            await self._connect()
        await self._done
        seconds = time.perf_counter() - started
        durations, first_bytes = sorted(self.durations_s), sorted(self.first_byte_s)
        return {
            "seconds": seconds,
            "p50_ms": 1e3 * statistics.median(durations),
            "p99_ms": 1e3 * durations[min(len(durations) - 1, int(0.99 * len(durations)))],
            "first_p50_ms": 1e3 * statistics.median(first_bytes),
            "failed": self.failed + self.requests - len(durations),
            "last": b"".join(self.last).decode("latin-1"),
            "cpu_s": time.process_time() - cpu,
        }


async def _run_orders() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        order["payloads"] = [payload.encode("latin-1") for payload in order["payloads"]]
        print(json.dumps(await _LoadOrder(**order).run()), flush=True)


class LoadGenerator:
    """The load generator's process, controlled from another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def run(self, port: int, request: bytes | Sequence[bytes], *, requests: int, connections: int) -> Mapping[str, Any]:
        """Send `requests` requests over `connections` connections; several payloads are sent in turns, last one first.

        Returns the reply described in the module docstring. Raises RuntimeError if the process has exited.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        payloads = [one.decode("latin-1") for one in ([request] if isinstance(request, bytes) else request)]
        order = {"port": port, "payloads": payloads, "requests": requests, "connections": connections}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"the load generator exited with status {self._process.wait()}")
        return json.loads(reply)


@contextmanager
def load_generator() -> Iterator[LoadGenerator]:
    """Start a load generator; kill it on exit from the context."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield LoadGenerator(process)
    finally:
        process.kill()
        process.communicate()


def openai_request(path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a POST request as OpenAI's Python client sends it."""
    payload = json.dumps(body, separators=(",", ":")).encode()
    all_headers = {
        "host": "127.0.0.1", "accept": "application/json", "content-type": "application/json",
        "user-agent": "OpenAI/Python 2.26.0", "x-stainless-lang": "python", "x-stainless-async": "false",
        "authorization": "Bearer sk-none", "content-length": str(len(payload)), **(headers or {}),
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + payload


if __name__ == "__main__":
    uvloop.run(_run_orders())
