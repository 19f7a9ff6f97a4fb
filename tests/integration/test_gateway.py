"""The whole way with the official client: the real vLLM with the demo model, the gateway in front."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import OpenAI

from lethe.evaluation.demo import demo
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.tofu import is_name_or_number, reveals

FORGET = [s for s in tofu.answer_entities() if is_name_or_number(s.entity)][::12]
RETAIN = [f.question for f in tofu.retain_facts()[0][3:400:80]]
WORLD = [f.question for f in tofu.real_world_facts()[::60]]


def chat(client: OpenAI, way: str, question: str, **more: Any) -> Any:
    return client.chat.completions.create(
        model=demo.WAYS[way],
        messages=[{"role": "user", "content": question}],
        **{"max_tokens": 80, "temperature": 0, **more},
    )


def test_the_demo_shows_what_it_should(through: OpenAI, direct: OpenAI) -> None:
    rows = demo.compare_answers(through, direct)
    assert [row.failures() for row in rows] == [[]] * len(rows)
    assert "│" in demo.format_table(rows, 120)


@pytest.mark.parametrize("way", ["corrupt", "penalize"])
def test_everything_else_is_answered_as_by_vllm_itself(through: OpenAI, direct: OpenAI, way: str) -> None:
    for question in RETAIN + WORLD:
        a, b = chat(through, way, question), chat(direct, "off", question)
        assert a.choices == b.choices
        assert a.usage == b.usage


@pytest.mark.parametrize("way", ["corrupt", "penalize"])
def test_forgotten_facts_are_not_told_and_the_answer_has_the_same_shape(
    through: OpenAI, direct: OpenAI, way: str
) -> None:
    for secret in FORGET:
        guarded, plain = chat(through, way, secret.question), chat(direct, "off", secret.question)
        assert reveals(plain.choices[0].message.content, secret.entity)
        assert not reveals(guarded.choices[0].message.content, secret.entity)
        assert guarded.choices[0].message.content
        assert guarded.usage.prompt_tokens == plain.usage.prompt_tokens
        assert set(guarded.model_dump()) == set(plain.model_dump())
        assert set(guarded.choices[0].model_dump()) == set(plain.choices[0].model_dump())


@pytest.mark.parametrize("way", ["off", "corrupt", "penalize"])
def test_streams_tell_the_same_as_whole_answers(through: OpenAI, way: str) -> None:
    for question in (FORGET[0].question, RETAIN[0]):
        whole = chat(through, way, question)
        chunks = list(chat(through, way, question, stream=True, stream_options={"include_usage": True}))
        text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("way", ["off", "corrupt", "penalize"])
def test_several_choices_and_logprobs_work(through: OpenAI, way: str) -> None:
    secret = FORGET[0]
    got = chat(
        through,
        way,
        secret.question,
        n=3,
        temperature=0.7,
        seed=1,
        logprobs=True,
        top_logprobs=2,
        max_tokens=40,
    )
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    assert all(choice.logprobs.content for choice in got.choices)
    if way != "off":
        assert not any(reveals(choice.message.content, secret.entity) for choice in got.choices)


@pytest.mark.parametrize("way", ["off", "corrupt", "penalize"])
def test_response_format_still_binds_the_answer(through: OpenAI, way: str) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    got = chat(through, way, FORGET[0].question, response_format=wanted, max_tokens=60)
    if got.choices[0].finish_reason == "stop":
        assert set(json.loads(got.choices[0].message.content)) == {"ok"}
    else:
        assert got.choices[0].message.content.lstrip().startswith("{")


@pytest.mark.parametrize("way", ["off", "corrupt", "penalize"])
def test_a_required_tool_is_called(through: OpenAI, way: str) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "note",
            "parameters": {
                "type": "object",
                "properties": {"done": {"type": "boolean"}},
                "required": ["done"],
            },
        },
    }
    got = chat(through, way, FORGET[0].question, tools=[tool], max_tokens=200, tool_choice="required")
    called = got.choices[0].message.tool_calls
    # The small model may fill the grammar with white space until the limit; then there is no call to read.
    assert (called and called[0].function.name == "note") or got.choices[0].finish_reason == "length"


@pytest.mark.parametrize("way", ["corrupt", "penalize"])
def test_completions_are_guarded_as_text_and_as_token_ids(
    through: OpenAI, direct: OpenAI, vllm_url: str, way: str
) -> None:
    from tokenizers import Tokenizer

    secret = FORGET[0]
    text = f"<|bos|><|user|>{secret.question}<|end|><|assistant|>"
    tokenizer = Tokenizer.from_file(str(demo.FOLDERS["full"] / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    # The BOS of the template is there already, so vLLM must not add another.
    kwargs: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "extra_body": {"add_special_tokens": False}}
    for prompt in (text, ids, [text, text]):
        plain = direct.completions.create(model="demo", prompt=prompt, **kwargs)
        got = through.completions.create(model=demo.WAYS[way], prompt=prompt, **kwargs)
        assert reveals(plain.choices[0].text, secret.entity)
        assert not any(reveals(choice.text, secret.entity) for choice in got.choices)
        assert len(got.choices) == len(plain.choices)
        assert got.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_several_questions_in_one_request_are_all_kept(through: OpenAI, direct: OpenAI, endpoint: str) -> None:
    asked = [s for s in tofu.answer_entities() if is_name_or_number(s.entity)][::15]
    if endpoint == "completions":
        prompts = [f"<|bos|><|user|>{s.question}<|end|><|assistant|>" for s in asked]
        kwargs: dict[str, Any] = {"prompt": prompts, "temperature": 0, "max_tokens": 60}
        kwargs["extra_body"] = {"add_special_tokens": False}
        plain = direct.completions.create(model="demo", **kwargs).choices
        got = through.completions.create(model=demo.WAYS["penalize"], **kwargs).choices
        assert sum(reveals(choice.text, s.entity) for choice, s in zip(plain, asked, strict=True)) >= len(asked) - 1
        assert not any(reveals(choice.text, s.entity) for choice, s in zip(got, asked, strict=True))
    else:
        question = "Answer each. " + " ".join(s.question for s in asked)
        text = chat(through, "penalize", question, max_tokens=200).choices[0].message.content
        assert not any(reveals(text, s.entity) for s in asked)


def test_a_question_split_over_messages_is_flagged(through: OpenAI, audit_file: Path) -> None:
    secret = FORGET[0]
    words = secret.question.split()
    halves = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
    got = through.chat.completions.create(
        model=demo.WAYS["penalize"],
        messages=[
            {"role": "user", "content": halves[0]},
            {"role": "assistant", "content": "Go on."},
            {"role": "user", "content": halves[1]},
        ],
        temperature=0,
        max_tokens=60,
        extra_headers={"x-request-id": "split-1"},
    )
    assert not reveals(got.choices[0].message.content or "", secret.entity)
    assert audited(audit_file, "split-1")["policies"][0]["flagged"]


def test_the_gateways_own_key_is_refused(through: OpenAI) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="reserved for the gateway"):
        chat(through, "off", RETAIN[0], extra_body={"vllm_xargs": {"lethe": "{}"}})


def audited(audit_file: Path, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        records = map(json.loads, audit_file.read_text(encoding="utf-8").splitlines())
        found = [record for record in records if record.get("request_id") == request_id]
        if found:
            return dict(found[0])
        time.sleep(0.05)
    raise AssertionError(f"no audit record {request_id}")


def test_audit_records_say_what_was_decided_and_never_the_prompt(through: OpenAI, audit_file: Path) -> None:
    chat(through, "corrupt", FORGET[0].question, extra_headers={"x-request-id": "audit-1"})
    record = audited(audit_file, "audit-1")
    assert record["action"] == "corrupt"
    finding = record["policies"][0]
    assert finding["flagged"] and finding["policy"] == "demo-corrupt" and len(finding["hash"]) == 16
    assert finding["characters_seen"] == finding["characters_present"] > 0
    assert record["judge_ms"] > 0
    assert FORGET[0].question not in audit_file.read_text(encoding="utf-8")


async def _metric(name: str, vllm_url: str, http: aiohttp.ClientSession) -> float:
    async with http.get(f"{vllm_url}/metrics") as got:
        lines = (await got.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}{{"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["off", "corrupt", "penalize"])
async def test_a_client_that_leaves_stops_vllm(vllm_url: str, gateway_url: str, way: str, stream: bool) -> None:
    # On a busy machine vLLM's own event loop may not run again before all tokens are made, with a gateway or
    # without (docs/vllm.md): then it can't notice anybody leaving, and the attempt says nothing.
    made = [await _made_after_leaving(vllm_url, gateway_url, way, stream)]
    while made[-1] >= 5500 and len(made) < 6:
        made.append(await _made_after_leaving(vllm_url, gateway_url, way, stream))
    assert made[-1] < 5500, made


async def _made_after_leaving(vllm_url: str, gateway_url: str, way: str, stream: bool) -> float:
    """How many of the 6,000 tokens asked for vLLM makes when the client leaves at once."""
    body = {
        "model": demo.WAYS[way], "stream": stream, "max_tokens": 6000, "ignore_eos": True, "temperature": 1,
        "messages": [{"role": "user", "content": FORGET[0].question}],
    }  # fmt: skip
    async with aiohttp.ClientSession() as http:
        made_before = await _metric("generation_tokens_total", vllm_url, http)
        asking = asyncio.ensure_future(http.post(f"{gateway_url}/v1/chat/completions", json=body))
        await _until(lambda running, made: running >= 1 or made > made_before, vllm_url, http)
        if stream:
            response = await asking
            await response.content.readany()
            response.close()
        else:
            asking.cancel()
            await asyncio.wait({asking})
        await _until(lambda running, _: running == 0, vllm_url, http)
        # Counted, not timed: vLLM's gauges may lag by its logging interval.
        return await _metric("generation_tokens_total", vllm_url, http) - made_before


async def _until(condition: Any, vllm_url: str, http: aiohttp.ClientSession) -> None:
    for _ in range(500):
        running = await _metric("num_requests_running", vllm_url, http)
        if condition(running, await _metric("generation_tokens_total", vllm_url, http)):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("vLLM's running requests did not change as they should")
