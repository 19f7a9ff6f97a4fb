"""Can a client tell from the response time whether its request was flagged?

    python -m benchmarks.flagged_timing [--rounds 60]

Streamed requests that are flagged and others that are not are sent in turns, through the gateway under each policy and
to vLLM directly, with the demo's model.

Columns, in milliseconds, median and quartiles: time to the first byte of the stream; then time per event.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from typing import Any

import httpx

from benchmarks.demo_servers import demo_servers
from benchmarks.endpoints import PATHS, endpoint_body
from lethe.evaluation.demo import demo
from lethe.evaluation.unlearning import tofu

TOKENS = 32
ENDPOINTS = ("chat", "responses", "messages")
WAYS = ("off", "corrupt", "penalize")


def stream_times(http: httpx.Client, url: str, body: dict[str, Any]) -> tuple[float, float]:
    """Return the milliseconds to the first byte, and then per event."""
    started = time.perf_counter()
    first, events = 0.0, 0
    with http.stream("POST", url, json=body) as response:
        for chunk in response.iter_raw():
            first = first or time.perf_counter()
            events += chunk.count(b"data: ")
    if response.status_code != 200:
        raise SystemExit(f"{url} answered {response.status_code}")
    return (first - started) * 1e3, (time.perf_counter() - first) * 1e3 / max(events, 1)


def format_times(name: str, times: list[tuple[float, float]]) -> str:
    cells = [f"{name:<34}"]
    for values in zip(*times, strict=True):
        low, middle, high = statistics.quantiles(values, n=4)
        cells.append(f"{middle:7.2f} ({low:.2f}-{high:.2f})".ljust(24))
    return "".join(cells)


def measure_times(vllm: str, gateway: str, rounds: int) -> None:
    forget = [fact.question for fact in tofu.answer_entities()][:rounds]
    other = [fact.question for fact in tofu.retain_facts()[0]][: len(forget)]
    print(f"{'':<34}{'to first byte, ms':<24}{'then per event, ms':<24}")
    with httpx.Client(timeout=120) as http:
        for endpoint in ENDPOINTS:
            for base, ways in ((vllm, WAYS[:1]), (gateway, WAYS)):
                for way in ways:
                    kinds = {"flagged": forget, "not flagged": other}
                    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
                    # In turns, so that other load on the machine affects both alike.
                    for pair in zip(*kinds.values(), strict=True):
                        for kind, question in zip(kinds, pair, strict=True):
                            body = endpoint_body(endpoint, demo.WAYS[way], question, TOKENS, stream=True, temperature=0)
                            times[kind].append(stream_times(http, base + PATHS[endpoint], body))
                    where = "vLLM" if base == vllm else f"gateway, {way}"
                    print(f"{endpoint}, {where}")
                    for kind, measured in times.items():
                        print(format_times(f"  {kind}", measured), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="questions of each kind")
    rounds = parser.parse_args().rounds
    print(f"{platform.processor() or platform.machine()}, at most {TOKENS} tokens, {rounds} questions of each kind")
    with demo_servers() as servers:
        measure_times(servers.vllm, servers.gateway, rounds)


if __name__ == "__main__":
    main()
