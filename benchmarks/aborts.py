"""How long vLLM goes on after a client has left: every guarded endpoint, in each of the four windows.

    python -m benchmarks.aborts [--times 5]

The windows are those of a request on its way: while it is judged, before vLLM's headers are there, before the first
byte of its answer, in the midst of the answer. Which one it was is what the gateway itself counts. Measured is the
time from the moment in which the client closes its connection until vLLM says that no request is running and makes
no more tokens. The real vLLM with the demo's model, the gateway in front with the demo's policies.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import platform
import random
import re
import signal
import statistics
import sys
import time
from dataclasses import dataclass

import aiohttp

from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.demo.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command
from lethe.evaluation.unlearning import tofu

PATHS = {
    "chat": "/v1/chat/completions",
    "batch": "/v1/chat/completions/batch",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
WINDOWS = ("judging", "headers", "first_byte", "streaming")
# vLLM answers a batch as a whole, so that its last two windows are one moment.
CASES = [
    (endpoint, window)
    for endpoint, window in itertools.product(PATHS, WINDOWS)
    if endpoint != "batch" or window in ("judging", "headers")
]
TOKENS = 4000
FILLER = "The river runs past the old mill and the mill stands by the river. "
ATTEMPTS = 12
QUIET_S = 0.5
# An event loop that takes so long to answer a question about its numbers is late.
LATE_S = 0.5


@dataclass(frozen=True)
class Left:
    """What came of one client that left: the window it left in ("answered": too late to be noticed), the seconds until
    vLLM was idle, the tokens that it had made by then of TOKENS that were asked for, and the longest that it took to
    say so."""

    window: str
    idle_s: float
    tokens: int
    late_s: float


# A request has reached vLLM's engine by then, or never will.
BEGINS_S = 20.0


class NotSeen(RuntimeError):
    """No attempt met the window that was wanted, or vLLM never became idle."""


def body(endpoint: str, window: str, number: int) -> bytes:
    """A flagged request for a long answer; the number makes it one that nobody has asked yet."""
    question = tofu.secrets()[number % 300].question
    model = demo.WAYS["penalize" if number % 2 else "corrupt"]
    text = question
    if window == "judging":
        draw = random.Random(number)
        words = " ".join(fact.question for fact in draw.sample(tofu.retain_facts()[0], 60)).split()
        draw.shuffle(words)
        text = f"{question} {' '.join(words)}"
    elif window == "first_byte":
        # vLLM reads a long prompt before its first byte; the same words over and over are soon judged.
        text = f"{FILLER * 100}{number} {question}"
    made: dict[str, object] = {"model": model, "ignore_eos": True, "temperature": 1}
    made["max_output_tokens" if endpoint == "responses" else "max_tokens"] = TOKENS
    if endpoint != "batch":
        made["stream"] = window in ("first_byte", "streaming")
    message = [{"role": "user", "content": text}]
    if endpoint == "completions":
        made["prompt"] = text
    elif endpoint == "responses":
        made["input"] = text
    else:
        made["messages"] = [message] if endpoint == "batch" else message
    return json.dumps(made).encode()


class Watcher:
    """Reads the numbers of both servers."""

    def __init__(self, http: aiohttp.ClientSession, vllm: str, admin: str) -> None:
        self._http, self._vllm, self._admin = http, vllm, admin

    async def vllm(self) -> tuple[int, int]:
        """Requests running or waiting, and tokens made so far."""
        async with self._http.get(f"{self._vllm}/metrics") as got:
            text = await got.text()
        found = {name: 0.0 for name in ("num_requests_running", "num_requests_waiting", "generation_tokens_total")}
        for name, value in re.findall(r"^vllm:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE):
            if name in found:
                found[name] += float(value)
        return int(found["num_requests_running"] + found["num_requests_waiting"]), int(found["generation_tokens_total"])

    async def gone(self) -> dict[str, float]:
        """How many clients have left in each window, in the gateway's words."""
        async with self._http.get(f"{self._admin}/metrics") as got:
            text = await got.text()
        return {
            window: float(count)
            for window, count in re.findall(r'^lethe_client_gone_total\{window="(\w+)"\} (\S+)$', text, re.MULTILINE)
        }

    async def idle(self, since: float) -> tuple[float, float]:
        """Seconds from `since` until vLLM had no request any more, and made no token for QUIET_S from then on; and
        the longest that it took to answer.

        Its gauges are those of its engine's last step: they may be at zero before a request has begun.
        """
        found, quiet = await self.vllm(), time.monotonic()
        late = quiet - since
        while time.monotonic() - since < 60:
            await asyncio.sleep(0.01)
            asked = time.monotonic()
            now = await self.vllm()
            late = max(late, time.monotonic() - asked)
            if now[0] or now != found:
                found, quiet = now, asked
            elif asked - quiet > QUIET_S:
                return quiet - since, late
        raise NotSeen("vLLM's requests never ended")


async def leave(watcher: Watcher, gateway: str, endpoint: str, window: str, number: int) -> Left:
    """Ask, leave in the window, or near it, and see what vLLM does."""
    before, (_, made) = await watcher.gone(), await watcher.vllm()
    raw = body(endpoint, window, number)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.rsplit(":", 1)[1]))
    head = f"POST {PATHS[endpoint]} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(raw) + raw)
    await writer.drain()
    if window == "judging":
        await asyncio.sleep(0.02)
    elif window == "headers":
        # A small model may be done before vLLM's server gets round to its gauges: then this attempt says nothing.
        begun, until = (0, made), time.monotonic() + BEGINS_S
        while not begun[0] and begun[1] == made and time.monotonic() < until:
            await asyncio.sleep(0.005)
            begun = await watcher.vllm()
    else:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        if window == "streaming":
            for _ in range(3):
                await asyncio.wait_for(reader.readuntil(b"data: "), 60)
    writer.transport.abort()
    left = time.monotonic()
    idle_s, late_s = await watcher.idle(left)
    _, after = await watcher.vllm()
    for _ in range(100):
        found = [name for name, count in (await watcher.gone()).items() if count > before.get(name, 0)]
        if found:
            return Left(found[0], idle_s, after - made, late_s)
        await asyncio.sleep(0.02)
    return Left("answered", idle_s, after - made, late_s)


async def measured(watcher: Watcher, gateway: str, endpoint: str, window: str, numbers: itertools.count[int]) -> Left:
    """One client that left in this window. Raises NotSeen.

    An attempt says nothing when the window or the whole answer had passed, or when vLLM's own event loop was late:
    then it can't notice anybody leaving, with a gateway or without (docs/VLLM.md).
    """
    # vLLM begins a response's stream with an event of its own, which comes with the head: its first byte is no token.
    fits = {window, "streaming"} if (endpoint, window) == ("responses", "first_byte") else {window}
    found = []
    for _ in range(ATTEMPTS):
        found.append(await leave(watcher, gateway, endpoint, window, next(numbers)))
        if found[-1].window in fits and found[-1].late_s < LATE_S:
            return found[-1]
    raise NotSeen(f"{endpoint}, {window}: {found}")


async def table(vllm: str, gateway: str, admin: str, times: int) -> float:
    """Print medians and the worst by endpoint and window; the worst of all."""
    numbers = itertools.count()
    worst = 0.0
    async with aiohttp.ClientSession() as http:
        watcher = Watcher(http, vllm, admin)
        print(f"{'':<14}{'window':<14}{'idle after, ms: median':>24}{'most':>8}{'tokens made, most':>20}")
        for endpoint, window in CASES:
            found = [await measured(watcher, gateway, endpoint, window, numbers) for _ in range(times)]
            times_ms = [one.idle_s * 1e3 for one in found]
            most = max(one.tokens for one in found)
            print(
                f"{endpoint:<14}{window:<14}{statistics.median(times_ms):24.0f}{max(times_ms):8.0f}{most:20d}",
                flush=True,
            )
            worst = max(worst, *times_ms)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="clients that leave, for each endpoint and window")
    times = parser.parse_args().times
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    demo.fit_artifact()
    logs = demo.ROOT / "build" / "benchmarks"
    logs.mkdir(parents=True, exist_ok=True)
    port, own, admin = free_port(), free_port(), free_port()
    vllm, gateway = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{own}"
    env = demo.gateway_env(own, port, demo.ROOT / "policies" / "demo", logs / "audit.jsonl")
    env["LETHE_ADMIN_PORT"] = str(admin)
    served = vllm_command(FOLDERS["full"], port, list(demo.WAYS.values()))
    with (
        running("vLLM", served, f"{vllm}/health", logs / "vllm.log", env=VLLM_ENV),
        running_gateway(logs / "gateway.log", env=env),
    ):
        print(f"{platform.machine()}, {TOKENS} tokens asked for, {times} clients each")
        worst = asyncio.run(table(vllm, gateway, f"http://127.0.0.1:{admin}", times))
    print(f"the longest: {worst:.0f} ms")
    sys.exit(worst > 1000)


if __name__ == "__main__":
    main()
