"""Whether the time of an answer tells that its request was flagged: the demo's model, whole way, real vLLM.

    python -m benchmarks.flagged_timing [--rounds 60]

For each endpoint and way, median and quartiles of the time to the first byte of a stream and of the time per event
after it, in milliseconds: of requests that are flagged and of others, asked in turns, and of vLLM itself.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import httpx

from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.demo.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command
from lethe.evaluation.unlearning import tofu

TOKENS = 32
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
WAYS = ("off", "corrupt", "penalize")


def body(endpoint: str, way: str, question: str) -> dict[str, object]:
    made: dict[str, object] = {"model": demo.WAYS[way], "stream": True, "temperature": 0}
    if endpoint == "responses":
        return {**made, "input": question, "max_output_tokens": TOKENS}
    return {**made, "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS}


def timed(http: httpx.Client, url: str, asked: dict[str, object]) -> tuple[float, float]:
    """Milliseconds to the first byte, and from there on per event."""
    begun = time.perf_counter()
    first, events = 0.0, 0
    with http.stream("POST", url, json=asked) as answer:
        for chunk in answer.iter_raw():
            first = first or time.perf_counter()
            events += chunk.count(b"data: ")
    if answer.status_code != 200:
        raise SystemExit(f"{url} answered {answer.status_code}")
    return (first - begun) * 1e3, (time.perf_counter() - first) * 1e3 / max(events, 1)


def row(name: str, times: list[tuple[float, float]]) -> str:
    cells = [f"{name:<34}"]
    for values in zip(*times, strict=True):
        low, middle, high = statistics.quantiles(values, n=4)
        cells.append(f"{middle:7.2f} ({low:.2f}-{high:.2f})".ljust(24))
    return "".join(cells)


def measure(vllm: str, gateway: str, rounds: int) -> None:
    forget = [fact.question for fact in tofu.secrets()][:rounds]
    other = [fact.question for fact in tofu.retain_facts()[0]][: len(forget)]
    print(f"{'':<34}{'first byte, ms':<24}{'then per event, ms':<24}")
    with httpx.Client(timeout=120) as http:
        for endpoint, path in PATHS.items():
            for base, ways in ((vllm, WAYS[:1]), (gateway, WAYS)):
                for way in ways:
                    kinds = {"asks for what is forgotten": forget, "asks for something else": other}
                    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
                    # In turns, so that whatever else the machine does meets both alike.
                    for pair in zip(*kinds.values(), strict=True):
                        for kind, question in zip(kinds, pair, strict=True):
                            times[kind].append(timed(http, base + path, body(endpoint, way, question)))
                    where = "vLLM" if base == vllm else f"gateway, {way}"
                    print(f"{endpoint}, {where}")
                    for kind, found in times.items():
                        print(row(f"  {kind}", found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="questions of each kind")
    rounds = parser.parse_args().rounds
    demo.fit_artifact()
    logs = demo.ROOT / "build" / "benchmarks"
    logs.mkdir(parents=True, exist_ok=True)
    port, own = free_port(), free_port()
    vllm, gateway = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{own}"
    env = demo.gateway_env(own, port, demo.ROOT / "policies" / "demo", Path(logs / "audit.jsonl"))
    print(f"{platform.processor() or platform.machine()}, {TOKENS} tokens at most, {rounds} questions of each kind")
    served = vllm_command(FOLDERS["full"], port, list(demo.WAYS.values()))
    with (
        running("vLLM", served, f"{vllm}/health", logs / "vllm.log", env=VLLM_ENV),
        running_gateway(logs / "gateway.log", env=env),
    ):
        measure(vllm, gateway, rounds)


if __name__ == "__main__":
    main()
