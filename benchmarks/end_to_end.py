"""What a guard costs where a model answers: the real vLLM at saturation, asked through the gateway and directly.

The demo's model, ordinary questions that no policy flags, 32 at a time, in turns. On a machine without an accelerator
model and gateway share the cores, so what the gateway uses the model lacks: with a GPU less is lost.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measuring import Answer, Claim, Round, alternating, cpu_s
from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.demo.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command

TITLE = "What a guard costs where a model answers"
CONNECTIONS = 32
TOKENS = 64
QUESTIONS = Path(__file__).parent / "data" / "benign.jsonl"


def _round(port: int, pids: Mapping[str, int], model: str, questions: Sequence[str]) -> Round:
    def ask(some: Sequence[str]) -> tuple[int, list[float]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        tokens, took = 0, []
        for question in some:
            body = {
                "model": model, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True,
                "messages": [{"role": "user", "content": question}],
            }  # fmt: skip
            begun = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            said = json.loads(answer.read())
            if answer.status != 200:
                raise RuntimeError(f"port {port} answered {answer.status}: {str(said)[:300]}")
            took.append(time.perf_counter() - begun)
            tokens += said["usage"]["completion_tokens"]
        connection.close()
        return tokens, took

    def once() -> Mapping[str, tuple[float, str]]:
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        begun = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
            done = list(pool.map(ask, [questions[n::CONNECTIONS] for n in range(CONNECTIONS)]))
        seconds = time.perf_counter() - begun
        took = sorted(one for _, some in done for one in some)
        figures = {
            "throughput": (sum(tokens for tokens, _ in done) / seconds, "tokens/s"),
            "p50": (1e3 * took[len(took) // 2], "ms"),
        }
        for name, pid in pids.items():
            figures[f"CPU of {name}"] = (1e3 * (cpu_s(pid) - before[name]) / len(questions), "CPU ms a request")
        return figures

    return once


def measure(quick: bool) -> Answer:
    demo.fit_artifact()
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["prompt"] for line in lines][: 2 * CONNECTIONS if quick else 6 * CONNECTIONS]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        port, own = free_port(), free_port()
        served = vllm_command(FOLDERS["full"], port, list(demo.WAYS.values()))
        vllm = stack.enter_context(
            running("vLLM", served, f"http://127.0.0.1:{port}/health", folder / "vllm.log", env=VLLM_ENV)
        )
        env = {**demo.gateway_env(own, port, demo.ROOT / "policies" / "demo", folder / "audit.jsonl"),
               "LETHE_ADMIN_PORT": "0"}  # fmt: skip
        gateway = stack.enter_context(running_gateway(folder / "gateway.log", env=env))
        model = demo.WAYS["penalize"]
        found = alternating(
            {
                "direct": _round(port, {"vLLM": vllm.pid}, model, questions),
                "guarded": _round(own, {"vLLM": vllm.pid, "the gateway": gateway.pid}, model, questions),
            },
            3 if quick else 7,
        )
    direct, guarded = (found[name]["throughput"] for name in ("direct", "guarded"))
    return Answer(
        [series for group in found.values() for series in group.values()],
        [Claim.ratio("throughput with the guard against direct", guarded, direct, at_least=0.97)],
        facts={"connections": CONNECTIONS, "tokens of an answer": TOKENS, "questions": len(questions)},
    )
