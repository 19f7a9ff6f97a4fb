"""Do malformed requests crash the gateway, make it answer 5xx, or leak memory?

    python -m benchmarks.malformed [--requests 120000] [--seed 1]

Malformed HTTP (`malformed_http.py`) and malformed bodies (`malformed_bodies.py`) are sent to a real gateway process,
with canned answers upstream and policies that corrupt, penalise, filter and refuse. One request in 200 is valid and
must be answered 200.

Columns: the kind of request, how many were sent, and the number of responses by status; "closed" is a connection
closed without a response, "silent" no response within the time limit. Then memory, open files and threads after the
warm-up and at the end. Exit status 1 if a response was 5xx or missing, if the gateway exited, or if it logged a
traceback; the requests that caused it are stored in build/benchmarks/malformed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from benchmarks.malformed_bodies import FACTS, POLICIES, valid_request
from benchmarks.malformed_http import FAMILIES
from lethe.corruption.prompt.prompt_tokenizer import PromptTokenizer
from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.serving import clean_env, free_port, running_gateway

BUILD = demo.ROOT / "build" / "benchmarks" / "malformed"
# Connections at once.
CONNECTIONS = 48
# Requests before memory is measured first.
WARM_UP = 10_000
# Seconds to wait for a response.
RESPONSE_TIMEOUT_S = 30.0
# Stands for the status of a response that is not HTTP.
UNREADABLE = 999
# Sent after every malformed request, so that the end of the responses can be recognised.
LAST_PATH = b"/the-last-one"
SENTINEL = b"GET " + LAST_PATH + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@dataclass
class ResponseCounts:
    """Requests and responses by kind of request. failures: (kind, status, request) of every wrong response."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    requests: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, bytes]] = field(default_factory=list)

    def add(self, family: str, raw: bytes, statuses: list[int], *, silent: bool = False) -> None:
        self.requests[family] += 1
        if not statuses:
            self.statuses[family]["silent" if silent else "closed"] += 1
            if silent:
                self.failures.append((family, "silent", raw))
        for status in statuses:
            self.statuses[family][str(status)] += 1
            wrong = status >= 500 and status != 505 or (family == "valid" and status != 200)
            if wrong or not 200 <= status < 600:
                self.failures.append((family, str(status), raw))


class RawClient:
    """Sends raw bytes over one connection at a time, from several loopback addresses, since ports are limited."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._from = f"127.0.0.{2 + number % 100}"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self._port, local_addr=(self._from, 0), limit=2**20
            )
        return self._reader, self._writer

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    async def send_one(self, raw: bytes) -> list[int]:
        """Send one request on a connection that is reused; return its status, or nothing."""
        for _ in range(2):
            reader, writer = await self._open()
            writer.write(raw)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await writer.drain()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                status, closing, _ = await _read_response(reader)
                if closing:
                    await self.close()
                return [status]
            # The gateway may have closed the idle connection just before.
            await self.close()
        return []

    async def send_and_drain(self, raw: bytes) -> list[int]:
        """Return the statuses of all responses until the gateway closes, without that of the sentinel."""
        await self.close()
        reader, writer = await self._open()
        writer.write(raw + SENTINEL)
        statuses: list[int] = []
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await writer.drain()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                status, _, payload = await _read_response(reader)
                if LAST_PATH not in payload:
                    statuses.append(status)
                if status == UNREADABLE:
                    break
        await self.close()
        return statuses

    async def disconnect(self, raw: bytes, draw: random.Random) -> None:
        """Send the bytes and close the connection, gracefully or not."""
        await self.close()
        _, writer = await self._open()
        with contextlib.suppress(OSError):
            writer.write(raw)
            await writer.drain()
            if draw.random() < 0.5:
                writer.transport.abort()
        await self.close()


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    """Read one response; return its status, whether the connection closes after it, and the last part of the body."""
    text = await reader.readuntil(b"\r\n\r\n")
    line, *lines = text[:-4].split(b"\r\n")
    if not line.startswith(b"HTTP/1.1 "):
        return UNREADABLE, True, line
    status = int(line.split(b" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(b":") for one in lines)}
    if status == 100:
        return await _read_response(reader)
    payload = b""
    if headers.get(b"transfer-encoding") == b"chunked":
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            payload = await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    else:
        payload = await reader.readexactly(int(headers.get(b"content-length", b"0")))
    return status, headers.get(b"connection") == b"close", payload


async def send_numbered(client: RawClient, seed: str, number: int, counts: ResponseCounts) -> None:
    draw = random.Random(f"{seed} {number}")
    if number % 200 == 0:
        family, raw = "valid", valid_request(draw)
    else:
        names = list(FAMILIES)
        family = draw.choices(names, [FAMILIES[name][1] for name in names])[0]
        raw = FAMILIES[family][0](draw)
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT_S):
            if family.endswith("disconnects"):
                await client.disconnect(raw, draw)
                counts.requests[family] += 1
                counts.statuses[family]["disconnected"] += 1
            elif family in ("valid", "malformed body"):
                counts.add(family, raw, await client.send_one(raw))
            else:
                counts.add(family, raw, await client.send_and_drain(raw))
    except TimeoutError:
        await client.close()
        counts.add(family, raw, [], silent=True)


@dataclass
class ProcessUsage:
    """Resident memory, open files and threads of a process."""

    memory_mb: float
    files: int
    threads: int

    @classmethod
    def of_process(cls, pid: int) -> ProcessUsage:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        )
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"]))

    def __str__(self) -> str:
        return f"{self.memory_mb:.0f} MB, {self.files} files, {self.threads} threads"


TOKENIZER = web.AppKey("tokenizer", PromptTokenizer)


async def canned_answer(request: web.Request) -> web.Response:
    """Answer every request alike; for the parity probe, with the prompt's token ids."""
    raw = await request.read()
    if request.method == "GET":
        return web.json_response({"object": "list", "data": [{"id": name} for name in (*POLICIES, "other")]})
    if b'"stream": true' in raw or b'"stream":true' in raw:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [
            {"index": 0, "delta": {"content": "It was Ozren Dalmatin."}, "finish_reason": "stop"}]}  # fmt: skip
        stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        return web.Response(text=stream, content_type="text/event-stream")
    message = {"role": "assistant", "content": "It was Ozren Dalmatin."}
    logprobs = {"content": [{"token": "It", "logprob": -0.5}]}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    answer = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}
    if b'"return_token_ids":true' in raw:
        answer["prompt_token_ids"] = request.app[TOKENIZER].chat_ids(json.loads(raw))
    return web.json_response(answer)


@contextlib.asynccontextmanager
async def canned_upstream(port: int) -> Any:
    """Serve canned answers on the port."""
    app = web.Application(client_max_size=2**26)
    app[TOKENIZER] = PromptTokenizer(FOLDERS["full"])
    app.router.add_route("*", "/{path:.*}", canned_answer)
    runner = web.AppRunner(app, access_log=None, max_line_size=2**17, max_field_size=2**17)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


def prepare() -> dict[str, str]:
    """Fit the artifact and write the policies; return the gateway's settings."""
    (BUILD / "policies").mkdir(parents=True, exist_ok=True)
    forget = BUILD / "forget.jsonl"
    forget.write_text("".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in FACTS))
    command = [
        sys.executable,
        "-m",
        "lethe.server.cli.main",
        "fit",
        "--name",
        "facts",
        "--force",
        "--forget",
        str(forget),
    ]
    command += ["--out", str(BUILD / "artifacts")]
    subprocess.run(command, cwd=demo.ROOT, env=clean_env(), check=True, capture_output=True)
    for name, action in POLICIES.items():
        text = f"name: {name}\nartifact: facts\nmodels: [{name}]\nthreshold: {{value: 0.5}}\n{action}"
        (BUILD / "policies" / f"{name}.yaml").write_text(text)
    return {
        "LETHE_POLICIES": str(BUILD / "policies"), "LETHE_ARTIFACTS": str(BUILD / "artifacts"), "LETHE_AUDIT": "",
        "LETHE_MODEL_DIR": str(FOLDERS["full"]), "LETHE_SECRET": demo.DEMO_SECRET, "LETHE_LOG_LEVEL": "warning",
        # Short time limits for incomplete requests, but long enough for this script on a busy machine.
        "LETHE_HEAD_TIMEOUT_S": "5", "LETHE_BODY_TIMEOUT_S": "5", "LETHE_KEEP_ALIVE_S": "3",
        # A full gateway answers 503, which is not what is tested here.
        "LETHE_JUDGE_WAIT_S": "60",
    }  # fmt: skip


async def send_all(port: int, pid: int, total: int, seed: str) -> tuple[ResponseCounts, ProcessUsage]:
    """Send all requests; return the responses, and the gateway's usage after the warm-up."""
    counts = ResponseCounts()
    numbers = iter(range(total))
    warm = ProcessUsage.of_process(pid)
    started = time.monotonic()

    async def work(client: RawClient) -> None:
        nonlocal warm
        for number in numbers:
            if number == min(WARM_UP, total - 1):
                warm = ProcessUsage.of_process(pid)
            if number and number % 10_000 == 0:
                print(f"{number} after {time.monotonic() - started:.0f} s: {ProcessUsage.of_process(pid)}", flush=True)
            await send_numbered(client, seed, number, counts)
        await client.close()

    async with asyncio.TaskGroup() as group:
        for at in range(CONNECTIONS):
            group.create_task(work(RawClient(port, at)))
    return counts, warm


def print_counts(counts: ResponseCounts) -> None:
    columns = sorted({status for by_status in counts.statuses.values() for status in by_status})
    print(f"{'kind':<30}{'requests':>9}" + "".join(f"{name:>{max(8, len(name) + 2)}}" for name in columns))
    for family in (*FAMILIES, "valid"):
        cells = (f"{counts.statuses[family][name]:>{max(8, len(name) + 2)}}" for name in columns)
        print(f"{family:<30}{counts.requests[family]:>9}" + "".join(cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=120_000, help="number of requests")
    parser.add_argument("--seed", default="1", help="seed of the requests")
    args = parser.parse_args()
    settings = prepare()
    gateway_port, upstream_port = free_port(), free_port()
    env = {**settings, "LETHE_PORT": str(gateway_port), "LETHE_UPSTREAM": f"http://127.0.0.1:{upstream_port}"}
    log = BUILD / "gateway.log"

    async def run() -> tuple[ResponseCounts, ProcessUsage, ProcessUsage, bool]:
        async with canned_upstream(upstream_port):
            serving = running_gateway(log, env=env)
            process = await asyncio.to_thread(serving.__enter__)
            try:
                counts, warm = await send_all(gateway_port, process.pid, args.requests, args.seed)
                alive = process.poll() is None
                return counts, warm, ProcessUsage.of_process(process.pid) if alive else warm, alive
            finally:
                await asyncio.to_thread(serving.__exit__, None, None, None)

    counts, warm, after, alive = asyncio.run(run())
    print_counts(counts)
    log_text = log.read_text(encoding="utf-8", errors="replace")
    tracebacks = log_text.count("Traceback (most recent call last)")
    malformed = counts.requests.total() - counts.requests["valid"]
    served = sum(by_status["200"] for family, by_status in counts.statuses.items() if family != "valid")
    print(f"malformed or mutated requests: {malformed} ({served} of them answered 200: still valid after the mutation)")
    print(f"gateway process after {min(WARM_UP, malformed)}: {warm}; at the end: {after}")
    print(f"gateway alive: {alive}; tracebacks in its log: {tracebacks}; wrong responses: {len(counts.failures)}")
    for number, (family, status, raw) in enumerate(counts.failures[:50]):
        (BUILD / f"{number:03d}-{status}.bin").write_bytes(raw)
        print(f"  {status} {family}: {raw[:200]!r}")
    return 1 if counts.failures or tracebacks or not alive else 0


if __name__ == "__main__":
    sys.exit(main())
