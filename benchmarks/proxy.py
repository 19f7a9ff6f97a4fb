"""What passing on costs: CPU time of a request through the gateway without policies, beside other proxies.

The same requests to all, 32 connections, in turns. Every contestant stands in front of the same upstream. Load
generator and upstream are processes of their own; what they can do without a proxy is measured in the same run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import fast_upstream, load, peers
from benchmarks.load import Load
from benchmarks.measuring import Answer, Claim, Round, Series, alternating, cpu_s, memory_mib

TITLE = "What passing a request on costs"
CONNECTIONS = 32
PROMPT = "Explain in three sentences how a tide mill works, and what it was used for in coastal towns. " * 4
BODY: dict[str, Any] = {
    "model": fast_upstream.MODEL, "temperature": 0.7, "max_tokens": 256,
    "messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": PROMPT}],
}  # fmt: skip
KINDS: Mapping[str, Mapping[str, Any]] = {
    "whole": {},
    "streamed": {"stream": True},
    # A token every 5 ms: nothing can be passed on together with what follows it.
    "streamed slowly": {"stream": True, "stream_pause_ms": 5},
}
# A slow contestant's round would take minutes with as many requests as a fast one's.
REQUESTS = {"whole": 3000, "streamed": 1500, "streamed slowly": 640}
SLOW = {"LiteLLM": 10, "Portkey": 4}


def _round(generator: Load, port: int, pid: int, request: bytes, requests: int, expected: bytes) -> Round:
    def once() -> Mapping[str, tuple[float, str]]:
        before = cpu_s(pid)
        got = generator.run(port, request, requests=requests, connections=CONNECTIONS)
        used = cpu_s(pid) - before
        _check(got, expected)
        return {
            "CPU": (1e6 * used / requests, "µs a request"),
            "throughput": (requests / got["seconds"], "requests/s"),
            "p50": (got["p50_ms"], "ms"),
            "p99": (got["p99_ms"], "ms"),
        }

    return once


def _check(got: Mapping[str, Any], expected: bytes) -> None:
    if got["failed"]:
        raise RuntimeError(f"{got['failed']} requests failed; the last answer: {got['last'][:300]!r}")
    # Others write the answer anew; what the model said has to be in it all the same.
    if expected not in got["last"].encode("latin-1"):
        raise RuntimeError(f"an answer without its text: {got['last'][:300]!r}")


def _ask(kind: str, headers: Mapping[str, str]) -> bytes:
    return load.post("/v1/chat/completions", {**BODY, **KINDS[kind]}, headers)


def measure(quick: bool, others: Mapping[str, Any] = peers.OTHERS, scale: float = 1.0) -> Answer:
    """scale: of the number of requests; others: the peers beside the gateway and the bare relay."""
    rounds = 3 if quick else 9
    series: list[Series] = []
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        generator = stack.enter_context(load.generator())
        upstream, upstream_pid = stack.enter_context(peers.upstream(folder))
        own = [stack.enter_context(peers.serving(peer, upstream, folder)) for peer in (peers.lethe(), peers.relay())]
        up, notes = peers.start_all(stack, others, upstream, folder)
        up = own + up
        for kind in KINDS:
            expected = b"lazy dog" if kind == "whole" else b"word30"
            contestants: dict[str, Round] = {}
            for one in up:
                requests = max(
                    CONNECTIONS, int(scale * REQUESTS[kind] / SLOW.get(one.peer.name, 1) / (3 if quick else 1))
                )
                request = _ask(kind, one.headers)
                contestants[one.peer.name] = _round(generator, one.port, one.pid, request, requests, expected)
            direct = max(CONNECTIONS, int(scale * REQUESTS[kind]))
            contestants["no proxy"] = _round(generator, upstream, upstream_pid, _ask(kind, {}), direct, expected)
            found, left_out = _surviving(contestants, rounds)
            notes += [f"{kind}: {name}: {why}" for name, why in left_out.items()]
            for measured in found.values():
                series += [Series(f"{kind}: {one.name}", one.unit, one.values) for one in measured.values()]
            claims += _claims(kind, found)
        facts = {
            "versions": {one.peer.name: one.peer.version for one in up},
            "connections": CONNECTIONS,
            "bytes": {
                "request": len(_ask("whole", {})),
                "whole": len(fast_upstream.WHOLE),
                "streamed": len(fast_upstream.STREAM),
            },
            "resident MiB (PSS)": {one.peer.name: round(memory_mib(one.pid), 1) for one in up},
        }
    return Answer(series, claims, notes, facts)


def _surviving(contestants: dict[str, Round], rounds: int) -> tuple[dict[str, dict[str, Series]], dict[str, str]]:
    """Measured in turns; a peer that fails a request is left out, and why. The gateway's own failure is an error."""
    left_out: dict[str, str] = {}
    able: dict[str, Round] = {}
    for name, work in contestants.items():
        try:
            work()
            able[name] = work
        except RuntimeError as error:
            if name == "lethe":
                raise
            left_out[name] = str(error)
    return alternating(able, rounds), left_out


def _claims(kind: str, found: Mapping[str, Mapping[str, Series]]) -> list[Claim]:
    cpu = {name: measured["CPU"] for name, measured in found.items()}
    ours = cpu["lethe"]
    at_most = {"whole": 1.3, "streamed": 1.2, "streamed slowly": 1.2}[kind]
    claims = [Claim.ratio(f"{kind}: CPU against the bare relay", ours, cpu["bare relay"], at_most=at_most)]
    if kind == "streamed slowly":
        return claims
    if "LiteLLM" in cpu:
        claims.append(Claim.ratio(f"{kind}: LiteLLM's CPU against ours", cpu["LiteLLM"], ours, at_least=45))
    if "vllm-router" in cpu and kind == "streamed":
        claims.append(Claim.ratio(f"{kind}: CPU against vllm-router", ours, cpu["vllm-router"], at_most=1.0))
    faster = max((found[name]["throughput"] for name in ("lethe", "bare relay")), key=lambda series: series.median)
    text = f"{kind}: the upstream is not the limit: throughput without a proxy against ours or the relay's"
    claims.append(Claim.ratio(text, found["no proxy"]["throughput"], faster, at_least=1.25))
    return claims
