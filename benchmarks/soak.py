"""Does the gateway leak memory, connections or file descriptors under hours of mixed traffic?

    python -m benchmarks.soak [--minutes 30] [--upstream vllm|canned|URL] [--rate 8] [--clients 8]

Flagged and other requests, whole and streamed, on every guarded endpoint; client disconnects; malformed bodies; prompts
of 30,000 tokens (`soak_traffic.py`). A gateway process with the demo's policies serves them.

Columns: minute, requests so far, responses with an unexpected status, resident and private memory in MiB, descriptors,
threads, connections, requests in flight, event-loop lag in ms, CPU seconds. Every sample is also written as a JSON line
(`--out`). Exit status 1 if private or resident memory grew by more than 2 % after the warm-up (lower quartiles of the
first and the last sixth after it, since a long prompt needs 30 MiB while it is judged), if descriptors or gauges did
not return to their values before the traffic, or if a response had an unexpected status.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import aiohttp
import numpy as np

from benchmarks import canned
from benchmarks.measuring import sum_metrics
from benchmarks.soak_traffic import Traffic
from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command

# Growth of memory after the warm-up, at most.
MAX_GROWTH = 0.02
GAUGES = ("requests_in_flight", "queue_length", "judge_queue_length", "held_bytes", "replica_in_flight")


@dataclass
class ProcessMonitor:
    """Samples one process through /proc and through the gateway's own /metrics."""

    pid: int
    admin: str
    http: aiohttp.ClientSession
    samples: list[dict[str, Any]] = field(default_factory=list)

    async def sample(self) -> dict[str, Any]:
        """Return memory, descriptors, threads, CPU time and the gateway's gauges."""
        async with self.http.get(f"{self.admin}/metrics", headers={"connection": "close"}) as response:
            metrics = sum_metrics(await response.text(), "lethe_")
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
            "lag_ms": metrics.get("loop_lag_seconds", 0.0) * 1e3,
            "connections": metrics.get("connections", 0.0),
            "audit_lost": metrics.get("audit_lost_total", 0.0),
            **{gauge: metrics.get(gauge, 0.0) for gauge in GAUGES},
        }

    async def at_rest(self, timeout_s: float) -> dict[str, Any]:
        """Return the sample with the fewest descriptors while no request runs: health checks open some at times."""
        samples: list[dict[str, Any]] = []
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            samples.append(await self.sample())
            await asyncio.sleep(0.5)
        # Connections to vLLM stay open for 4 s, so only the later half counts.
        return min(samples[len(samples) // 2 :], key=lambda sample: sample["descriptors"])


COLUMNS = {
    "minute": "{:6.1f}", "requests": "{:8d}", "unexpected": "{:10d}", "rss_mib": "{:8.1f}", "uss_mib": "{:8.1f}",
    "descriptors": "{:11d}", "threads": "{:7d}", "connections": "{:11.0f}", "requests_in_flight": "{:18.0f}",
    "lag_ms": "{:8.1f}", "cpu_s": "{:8.1f}",
}  # fmt: skip


async def soak(args: argparse.Namespace, pid: int, base: str, admin: str, out: IO[str]) -> list[str]:
    """Run the traffic and sample the gateway; return a description of each failed check."""
    async with aiohttp.ClientSession() as http:
        monitor = ProcessMonitor(pid, admin, http)
        before = await monitor.at_rest(8)
        traffic = Traffic(base, args.rate, args.clients, args.seed, parity=args.upstream != "canned")
        started = time.monotonic()
        traffic_task = asyncio.ensure_future(traffic.run(started + args.warm_up * 60, started + args.minutes * 60))
        print("  ".join(name.rjust(len(form.format(0))) for name, form in COLUMNS.items()), flush=True)
        next_row = 0.0
        while not traffic_task.done():
            await asyncio.wait({traffic_task}, timeout=args.every)
            sample = {
                "minute": (time.monotonic() - started) / 60,
                "requests": traffic.counts.total(),
                "unexpected": traffic.unexpected.total(),
                **await monitor.sample(),
            }
            monitor.samples.append(sample)
            out.write(json.dumps({**sample, "counts": traffic.counts}) + "\n")
            out.flush()
            if sample["minute"] >= next_row:
                print("  ".join(form.format(sample[name]) for name, form in COLUMNS.items()), flush=True)
                next_row += args.minutes / 30
        traffic_task.result()
        after = await monitor.at_rest(20)
    for counted in sorted(traffic.counts.items()):
        print("{:<28}{:8d}".format(*counted))
    print(f"at rest before: {_format_sample(before)}\nat rest after:  {_format_sample(after)}")
    out.write(json.dumps({"before": before, "after": after, "counts": traffic.counts}) + "\n")
    return [
        *_check_growth(monitor.samples, args.warm_up),
        *_check_rest(before, after),
        *(f"unexpected status: {k}" for k in traffic.unexpected),
    ]


def _format_sample(sample: dict[str, Any]) -> str:
    return ", ".join(f"{name} {sample[name]:g}" for name in ("descriptors", "threads", "connections", *GAUGES))


def _check_growth(samples: list[dict[str, Any]], warm_up: float) -> list[str]:
    """Print the growth of memory after the warm-up; return what grew too much."""
    warm = [sample for sample in samples if sample["minute"] >= warm_up]
    part = max(1, len(warm) // 6)
    failures = []
    for name in ("uss_mib", "rss_mib"):
        ends = [[sample[name] for sample in some] for some in (warm[:part], warm[-part:])]
        first, last = (float(np.quantile(values, 0.25)) for values in ends)
        growth = last / first - 1
        print(
            f"{name} after {warm_up:g} minutes {first:.1f}, at the end {last:.1f}: {growth:+.2%} "
            f"(medians {statistics.median(ends[0]):.1f} and {statistics.median(ends[1]):.1f})"
        )
        if growth > MAX_GROWTH:
            failures.append(f"{name} grew by {growth:.1%}")
    lags = [sample["lag_ms"] for sample in warm]
    print(f"event-loop lag, ms: median {statistics.median(lags):.1f}, maximum {max(lags):.1f}")
    return failures


def _check_rest(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the descriptors, connections and gauges that are higher after the traffic than before."""
    names = ("descriptors", "connections", *GAUGES)
    return [f"{name} was {before[name]:g}, is {after[name]:g}" for name in names if after[name] > before[name]]


@contextlib.contextmanager
def run_servers(upstream: str, folder: Path) -> Iterator[tuple[int, str, str]]:
    """Start the upstream, unless it is a URL, and the gateway; yield its process id, its URL and its admin URL."""
    demo.prepare_artifact()
    # A copy: if the demo's artifact is fitted again meanwhile, the gateway must not reload it.
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    shutil.copytree(demo.ARTIFACTS / demo.ARTIFACT, folder / "artifacts" / demo.ARTIFACT)
    port, own, admin = free_port(), free_port(), free_port()
    names = list(demo.WAYS.values())
    with contextlib.ExitStack() as stack:
        if upstream in ("vllm", "canned"):
            command = (
                canned.command(port, names) if upstream == "canned" else vllm_command(FOLDERS["full"], port, names)
            )
            health = f"http://127.0.0.1:{port}/health"
            stack.enter_context(running(upstream, command, health, folder / "upstream.log", env=VLLM_ENV))
            upstream = f"http://127.0.0.1:{port}"
        env = {
            **demo.gateway_env(own, port, demo.ROOT / "policies" / "demo", folder / "audit.jsonl"),
            "LETHE_UPSTREAM": upstream,
            "LETHE_ARTIFACTS": str(folder / "artifacts"),
            "LETHE_ADMIN_PORT": str(admin),
            # 30,000 tokens must be judged to the end, also on a busy machine.
            "LETHE_JUDGE_TIMEOUT_S": "300",
            "LETHE_LOG_LEVEL": "warning",
        }
        base = f"http://127.0.0.1:{own}"
        gateway = stack.enter_context(running_gateway(folder / "gateway.log", env=env))
        yield gateway.pid, base, f"http://127.0.0.1:{admin}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="duration of the traffic")
    parser.add_argument("--warm-up", type=float, help="minutes before memory counts (default: a third of all)")
    parser.add_argument(
        "--upstream", default="vllm", help="vllm (started here with the demo's model), canned, or a URL"
    )
    parser.add_argument("--rate", type=float, default=8.0, help="requests per second, about")
    parser.add_argument("--clients", type=int, default=8, help="concurrent clients")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=demo.ROOT / "build" / "soak", help="folder of samples and logs")
    args = parser.parse_args()
    # SIGTERM also stops the servers, through the `finally` blocks.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    args.warm_up = args.minutes / 3 if args.warm_up is None else args.warm_up
    args.out.mkdir(parents=True, exist_ok=True)
    with run_servers(args.upstream, args.out) as (pid, base, admin), (args.out / "samples.jsonl").open("w") as out:
        failures = asyncio.run(soak(args, pid, base, admin, out))
    print("\n".join(failures) or "no leaks")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
