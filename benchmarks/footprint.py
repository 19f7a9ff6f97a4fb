"""How fast does the gateway start, how much memory does it need, and what does a second worker add?

    make bench ONLY=footprint

The policy refuses what the demo's artifact flags, so the encoder is loaded as for any policy. Printed are the wall and
CPU time from start to ready (on a busy machine only the CPU time is meaningful), resident memory with the encoder, and
for one and two workers the throughput, the CPU time per request and the used CPU cores of each process.

Workers get ordinary prompts, each once, so that all of them are judged. They run on two cores. With four or more cores,
load generator and upstream run on others; with fewer they share the two, and a note says what they used.
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
from benchmarks.load import LoadGenerator
from benchmarks.measuring import BenchmarkResult, Claim, Round, Series, alternating, cpu_s, memory_mib
from lethe.evaluation.demo import demo
from lethe.evaluation.serving import StartError, clean_env, free_port, stop_process
from lethe.evaluation.unlearning import tofu
from lethe.server.process import supervisor

TITLE = "Start time, memory, and the gain of a second worker"
POLICY = "name: bench\nartifact: {artifact}\naction: refuse\nmode: {mode}\nthreshold: {{miss_rate: 0.01}}\n"
# Seconds to wait for the gateway to become ready.
START_TIMEOUT_S = 60.0
CONNECTIONS = 32


def _guarded_gateway(folder: Path, *, workers: int = 1, cores: Collection[int] = ()) -> peers.Proxy:
    """The gateway with a policy that needs the encoder, restricted to `cores` if given."""
    policies = folder / "policies"
    policies.mkdir(parents=True, exist_ok=True)
    # In shadow mode all requests are judged and none is refused.
    mode = "shadow" if cores else "enforce"
    (policies / "bench.yaml").write_text(POLICY.format(artifact=demo.ARTIFACT, mode=mode))
    worker_settings = {}
    if cores:
        # Workers are compared: each judges one request at a time, in one thread.
        worker_settings = {
            "LETHE_WORKERS": str(workers),
            "LETHE_JUDGE_THREADS": "1",
            **dict.fromkeys(supervisor.THREADS, "1"),
        }
    env = {"LETHE_POLICIES": str(policies), "LETHE_ARTIFACTS": str(demo.ARTIFACTS), **worker_settings}
    return peers.lethe_proxy(env=env, name=f"lethe, guarding, {workers}", cores=cores)


def _time_start(proxy: peers.Proxy, upstream: int, folder: Path) -> Mapping[str, tuple[float, str]]:
    """Start the gateway, wait until it is ready, stop it; return wall and CPU time."""
    port = free_port()
    command = proxy.command(port, upstream, folder)
    started = time.perf_counter()
    process = subprocess.Popen(
        list(command), env=clean_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while not _is_ready(port):
            if process.poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                raise StartError(f"{proxy.name} did not become ready")
            time.sleep(0.01)
        return {
            "start to ready": (time.perf_counter() - started, "s"),
            "CPU until ready": (cpu_s(process.pid), "s"),
        }
    finally:
        stop_process(process)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _send_different_prompts(gateway: peers.RunningProxy, generator: LoadGenerator, questions: int) -> None:
    """Send questions that no cache knows, so that the encoder runs."""
    for fact in tofu.retain_facts()[0][:questions]:
        body = {"model": fast_upstream.MODEL, "messages": [{"role": "user", "content": fact.question}]}
        generator.run(gateway.port, load.openai_request("/v1/chat/completions", body), requests=1, connections=1)


def _distinct_prompts() -> list[str]:
    """Ordinary prompts in a fixed random order, without duplicates."""
    # "And": with their exact words, retain questions pass by the allowlist, unjudged.
    prompts = [
        *judging.ordinary_prompts(),
        *(f"And {fact.question}" for facts in tofu.retain_facts() for fact in facts),
    ]
    prompts = list(dict.fromkeys(prompts))
    random.Random(0).shuffle(prompts)
    return prompts


def _throughput(
    generator: LoadGenerator, gateway: peers.RunningProxy, upstream: int, batches: Iterator[Sequence[bytes]]
) -> Round:
    """Send a batch of requests, each once; measure the CPU time of gateway, generator and upstream (a process id)."""

    def once() -> Mapping[str, tuple[float, str]]:
        batch = next(batches)
        pids = {"gateway": gateway.pid, "generator": generator.pid, "upstream": upstream}
        before, busy_s = {name: cpu_s(pid) for name, pid in pids.items()}, _busy_s()
        reply = generator.run(gateway.port, batch, requests=len(batch), connections=CONNECTIONS)
        used = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
        other_s = max(0.0, _busy_s() - busy_s - sum(used.values()))
        if reply["failed"]:
            raise RuntimeError(f"{reply['failed']} requests failed; the last response: {reply['last'][:300]!r}")
        return {
            "throughput": (len(batch) / reply["seconds"], "requests/s"),
            **{f"CPU of the {name}": (1e6 * value / len(batch), "µs per request") for name, value in used.items()},
            **{f"{name}, cores": (value / reply["seconds"], "cores") for name, value in used.items()},
            "other processes, cores": (other_s / reply["seconds"], "cores"),
        }

    return once


def _busy_s() -> float:
    """Return the CPU seconds that all cores have worked since the machine was started, exact to 0.01 s."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _measure_workers(folder: Path, rounds: int, largest: int) -> BenchmarkResult:
    """Measure one and two workers on two cores, in turns."""
    available = sorted(os.sched_getaffinity(0))
    cores = available[:2]
    load_cores = available[2:] if len(available) >= 4 else cores
    requests = [
        load.openai_request(
            "/v1/chat/completions", {"model": fast_upstream.MODEL, "messages": [{"role": "user", "content": text}]}
        )
        for text in _distinct_prompts()
    ]
    size = min(largest, len(requests) // (rounds + 1))
    batches = [requests[size * i : size * (i + 1)] for i in range(rounds + 1)]
    with ExitStack() as stack:
        generator = stack.enter_context(load.load_generator())
        upstream, upstream_pid = stack.enter_context(peers.run_fast_upstream(folder))
        for pid in (generator.pid, upstream_pid):
            os.sched_setaffinity(pid, load_cores)
        gateways = {
            count: stack.enter_context(
                peers.run_proxy(_guarded_gateway(folder, workers=count, cores=cores), upstream, folder)
            )
            for count in (1, 2)
        }
        measured = alternating(
            {
                f"workers: {count}": _throughput(generator, one, upstream_pid, iter(batches))
                for count, one in gateways.items()
            },
            rounds,
        )
        memory = [
            Series(f"workers: {count}, memory (Pss)", "MB",
                   [1.048576 * memory_mib(one.pid)])
            for count, one in gateways.items()
        ]  # fmt: skip
    one_worker, two_workers = measured["workers: 1"], measured["workers: 2"]
    return BenchmarkResult(
        [*memory, *(series for group in measured.values() for series in group.values())],
        [Claim.ratio("throughput of two workers compared with one, on two cores", two_workers["throughput"],
                     one_worker["throughput"],
                     at_least=1.6)],
        _describe_cores(one_worker, two_workers, load_cores != cores),
        {"cores of the workers": cores, "cores of generator and upstream": load_cores, "requests per round": size},
    )  # fmt: skip


def _describe_cores(
    one_worker: Mapping[str, Series], two_workers: Mapping[str, Series], has_own_cores: bool
) -> list[str]:
    """Notes on the cores that each process used, and on their effect on the ratio."""
    one, two = ({name: series.median for name, series in of.items()} for of in (one_worker, two_workers))
    where = "on other cores" if has_own_cores else "on the same two cores"
    notes = [
        f"two workers used {two['gateway, cores']:.2f} cores, one worker {one['gateway, cores']:.2f}; load generator "
        f"and upstream used {two['generator, cores']:.2f} and {two['upstream, cores']:.2f} {where}"
    ]
    disturbance = max(one["other processes, cores"], two["other processes, cores"])
    if disturbance > 0.1:
        notes.append(
            f"other processes used {disturbance:.2f} cores meanwhile; two workers get more of the CPU than one, so the "
            "ratio is too high"
        )
    return notes


def measure(quick: bool) -> BenchmarkResult:
    demo.prepare_artifact()
    rounds = 3 if quick else 7
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        upstream, _ = stack.enter_context(peers.run_fast_upstream(folder))
        guarded = _guarded_gateway(folder)
        starts = alternating({"guarding": lambda: _time_start(guarded, upstream, folder)}, rounds)["guarding"]
        generator = stack.enter_context(load.load_generator())
        with peers.run_proxy(guarded, upstream, folder) as gateway:
            _send_different_prompts(gateway, generator, 200)
            memory = Series("guarding, resident memory", "MB", [1.048576 * memory_mib(gateway.pid, "Rss")])
        workers = _measure_workers(folder / "workers", rounds, 400 if quick else 600)
    return BenchmarkResult(
        [*starts.values(), memory, *workers.series],
        [
            Claim.level("start to ready", starts["start to ready"], at_most=3.0),
            Claim.level("resident memory with the default encoder", memory, at_most=350.0),
            *workers.claims,
        ],
        workers.notes,
        workers.facts,
    )
