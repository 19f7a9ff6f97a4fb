"""What does forwarding a request cost? The gateway without policies, compared with other proxies.

    make bench ONLY=proxy

All proxies get the same requests over 32 connections, in turns, in front of the same upstream. Load generator and
upstream are processes of their own; "no proxy" is what they reach without a proxy. For each kind of request (whole,
streamed, streamed with 5 ms between events) it prints the CPU time of the proxy's process per request, the throughput
in requests/s, and p50 and p99 of the response time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import fast_upstream, load, peers
from benchmarks.load import LoadGenerator
from benchmarks.measuring import BenchmarkResult, Claim, Round, Series, alternating, cpu_s, memory_mib

TITLE = "Cost of forwarding a request"
CONNECTIONS = 32
PROMPT = "Explain in three sentences how a tide mill works, and what it was used for in coastal towns. " * 4
BODY: dict[str, Any] = {
    "model": fast_upstream.MODEL, "temperature": 0.7, "max_tokens": 256,
    "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": PROMPT}],
}  # fmt: skip
KINDS: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "streamed": {"stream": True},
    # An event every 5 ms: a proxy can't forward several events at once.
    "streamed slowly": {"stream": True, "stream_pause_ms": 5},
}
# Requests per round. Slow proxies get fewer (divided by SLOW), since a round would take minutes.
REQUESTS = {"whole": 3000, "streamed": 1500, "streamed slowly": 640}
SLOW = {"LiteLLM": 10, "Portkey": 4}


def _proxy_round(
    generator: LoadGenerator, port: int, pid: int, request: bytes, requests: int, expected: bytes
) -> Round:
    def once() -> Mapping[str, tuple[float, str]]:
        before = cpu_s(pid)
        reply = generator.run(port, request, requests=requests, connections=CONNECTIONS)
        used = cpu_s(pid) - before
        _check_responses(reply, expected)
        return {
            "CPU": (1e6 * used / requests, "µs a request"),
            "throughput": (requests / reply["seconds"], "requests/s"),
            "p50": (reply["p50_ms"], "ms"),
            "p99": (reply["p99_ms"], "ms"),
        }

    return once


def _check_responses(reply: Mapping[str, Any], expected: bytes) -> None:
    """Raise RuntimeError if a request failed or the text of the answer is missing; proxies may change the JSON."""
    if reply["failed"]:
        raise RuntimeError(f"{reply['failed']} requests failed; the last response: {reply['last'][:300]!r}")
    if expected not in reply["last"].encode("latin-1"):
        raise RuntimeError(f"the response lacks the answer's text: {reply['last'][:300]!r}")


def proxy_request(kind: str, headers: Mapping[str, str]) -> bytes:
    return load.openai_request("/v1/chat/completions", {**BODY, **KINDS[kind]}, headers)


def measure(quick: bool, others: Mapping[str, Any] = peers.OTHER_PROXIES, scale: float = 1.0) -> BenchmarkResult:
    """scale: factor for the number of requests. others: proxies besides the gateway and the bare relay."""
    rounds = 3 if quick else 9
    series: list[Series] = []
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        generator = stack.enter_context(load.load_generator())
        upstream, upstream_pid = stack.enter_context(peers.run_fast_upstream(folder))
        ours = [
            stack.enter_context(peers.run_proxy(proxy, upstream, folder))
            for proxy in (peers.lethe_proxy(), peers.relay_proxy())
        ]
        proxies, notes = peers.start_all(stack, others, upstream, folder)
        proxies = ours + proxies
        for kind in KINDS:
            expected = b"lazy dog" if kind == "whole" else b"word30"
            contestants: dict[str, Round] = {}
            for one in proxies:
                requests = max(
                    CONNECTIONS, int(scale * REQUESTS[kind] / SLOW.get(one.proxy.name, 1) / (3 if quick else 1))
                )
                request = proxy_request(kind, one.headers)
                contestants[one.proxy.name] = _proxy_round(generator, one.port, one.pid, request, requests, expected)
            direct = max(CONNECTIONS, int(scale * REQUESTS[kind]))
            contestants["no proxy"] = _proxy_round(
                generator, upstream, upstream_pid, proxy_request(kind, {}), direct, expected
            )
            by_name, left_out = _measure_working(contestants, rounds)
            notes += [f"{kind}: {name}: {why}" for name, why in left_out.items()]
            for measured in by_name.values():
                series += [Series(f"{kind}: {one.name}", one.unit, one.values) for one in measured.values()]
            claims += _claims(kind, by_name)
        facts = {
            "versions": {one.proxy.name: one.proxy.version for one in proxies},
            "connections": CONNECTIONS,
            "bytes": {
                "request": len(proxy_request("whole", {})),
                "whole": len(fast_upstream.WHOLE),
                "streamed": len(fast_upstream.STREAM),
            },
            "resident MiB (PSS)": {one.proxy.name: round(memory_mib(one.pid), 1) for one in proxies},
        }
    return BenchmarkResult(series, claims, notes, facts)


def _measure_working(contestants: dict[str, Round], rounds: int) -> tuple[dict[str, dict[str, Series]], dict[str, str]]:
    """Measure in turns. A proxy that fails a request is left out, with the reason; if the gateway fails, raise."""
    left_out: dict[str, str] = {}
    working: dict[str, Round] = {}
    for name, run_round in contestants.items():
        try:
            run_round()
            working[name] = run_round
        except RuntimeError as error:
            if name == "lethe":
                raise
            left_out[name] = str(error)
    return alternating(working, rounds), left_out


def _claims(kind: str, by_name: Mapping[str, Mapping[str, Series]]) -> list[Claim]:
    cpu = {name: measured["CPU"] for name, measured in by_name.items()}
    ours = cpu["lethe"]
    at_most = {"whole": 1.3, "streamed": 1.2, "streamed slowly": 1.2}[kind]
    claims = [Claim.ratio(f"{kind}: CPU compared with the bare relay", ours, cpu["bare relay"], at_most=at_most)]
    if kind == "streamed slowly":
        return claims
    if "LiteLLM" in cpu:
        claims.append(
            Claim.ratio(f"{kind}: CPU of LiteLLM compared with the gateway", cpu["LiteLLM"], ours, at_least=45)
        )
    if "vllm-router" in cpu and kind == "streamed":
        claims.append(Claim.ratio(f"{kind}: CPU compared with vllm-router", ours, cpu["vllm-router"], at_most=1.0))
    fastest = max((by_name[name]["throughput"] for name in ("lethe", "bare relay")), key=lambda series: series.median)
    text = (
        f"{kind}: the upstream is not the bottleneck: throughput without a proxy compared with the gateway or the relay"
    )
    claims.append(Claim.ratio(text, by_name["no proxy"]["throughput"], fastest, at_least=1.25))
    return claims
