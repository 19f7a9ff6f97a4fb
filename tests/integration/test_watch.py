"""Answers of the real vLLM under watch, without any penalty: the secret doesn't get out of the gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from openai import OpenAI

from lethe.evaluation.demo import demo
from lethe.evaluation.serving import free_port, running_gateway
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.tofu import is_name_or_number, reveals
from tests.integration.conftest import LOGS

POLICY = """
name: watching
artifact: tofu-forget10
action: watch
models: [{model}]
threshold: {{miss_rate: 0.005}}
watch: {{on_hit: {on_hit}, replacement: "[removed]"}}
"""
STOP, REPLACE = demo.WAYS["off"], demo.WAYS["corrupt"]
SECRETS = [s for s in tofu.answer_entities() if is_name_or_number(s.entity)][::16]
RETAIN = [f.question for f in tofu.retain_facts()[0][3:400:130]]


@pytest.fixture(scope="module")
def watching_url(vllm_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway with two policies that only watch: one model's answers stop at a phrase, the other's go on."""
    demo.prepare_artifact()
    folder = tmp_path_factory.mktemp("policies")
    (folder / "stop.yaml").write_text(POLICY.format(model=STOP, on_hit="stop"))
    replacing = POLICY.format(model=REPLACE, on_hit="replace").replace("watching", "replacing")
    (folder / "replace.yaml").write_text(replacing)
    port = free_port()
    env = demo.gateway_env(port, int(vllm_url.rsplit(":", 1)[1]), folder, LOGS / "watch-audit.jsonl")
    (LOGS / "watch-audit.jsonl").unlink(missing_ok=True)
    with running_gateway(LOGS / "watch-gateway.log", env=env):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def client(watching_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{watching_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(client: OpenAI, question: str, model: str = STOP, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return client.chat.completions.create(
        model=model, messages=messages, **{"max_tokens": 80, "temperature": 0, **more}
    )


def streamed(client: OpenAI, question: str, **more: Any) -> tuple[dict[int, str], dict[int, str], list[Any]]:
    chunks = list(chat(client, question, stream=True, **more))
    said: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return said, reasons, chunks


def test_a_secret_ends_the_answer_streamed_and_whole(client: OpenAI, direct: OpenAI) -> None:
    for secret in SECRETS:
        assert reveals(chat(direct, secret.question).choices[0].message.content, secret.entity)
        whole = chat(client, secret.question, logprobs=True, top_logprobs=2).choices[0]
        assert whole.finish_reason == "content_filter" and whole.logprobs is None
        assert not reveals(whole.message.content, secret.entity)
        said, reasons, chunks = streamed(client, secret.question, stream_options={"include_usage": True})
        assert said[0] == whole.message.content and reasons == {0: "content_filter"}
        usage = chunks[-1].usage
        assert chunks[-1].choices == [] and usage.prompt_tokens > 0
        assert 0 < usage.completion_tokens < 80
        assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_secret_is_replaced_and_the_answer_goes_on(client: OpenAI) -> None:
    for secret in SECRETS:
        whole = chat(client, secret.question, REPLACE)
        assert whole.choices[0].finish_reason in ("stop", "length")
        assert "[removed]" in whole.choices[0].message.content
        assert not reveals(whole.choices[0].message.content, secret.entity)
        said, reasons, _ = streamed(client, secret.question, model=REPLACE)
        assert said[0] == whole.choices[0].message.content and reasons[0] in ("stop", "length")


def test_every_choice_of_several_is_watched(client: OpenAI) -> None:
    question = SECRETS[0].question
    said, reasons, _ = streamed(client, question, n=3, temperature=0.5, seed=1)
    assert set(reasons) == {0, 1, 2}
    assert not any(reveals(text, SECRETS[0].entity) for text in said.values())


def test_everything_else_is_answered_as_by_vllm_itself(client: OpenAI, direct: OpenAI) -> None:
    for question in RETAIN:
        assert chat(client, question).choices == chat(direct, question).choices


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["completions", "responses", "messages"])
def test_every_endpoint_is_watched(watching_url: str, path: str, stream: bool) -> None:
    secret = SECRETS[0]
    said = {
        "completions": {"prompt": f"<|bos|><|user|>{secret.question}<|end|><|assistant|>", "add_special_tokens": False},
        "responses": {"input": secret.question, "max_output_tokens": 80},
        "messages": {"messages": [{"role": "user", "content": secret.question}]},
    }[path]
    body = {"model": STOP, "temperature": 0, "stream": stream, "max_tokens": 80, **said}
    if path == "responses":
        del body["max_tokens"]
    got = httpx.post(f"{watching_url}/v1/{path}", json=body, timeout=120)
    assert got.status_code == 200
    answered = got.text
    if stream:
        events = [line[6:] for line in got.text.splitlines() if line.startswith("data: {")]
        answered = "".join(map(_delta, map(json.loads, events)))
    assert not reveals(answered if stream else _without_question(got.json()), secret.entity)
    ending = {"completions": "content_filter", "responses": "incomplete", "messages": "refusal"}[path]
    assert f'"{ending}"' in got.text


def _delta(event: dict[str, Any]) -> str:
    if "choices" in event:
        return "".join(choice["text"] for choice in event["choices"])
    delta = event.get("delta")
    return delta if isinstance(delta, str) else (delta or {}).get("text") or ""


def _without_question(answer: dict[str, Any]) -> str:
    return json.dumps(answer.get("choices") or answer.get("output") or answer["content"], ensure_ascii=False)


async def test_a_stream_that_is_cut_stops_vllm(watching_url: str, vllm_url: str) -> None:
    question = SECRETS[0].question
    body = {"model": STOP, "temperature": 0, "stream": True, "max_tokens": 900, "ignore_eos": True,
            "messages": [{"role": "user", "content": question}]}  # fmt: skip
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{watching_url}/v1/chat/completions", json=body) as got:
            assert (await got.read()).endswith(b"data: [DONE]\n\n")
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            async with session.get(f"{vllm_url}/metrics") as metrics:
                lines = (await metrics.text()).splitlines()
            if all(line.endswith(" 0.0") for line in lines if line.startswith("vllm:num_requests_running")):
                return
    raise AssertionError("vLLM goes on")


def test_hits_are_audited_without_their_text(client: OpenAI) -> None:
    chat(client, SECRETS[0].question)
    deadline, text = time.monotonic() + 5, ""
    while time.monotonic() < deadline and '"watch":{"watching":1}' not in text:
        text = Path(LOGS / "watch-audit.jsonl").read_text()
        time.sleep(0.05)
    assert '"watch":{"watching":1}' in text and SECRETS[0].entity not in text
