"""What the gateway itself takes: time until it is ready, memory with the sentence encoder; what a second worker brings.

The policy refuses what the demo's artifact flags, so the encoder is loaded as for any policy. Start is measured with
CPU time beside wall time, for on a busy machine only the former says something.

Workers are asked with ordinary prompts, each of them once, so that all are judged. They have two cores: with four or
more, load generator and upstream get others; with fewer they share them, and what they took is said.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import fast_upstream, judging, load, peers
from benchmarks.load import Load
from benchmarks.measuring import Answer, Claim, Round, Series, alternating, cpu_s, memory_mib
from lethe.evaluation.demo import demo
from lethe.evaluation.demo.serving import StartError, clean_env, free_port, stop
from lethe.evaluation.unlearning import tofu
from lethe.server.process import supervisor

TITLE = "What the gateway takes: start, memory; a second worker"
POLICY = "name: bench\nartifact: {artifact}\naction: refuse\nmode: {mode}\nthreshold: {{miss_rate: 0.01}}\n"
PATIENCE_S = 60.0
CONNECTIONS = 32


def _guarded(folder: Path, *, workers: int = 1, cores: Collection[int] = ()) -> peers.Peer:
    """The gateway with a policy that needs the encoder; on some cores alone."""
    policies = folder / "policies"
    policies.mkdir(parents=True, exist_ok=True)
    # In shadow all are judged, and none refused.
    mode = "shadow" if cores else "enforce"
    (policies / "bench.yaml").write_text(POLICY.format(artifact=demo.ARTIFACT, mode=mode))
    several = {}
    if cores:
        # What is compared is workers: each judges one request at a time, in one thread.
        several = {"LETHE_WORKERS": str(workers), "LETHE_JUDGE_THREADS": "1", **dict.fromkeys(supervisor.THREADS, "1")}
    env = {"LETHE_POLICIES": str(policies), "LETHE_ARTIFACTS": str(demo.ARTIFACTS), **several}
    return peers.lethe(env=env, name=f"lethe, guarding, {workers}", cores=cores)


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


def _prompts() -> list[str]:
    """Ordinary prompts in a fixed, mixed order, none of them twice."""
    # Word for word, retained questions are let pass unread.
    found = [*judging.benign(), *(f"And {fact.question}" for facts in tofu.retain_facts() for fact in facts)]
    found = list(dict.fromkeys(found))
    random.Random(0).shuffle(found)
    return found


def _throughput(generator: Load, gateway: peers.Running, upstream: int, batches: Iterator[Sequence[bytes]]) -> Round:
    """A batch of requests, each asked once; what gateway, generator and upstream (a process) took of the cores."""

    def once() -> Mapping[str, tuple[float, str]]:
        batch = next(batches)
        taken = {"gateway": gateway.pid, "generator": generator.pid, "upstream": upstream}
        before, busy_s = {name: cpu_s(pid) for name, pid in taken.items()}, _busy_s()
        got = generator.run(gateway.port, batch, requests=len(batch), connections=CONNECTIONS)
        used = {name: cpu_s(pid) - before[name] for name, pid in taken.items()}
        others_s = max(0.0, _busy_s() - busy_s - sum(used.values()))
        if got["failed"]:
            raise RuntimeError(f"{got['failed']} requests failed; the last answer: {got['last'][:300]!r}")
        return {
            "throughput": (len(batch) / got["seconds"], "requests/s"),
            **{f"CPU of the {name}": (1e6 * value / len(batch), "µs a request") for name, value in used.items()},
            **{f"{name}, cores": (value / got["seconds"], "cores") for name, value in used.items()},
            "others, cores": (others_s / got["seconds"], "cores"),
        }

    return once


def _busy_s() -> float:
    """Seconds that all cores have been at work since the machine was started; to a hundredth."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _workers(folder: Path, rounds: int, largest: int) -> Answer:
    """One worker and two on two cores, in turns."""
    there = sorted(os.sched_getaffinity(0))
    cores, apart = there[:2], there[2:] if len(there) >= 4 else there[:2]
    asked = [
        load.post(
            "/v1/chat/completions", {"model": fast_upstream.MODEL, "messages": [{"role": "user", "content": text}]}
        )
        for text in _prompts()
    ]
    size = min(largest, len(asked) // (rounds + 1))
    batches = [asked[size * i : size * (i + 1)] for i in range(rounds + 1)]
    with ExitStack() as stack:
        generator = stack.enter_context(load.generator())
        upstream, upstream_pid = stack.enter_context(peers.upstream(folder))
        for pid in (generator.pid, upstream_pid):
            os.sched_setaffinity(pid, apart)
        up = {
            count: stack.enter_context(peers.serving(_guarded(folder, workers=count, cores=cores), upstream, folder))
            for count in (1, 2)
        }
        found = alternating(
            {
                f"workers: {count}": _throughput(generator, one, upstream_pid, iter(batches))
                for count, one in up.items()
            },
            rounds,
        )
        memory = [
            Series(f"workers: {count}, memory that is theirs alone or their share (Pss)", "MB",
                   [1.048576 * memory_mib(one.pid)])
            for count, one in up.items()
        ]  # fmt: skip
    alone, both = found["workers: 1"], found["workers: 2"]
    return Answer(
        [*memory, *(series for group in found.values() for series in group.values())],
        [Claim.ratio("throughput of two workers against one, on two cores", both["throughput"], alone["throughput"],
                     at_least=1.6)],
        _accounts(alone, both, apart != cores),
        {"cores of the workers": cores, "cores of generator and upstream": apart, "requests a round": size},
    )  # fmt: skip


def _accounts(alone: Mapping[str, Series], both: Mapping[str, Series], is_apart: bool) -> list[str]:
    """Who took the two cores, and what that means for the ratio."""
    one, two = ({name: series.median for name, series in of.items()} for of in (alone, both))
    where = "on cores of their own" if is_apart else "of the same two"
    notes = [
        f"two workers used {two['gateway, cores']:.2f} cores, one alone {one['gateway, cores']:.2f}; load generator "
        f"and upstream took {two['generator, cores']:.2f} and {two['upstream, cores']:.2f} {where}"
    ]
    disturbed = max(one["others, cores"], two["others, cores"])
    if disturbed > 0.1:
        notes.append(
            f"others took {disturbed:.2f} cores meanwhile: two processes take more from them than one, so the ratio is "
            "too high"
        )
    return notes


def measure(quick: bool) -> Answer:
    demo.fit_artifact()
    rounds = 3 if quick else 7
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        upstream, _ = stack.enter_context(peers.upstream(folder))
        guarded = _guarded(folder)
        starts = alternating({"guarding": lambda: _start(guarded, upstream, folder)}, rounds)["guarding"]
        generator = stack.enter_context(load.generator())
        with peers.serving(guarded, upstream, folder) as one:
            _ask_different(one, generator, 200)
            memory = Series("guarding, resident memory", "MB", [1.048576 * memory_mib(one.pid, "Rss")])
        workers = _workers(folder / "workers", rounds, 400 if quick else 600)
    return Answer(
        [*starts.values(), memory, *workers.series],
        [
            Claim.level("start to ready", starts["start to ready"], at_most=3.0),
            Claim.level("resident memory with the default encoder", memory, at_most=350.0),
            *workers.claims,
        ],
        workers.notes,
        workers.facts,
    )
