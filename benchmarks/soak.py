"""Mixed traffic for a long time: does anything of it stay behind in the gateway?

    python -m benchmarks.soak [--minutes 30] [--upstream vllm|canned|URL] [--rate 8] [--clients 8]

Flagged requests and others, whole and streamed, on every guarded endpoint; clients that leave; malformed bodies;
prompts of 30,000 tokens. All of it goes through a gateway process of its own with the demo's policies. Prints a
table, and writes every sample as a line of JSON (`--out`), from /proc and from the gateway's own /metrics.

Exit status 1 when private or resident memory grew by more than 2 % after the warm-up (lower quartiles of the
first and the last sixth after it: a long prompt takes 30 MiB while it is judged, which isn't growth), when
descriptors or gauges did not come back to what they were before the traffic, or when an answer had a status that
its request does not explain.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import aiohttp
import numpy as np

from benchmarks import canned
from benchmarks.aborts import PATHS
from lethe.classifier.training import rows
from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.demo.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command
from lethe.evaluation.unlearning import tofu

MOST_GROWTH = 0.02
# What comes how often, and the statuses that explain themselves. vLLM refuses a prompt beyond its context with 400,
# after the gateway has judged all of it; a gateway that is full says so.
KINDS = {
    "not covered": (25, {200}),
    "not flagged": (25, {200}),
    "flagged": (25, {200}),
    "leaves": (14, {0, 200}),
    "malformed": (10, {400, 413}),
    "30,000 tokens": (1, {200, 400}),
}
FULL = {429, 503}
# Without parity, which canned answers can't show, the demo's policy refuses what it would corrupt.
NO_PARITY = {403}
GAUGES = ("requests_in_flight", "queue_length", "judge_queue_length", "held_bytes", "replica_in_flight")
LONG_TOKENS = 30_000
# So many times more often are long prompts asked during the warm-up: what the gateway remembers of texts is bounded,
# and memory grows until it is full.
LONG_IN_WARM_UP = 10
MALFORMED = (
    b'{"model": "demo-penalize", "messages": [',
    b'{"model": "demo-penalize", "model": "demo", "messages": []}',
    b'\xff\xfe{"model": "demo"}',
    b'{"model": "demo-penalize", "prompt_embeds": "AAAA", "prompt": "x"}',
    b"[" * 5000,
    b'{"model": "demo-penalize", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b"",
)


class Traffic:
    """What clients do; counts by kind and status."""

    def __init__(self, base: str, rate: float, clients: int, seed: int, *, parity: bool) -> None:
        """parity: whether what answers takes embeddings."""
        self._base, self._clients, self._pause_s = base, clients, clients / rate
        self._parity = parity
        self._draw = random.Random(seed)
        self._flagged = [fact.question for fact in tofu.forget_facts()]
        self._others = list(rows.background())
        self._others += [fact.question for fact in tofu.real_world_facts()]
        self._long_now = asyncio.Lock()
        self.counts: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    async def run(self, warm: float, until: float) -> None:
        """Many clients, each with connections of its own that it keeps for a while, until a time of the clock.

        warm: when the warm-up is over.
        """
        self._warm = warm
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._client(until))

    async def _client(self, until: float) -> None:
        while time.monotonic() < until:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as http:
                for _ in range(self._draw.randrange(1, 50)):
                    if time.monotonic() >= until:
                        return
                    await asyncio.sleep(self._draw.expovariate(1 / self._pause_s))
                    (kind,) = self._draw.choices(list(KINDS), self._often())
                    if kind == "30,000 tokens" and self._long_now.locked():
                        kind = "not flagged"
                    status = await self._asked(http, kind)
                    self.counts[f"{kind}: {status or 'left'}"] += 1
                    if status not in self._explained(kind):
                        self.wrong[f"{kind}: {status}"] += 1

    def _explained(self, kind: str) -> set[int]:
        judged = kind not in ("not covered", "malformed")
        return KINDS[kind][1] | FULL | (NO_PARITY if judged and not self._parity else set())

    def _often(self) -> list[int]:
        often = {kind: times for kind, (times, _) in KINDS.items()}
        if time.monotonic() < self._warm:
            often["30,000 tokens"] *= LONG_IN_WARM_UP
        return list(often.values())

    async def _asked(self, http: aiohttp.ClientSession, kind: str) -> int | str:
        endpoint = self._draw.choice(list(PATHS))
        url = self._base + PATHS[endpoint]
        try:
            if kind == "malformed":
                headers = {"content-type": "application/json"}
                return await _read(http, url, data=self._draw.choice(MALFORMED), headers=headers)
            if kind == "30,000 tokens":
                async with self._long_now:
                    return await _read(http, url, json=self._body(endpoint, "demo-penalize", self._long()))
            model = "demo" if kind == "not covered" else self._draw.choice(["demo-corrupt", "demo-penalize"])
            asks = kind == "flagged" or (kind == "leaves" and self._draw.random() < 0.5)
            body = self._body(endpoint, model, self._draw.choice(self._flagged if asks else self._others))
            if kind == "leaves":
                # At any moment: while it is judged, before the first byte, in the midst of the answer.
                body |= {self._limit(endpoint): 400}
                async with asyncio.timeout(self._draw.choice([0.002, 0.02, 0.1, 0.3])):
                    return await _read(http, url, json=body)
            return await _read(http, url, json=body)
        except TimeoutError:
            return 0 if kind == "leaves" else "timeout"
        except aiohttp.ClientError as error:
            return type(error).__name__

    def _long(self) -> str:
        """About LONG_TOKENS tokens of ordinary prompts, never the same."""
        said: list[str] = []
        words = 0
        while words < LONG_TOKENS * 3 // 4:
            said.append(self._draw.choice(self._others))
            words += len(said[-1].split())
        return "\n".join(said)

    def _limit(self, endpoint: str) -> str:
        return "max_output_tokens" if endpoint == "responses" else "max_tokens"

    def _body(self, endpoint: str, model: str, text: str) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "temperature": 0.5, self._limit(endpoint): self._draw.randrange(4, 40)}
        if endpoint != "batch":
            body["stream"] = self._draw.random() < 0.5
        message = [{"role": "user", "content": text}]
        if endpoint == "completions":
            return {**body, "prompt": text}
        if endpoint == "responses":
            return {**body, "input": text}
        return {**body, "messages": [message, message] if endpoint == "batch" else message}


async def _read(http: aiohttp.ClientSession, url: str, **sent: Any) -> int:
    async with http.post(url, **sent) as got:
        async for _ in got.content.iter_any():
            pass
        return got.status


@dataclass
class Watcher:
    """Looks at one process from outside, and asks it for its own numbers."""

    pid: int
    admin: str
    http: aiohttp.ClientSession
    samples: list[dict[str, Any]] = field(default_factory=list)

    async def look(self) -> dict[str, Any]:
        async with self.http.get(f"{self.admin}/metrics", headers={"connection": "close"}) as got:
            told = _numbers(await got.text())
        proc = Path("/proc") / str(self.pid)
        kib = {
            name: int(size)
            for name, size in re.findall(r"^(\w+):\s+(\d+) kB", (proc / "smaps_rollup").read_text(), re.MULTILINE)
        }
        threads = re.search(r"^Threads:\s+(\d+)", (proc / "status").read_text(), re.MULTILINE)
        assert threads is not None
        user, system = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        return {
            "rss_mib": kib["Rss"] / 1024,
            "uss_mib": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024,
            "descriptors": len(os.listdir(proc / "fd")),
            "threads": int(threads[1]),
            "cpu_s": (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"),
            "lag_ms": told.get("loop_lag_seconds", 0.0) * 1e3,
            "connections": told.get("connections", 0.0),
            "audit_lost": told.get("audit_lost_total", 0.0),
            **{gauge: told.get(gauge, 0.0) for gauge in GAUGES},
        }

    async def at_rest(self, timeout_s: float) -> dict[str, Any]:
        """The look with the fewest descriptors, once nobody is served: health checks open one now and then."""
        looks: list[dict[str, Any]] = []
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            looks.append(await self.look())
            await asyncio.sleep(0.5)
        # Connections to vLLM are kept for 4 s: the later half is at rest, if ever.
        return min(looks[len(looks) // 2 :], key=lambda look: look["descriptors"])


def _numbers(text: str) -> dict[str, float]:
    """The gateway's metrics without their labels, summed."""
    found: Counter[str] = Counter()
    for name, value in re.findall(r"^lethe_(\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE):
        found[name] += float(value)
    return dict(found)


COLUMNS = {
    "minute": "{:6.1f}", "requests": "{:8d}", "wrong": "{:5d}", "rss_mib": "{:8.1f}", "uss_mib": "{:8.1f}",
    "descriptors": "{:11d}", "threads": "{:7d}", "connections": "{:11.0f}", "requests_in_flight": "{:18.0f}",
    "lag_ms": "{:8.1f}", "cpu_s": "{:8.1f}",
}  # fmt: skip


async def soak(args: argparse.Namespace, pid: int, base: str, admin: str, out: IO[str]) -> list[str]:
    """Drive and watch. What is wrong, in words."""
    async with aiohttp.ClientSession() as http:
        watcher = Watcher(pid, admin, http)
        before = await watcher.at_rest(8)
        traffic = Traffic(base, args.rate, args.clients, args.seed, parity=args.upstream != "canned")
        begun = time.monotonic()
        driving = asyncio.ensure_future(traffic.run(begun + args.warm_up * 60, begun + args.minutes * 60))
        print("  ".join(name.rjust(len(form.format(0))) for name, form in COLUMNS.items()), flush=True)
        next_row = 0.0
        while not driving.done():
            await asyncio.wait({driving}, timeout=args.every)
            sample = {
                "minute": (time.monotonic() - begun) / 60,
                "requests": traffic.counts.total(),
                "wrong": traffic.wrong.total(),
                **await watcher.look(),
            }
            watcher.samples.append(sample)
            out.write(json.dumps({**sample, "counts": traffic.counts}) + "\n")
            out.flush()
            if sample["minute"] >= next_row:
                print("  ".join(form.format(sample[name]) for name, form in COLUMNS.items()), flush=True)
                next_row += args.minutes / 30
        driving.result()
        after = await watcher.at_rest(20)
    for counted in sorted(traffic.counts.items()):
        print("{:<28}{:8d}".format(*counted))
    print(f"at rest before: {_short(before)}\nat rest after:  {_short(after)}")
    out.write(json.dumps({"before": before, "after": after, "counts": traffic.counts}) + "\n")
    return [*_growth(watcher.samples, args.warm_up), *_left(before, after), *(f"answered {k}" for k in traffic.wrong)]


def _short(look: dict[str, Any]) -> str:
    return ", ".join(f"{name} {look[name]:g}" for name in ("descriptors", "threads", "connections", *GAUGES))


def _growth(samples: list[dict[str, Any]], warm_up: float) -> list[str]:
    warm = [sample for sample in samples if sample["minute"] >= warm_up]
    part = max(1, len(warm) // 6)
    faults = []
    for name in ("uss_mib", "rss_mib"):
        ends = [[sample[name] for sample in some] for some in (warm[:part], warm[-part:])]
        first, last = (float(np.quantile(values, 0.25)) for values in ends)
        growth = last / first - 1
        print(
            f"{name} after {warm_up:g} minutes {first:.1f}, at the end {last:.1f}: {growth:+.2%} "
            f"(medians {statistics.median(ends[0]):.1f} and {statistics.median(ends[1]):.1f})"
        )
        if growth > MOST_GROWTH:
            faults.append(f"{name} grew by {growth:.1%}")
    lags = [sample["lag_ms"] for sample in warm]
    print(f"loop lag, ms: median {statistics.median(lags):.1f}, most {max(lags):.1f}")
    return faults


def _left(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = ("descriptors", "connections", *GAUGES)
    return [f"{name} was {before[name]:g}, is {after[name]:g}" for name in names if after[name] > before[name]]


@contextlib.contextmanager
def servers(upstream: str, folder: Path) -> Iterator[tuple[int, str, str]]:
    """The upstream, if it is ours to start, and the gateway: its process id, its base URL and its admin port's."""
    demo.fit_artifact()
    # Copies: somebody who fits the demo's artifact anew meanwhile would have the gateway load it.
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    shutil.copytree(demo.ARTIFACTS / demo.ARTIFACT, folder / "artifacts" / demo.ARTIFACT)
    port, own, admin = free_port(), free_port(), free_port()
    names = list(demo.WAYS.values())
    with contextlib.ExitStack() as stack:
        if upstream in ("vllm", "canned"):
            ours = canned.command(port, names) if upstream == "canned" else vllm_command(FOLDERS["full"], port, names)
            health = f"http://127.0.0.1:{port}/health"
            stack.enter_context(running(upstream, ours, health, folder / "upstream.log", env=VLLM_ENV))
            upstream = f"http://127.0.0.1:{port}"
        env = {
            **demo.gateway_env(own, port, demo.ROOT / "policies" / "demo", folder / "audit.jsonl"),
            "LETHE_UPSTREAM": upstream,
            "LETHE_ARTIFACTS": str(folder / "artifacts"),
            "LETHE_ADMIN_PORT": str(admin),
            # 30,000 tokens are to be judged to their end, also where others use the processor.
            "LETHE_JUDGE_TIMEOUT_S": "300",
            "LETHE_LOG_LEVEL": "warning",
        }
        base = f"http://127.0.0.1:{own}"
        gateway = stack.enter_context(running_gateway(folder / "gateway.log", env=env))
        yield gateway.pid, base, f"http://127.0.0.1:{admin}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the traffic goes on")
    parser.add_argument("--warm-up", type=float, help="minutes before memory counts (default: a third of all)")
    parser.add_argument("--upstream", default="vllm", help="vllm: the demo's, started here; canned; or a URL")
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second, about")
    parser.add_argument("--clients", type=int, default=8, help="clients at a time")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=demo.ROOT / "build" / "soak", help="folder of samples and logs")
    args = parser.parse_args()
    # A plain kill, too, leaves through the `finally` that stops the servers.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    args.warm_up = args.minutes / 3 if args.warm_up is None else args.warm_up
    args.out.mkdir(parents=True, exist_ok=True)
    with servers(args.upstream, args.out) as (pid, base, admin), (args.out / "samples.jsonl").open("w") as out:
        faults = asyncio.run(soak(args, pid, base, admin, out))
    print("\n".join(faults) or "nothing grew, nothing was left behind")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
