"""How much throughput of a saturated vLLM does the gateway cost?

    make bench ONLY=end_to_end

vLLM with the demo's model gets ordinary questions that no policy flags, 32 at a time, directly and through the gateway
in turns. For both it prints the throughput in tokens/s, p50 of the response time, and the CPU time of each process per
request. Without an accelerator, model and gateway share the CPU cores; with a GPU the gateway costs less.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.demo_servers import demo_servers
from benchmarks.measuring import BenchmarkResult, Claim, Round, alternating, cpu_s
from lethe.evaluation.demo import demo

TITLE = "Throughput of vLLM with and without the gateway"
CONNECTIONS = 32
TOKENS = 64
QUESTIONS = Path(__file__).parent / "data" / "benign.jsonl"


def _model_round(url: str, pids: Mapping[str, int], model: str, questions: Sequence[str]) -> Round:
    def ask_all(some: Sequence[str]) -> tuple[int, list[float]]:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)
        tokens, seconds = 0, []
        for question in some:
            body = {
                "model": model, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True,
                "messages": [{"role": "user", "content": question}],
            }  # fmt: skip
            started = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                raise RuntimeError(f"{url} answered {response.status}: {str(answer)[:300]}")
            seconds.append(time.perf_counter() - started)
            tokens += answer["usage"]["completion_tokens"]
        connection.close()
        return tokens, seconds

    def once() -> Mapping[str, tuple[float, str]]:
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        started = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
            results = list(pool.map(ask_all, [questions[n::CONNECTIONS] for n in range(CONNECTIONS)]))
        seconds = time.perf_counter() - started
        durations = sorted(one for _, some in results for one in some)
        figures = {
            "throughput": (sum(tokens for tokens, _ in results) / seconds, "tokens/s"),
            "p50": (1e3 * durations[len(durations) // 2], "ms"),
        }
        for name, pid in pids.items():
            figures[f"CPU of {name}"] = (1e3 * (cpu_s(pid) - before[name]) / len(questions), "CPU ms per request")
        return figures

    return once


def measure(quick: bool) -> BenchmarkResult:
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["prompt"] for line in lines][: 2 * CONNECTIONS if quick else 6 * CONNECTIONS]
    model = demo.WAYS["penalize"]
    with (
        tempfile.TemporaryDirectory() as temporary,
        demo_servers(Path(temporary), settings={"LETHE_ADMIN_PORT": "0"}) as servers,
    ):
        measured = alternating(
            {
                "direct": _model_round(servers.vllm, {"vLLM": servers.vllm_pid}, model, questions),
                "guarded": _model_round(
                    servers.gateway, {"vLLM": servers.vllm_pid, "the gateway": servers.gateway_pid}, model, questions
                ),
            },
            3 if quick else 7,
        )
    direct, guarded = (measured[name]["throughput"] for name in ("direct", "guarded"))
    return BenchmarkResult(
        [series for group in measured.values() for series in group.values()],
        [Claim.ratio("throughput through the gateway compared with direct", guarded, direct, at_least=0.97)],
        facts={"connections": CONNECTIONS, "tokens of an answer": TOKENS, "questions": len(questions)},
    )
