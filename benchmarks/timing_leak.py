"""How well does the time to the first byte tell flagged requests from others, with and without LETHE_DECISION_TIME_S?

    python -m benchmarks.timing_leak [--questions 100] [--decision-time 0.25] [--vllm]

The demo's policies `corrupt` and `penalize` in front of a fake model server that answers at once, so that only the
gateway's own time is measured; with --vllm in front of the real vLLM with the demo's model. Each question is asked
once in a gateway process, flagged and unflagged ones in turns, by one client at a time. The flagged ones are the
demo's forget questions; the unflagged ones are questions of the same form about authors that no fit has met.

AUC: how often a flagged request takes longer than an unflagged one; 0.5 is chance, at 1 it always does. In brackets
the 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from benchmarks.demo_servers import LOGS, POLICIES
from lethe.corruption.prompt.prompt_tokenizer import PromptTokenizer
from lethe.evaluation.demo import demo
from lethe.evaluation.demo.demo_model import FOLDERS
from lethe.evaluation.serving import VLLM_ENV, free_port, running, running_gateway, vllm_command
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.confidence import bootstrap_interval

WAYS = ("corrupt", "penalize")
PATH = "/v1/chat/completions"
EVENT = (
    b'data: {"id":"x","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
)
# An answer to the parity probe: the same for text and embeddings.
PROBE_ANSWER = {
    "usage": {"prompt_tokens": 1},
    "choices": [{"logprobs": {"content": [{"token": "a", "logprob": -0.5}]}}],
}


class FakeServer:
    """A model server that passes the parity probe and answers every other request at once, with a stream."""

    def __init__(self) -> None:
        self._tokenizer = PromptTokenizer(FOLDERS["full"])
        self._started = time.time()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Serve on a free port, which is given."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/{path:.*}", self._state)
        app.router.add_post("/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield port
        finally:
            await runner.cleanup()

    async def _state(self, request: web.Request) -> web.Response:
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": name} for name in demo.WAYS.values()]})
        return web.Response(text=f"process_start_time_seconds {self._started}\n")

    async def _answer(self, request: web.Request) -> web.Response:
        raw = await request.read()
        if b'"stream":true' in raw:
            return web.Response(body=EVENT + b"data: [DONE]\n\n", headers={"content-type": "text/event-stream"})
        body = json.loads(raw)
        if body.get("return_token_ids"):
            return web.json_response({"prompt_token_ids": self._tokenizer.chat_ids(body), "choices": []})
        return web.json_response(PROBE_ANSWER)


async def first_byte_ms(http: aiohttp.ClientSession, url: str, model: str, question: str, request_id: str) -> float:
    """Milliseconds from sending a streamed request to the first byte of its answer."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True, "max_tokens": 32}
    raw = json.dumps(body, separators=(",", ":")).encode()
    headers = {"content-type": "application/json", "x-request-id": request_id}
    started = time.perf_counter()
    async with http.post(url + PATH, data=raw, headers=headers) as response:
        await response.content.readany()
        seconds = time.perf_counter() - started
        await response.read()
        if response.status != 200:
            raise SystemExit(f"the gateway answered {response.status}")
    return seconds * 1e3


async def measure_gateway(
    port: int, questions: int, decision_time_s: float, folder: Path
) -> dict[str, dict[str, float]]:
    """Way → request id → milliseconds to the first byte, of a fresh gateway process.

    The ids say what kind of question it is: `way-flagged-3`, `way-other-3`.
    """
    gateway_port = free_port()
    url = f"http://127.0.0.1:{gateway_port}"
    audit = folder / "audit.jsonl"
    audit.unlink(missing_ok=True)
    env = demo.gateway_env(gateway_port, port, POLICIES, audit)
    env |= {"LETHE_DECISION_TIME_S": str(decision_time_s), "LETHE_LOG_LEVEL": "warning"}
    forget = [fact.question for fact in tofu.forget_facts()]
    other = [fact.question for fact in tofu.retain_facts()[1]]
    times: dict[str, dict[str, float]] = {}
    gateway = running_gateway(folder / "gateway.log", env=env)
    # Starting and stopping block, and the fake server must answer meanwhile. Ready: the parity probe has passed.
    await asyncio.to_thread(gateway.__enter__)
    try:
        async with aiohttp.ClientSession() as http:
            for number, way in enumerate(WAYS):
                times[way] = {}
                # Other questions for each way, since both have one artifact and judgements are cached. Rows of one
                # author stand together, so the questions are spread over all.
                kinds = {
                    "flagged": forget[number :: len(forget) // questions],
                    "other": other[number :: len(other) // questions],
                }
                for turn in range(questions):
                    for kind, texts in kinds.items():
                        name = f"{way}-{kind}-{turn}"
                        times[way][name] = await first_byte_ms(http, url, demo.WAYS[way], texts[turn], name)
    finally:
        await asyncio.to_thread(gateway.__exit__, None, None, None)
    return times


def auc(flagged: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The share of pairs in which the flagged request took longer; equal times count half."""
    differences = flagged[:, None] - other[None, :]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())


def format_way(times: dict[str, float], is_flagged: dict[str, bool]) -> str:
    """One line: medians and quartiles of both kinds, and the AUC. What counts is the decision, not the question."""
    flagged = np.array([ms for name, ms in times.items() if is_flagged[name]])
    other = np.array([ms for name, ms in times.items() if not is_flagged[name]])
    cells = []
    for values in (flagged, other):
        low, middle, high = statistics.quantiles(values.tolist(), n=4)
        cells.append(f"{values.size:4} {middle:6.0f} ({low:.0f}-{high:.0f})".ljust(26))
    low, high = bootstrap_interval([flagged, other], auc, seed=0)
    return f"{cells[0]}{cells[1]}{auc(flagged, other):.2f} ({low:.2f}-{high:.2f})"


async def measure(port: int, questions: int, decision_time_s: float, folder: Path) -> None:
    """Print one line for each padding and way. port: of the model server."""
    print(f"{'':<26}{'flagged: n, ms':<26}{'others: n, ms':<26}AUC")
    for seconds in (0.0, decision_time_s):
        times = await measure_gateway(port, questions, seconds, folder)
        records = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
        actions = {record["request_id"]: record["action"] for record in records if "action" in record}
        for way, measured in times.items():
            if not {actions[name] for name in measured} <= {"pass", way}:
                raise SystemExit(f"{way}: the gateway did something else")
            line = format_way(measured, {name: actions[name] != "pass" for name in measured})
            print(f"{way + f', {seconds:g} s':<26}{line}", flush=True)


async def measure_with_fake(questions: int, decision_time_s: float, folder: Path) -> None:
    async with FakeServer().running() as port:
        await measure(port, questions, decision_time_s, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--questions",
        type=int,
        default=100,
        choices=range(2, 201),
        metavar="N",
        help="questions of each kind, at most 200",
    )
    parser.add_argument("--decision-time", type=float, default=0.25, help="LETHE_DECISION_TIME_S of the second run")
    parser.add_argument("--vllm", action="store_true", help="the real vLLM in place of the fake server")
    args = parser.parse_args()
    folder = LOGS / "timing_leak"
    folder.mkdir(parents=True, exist_ok=True)
    demo.prepare_artifact()
    print(f"{platform.processor() or platform.machine()}, {args.questions} questions of each kind")
    if not args.vllm:
        asyncio.run(measure_with_fake(args.questions, args.decision_time, folder))
        return
    port = free_port()
    command = vllm_command(FOLDERS["full"], port, list(demo.WAYS.values()))
    with running("vLLM", command, f"http://127.0.0.1:{port}/health", folder / "vllm.log", env=VLLM_ENV):
        asyncio.run(measure(port, args.questions, args.decision_time, folder))


if __name__ == "__main__":
    main()
