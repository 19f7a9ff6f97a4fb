"""What the gateway itself takes: time until it is ready, memory with the sentence encoder, and what a second one adds.

The policy refuses what the demo's artifact flags, so the encoder is loaded as for any policy. Start is measured with
CPU time beside wall time, for on a busy machine only the former says something.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks import fast_upstream, load, peers, proxy
from benchmarks.load import Load
from benchmarks.measuring import Answer, Claim, Round, Series, alternating, cpu_s, memory_mib
from evaluation import demo, tofu
from evaluation.serving import StartError, clean_env, free_port, stop

TITLE = "What the gateway takes: start, memory, a second one"
POLICY = "name: bench\nartifact: {artifact}\naction: refuse\nthreshold: {{miss_rate: 0.01}}\n"
PATIENCE_S = 60.0


def _guarded(folder: Path) -> peers.Peer:
    """The gateway with a policy that needs the encoder."""
    policies = folder / "policies"
    policies.mkdir(exist_ok=True)
    (policies / "bench.yaml").write_text(POLICY.format(artifact=demo.ARTIFACT))
    env = {"LETHE_POLICIES": str(policies), "LETHE_ARTIFACTS": str(demo.ARTIFACTS)}
    return peers.lethe(env=env, name="lethe, guarding")


def _start(peer: peers.Peer, upstream: int, folder: Path) -> Mapping[str, tuple[float, str]]:
    """Start it, wait until it says that it is ready, stop it."""
    port = free_port()
    command = peer.command(port, upstream, folder)
    begun = time.perf_counter()
    process = subprocess.Popen(
        list(command), env=clean_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.perf_counter() - begun > PATIENCE_S:
                raise StartError(f"{peer.name} did not become ready")
            time.sleep(0.01)
        return {
            "start to ready": (time.perf_counter() - begun, "s"),
            "CPU until ready": (cpu_s(process.pid), "s"),
        }
    finally:
        stop(process)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _ask_different(one: peers.Running, generator: Load, questions: int) -> None:
    """Questions that nothing is remembered of, so that the encoder works."""
    for fact in tofu.retain_facts()[0][:questions]:
        body = {"model": fast_upstream.MODEL, "messages": [{"role": "user", "content": fact.question}]}
        generator.run(one.port, load.post("/v1/chat/completions", body), requests=1, connections=1)


def _throughput(generators: list[Load], gateways: list[peers.Running], requests: int) -> Round:
    """Each generator asks its own gateway, at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    def once() -> Mapping[str, tuple[float, str]]:
        before = sum(cpu_s(one.pid) for one in gateways)
        begun = time.perf_counter()
        with ThreadPoolExecutor(len(gateways)) as pool:
            asked = [
                pool.submit(
                    generator.run, one.port, proxy._ask("whole", {}), requests=requests // len(gateways), connections=16
                )
                for generator, one in zip(generators, gateways, strict=False)
            ]
            failed = sum(one.result()["failed"] for one in asked)
        seconds = time.perf_counter() - begun
        if failed:
            raise RuntimeError(f"{failed} requests failed")
        used = sum(cpu_s(one.pid) for one in gateways) - before
        return {"throughput": (requests / seconds, "requests/s"), "cores in use": (used / seconds, "cores")}

    return once


def measure(quick: bool) -> Answer:
    demo.fit_artifact()
    rounds = 3 if quick else 7
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        upstream, _ = stack.enter_context(peers.upstream(folder))
        guarded = _guarded(folder)
        starts = alternating({"guarding": lambda: _start(guarded, upstream, folder)}, rounds)["guarding"]
        generators = [stack.enter_context(load.generator()) for _ in range(2)]
        with peers.serving(guarded, upstream, folder) as one:
            _ask_different(one, generators[0], 200)
            memory = Series("guarding, resident memory", "MB", [1.048576 * memory_mib(one.pid, "Rss")])
        pair = [stack.enter_context(peers.serving(peers.lethe(name=f"lethe {n}"), upstream, folder)) for n in (1, 2)]
        requests = 2000 if quick else 6000
        found = alternating(
            {
                "one gateway": _throughput(generators, pair[:1], requests),
                "two gateways": _throughput(generators, pair, requests),
            },
            rounds,
        )
    one_alone, two = (found[name]["throughput"] for name in ("one gateway", "two gateways"))
    notes = []
    if len(os.sched_getaffinity(0)) < 4:
        notes.append(
            "load generator and upstream need a core or more of their own: with fewer than four cores the second "
            "gateway has none left, and its ratio says little"
        )
    return Answer(
        [*starts.values(), memory, *(series for group in found.values() for series in group.values())],
        [
            Claim.level("start to ready", starts["start to ready"], at_most=3.0),
            Claim.level("resident memory with the default encoder", memory, at_most=350.0),
            Claim.ratio("throughput of two gateways against one", two, one_alone, at_least=1.6),
        ],
        notes,
    )
