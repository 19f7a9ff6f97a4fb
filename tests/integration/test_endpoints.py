"""Every endpoint against the real vLLM: a flagged answer tells nothing and looks like any other; all else passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lethe.evaluation.demo import demo
from lethe.evaluation.unlearning import tofu
from lethe.evaluation.unlearning.tofu import is_name_or_number, reveals
from lethe.server import errors
from tests.integration.test_gateway import audited

SECRET = next(s for s in tofu.answer_entities() if is_name_or_number(s.entity))
RETAIN = tofu.retain_facts()[0][3].question
GUARDED = {
    "chat": "/v1/chat/completions",
    "batch": "/v1/chat/completions/batch",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
# The headers that the gateway adds.
IDS: dict[str, list[str]] = {
    "openai": ["x-request-id"], "responses": ["x-request-id"], "anthropic": ["request-id", "x-request-id"],
}  # fmt: skip
STREAMED = [endpoint for endpoint in GUARDED if endpoint != "batch"]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=120, headers={"content-type": "application/json"}) as client:
        yield client


def asking(endpoint: str, way: str, question: str, most: int = 40, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": question}]
    body: dict[str, Any] = {"model": demo.WAYS[way], "temperature": 0, **more}
    match endpoint:
        case "batch":
            return {**body, "max_tokens": most, "messages": [said, [{"role": "user", "content": RETAIN}]]}
        case "completions":
            prompt = f"<|bos|><|user|>{question}<|end|><|assistant|>"
            return {**body, "max_tokens": most, "prompt": prompt, "add_special_tokens": False}
        case "responses":
            return {**body, "max_output_tokens": most, "input": question}
    return {**body, "max_tokens": most, "messages": said}


def shape(value: Any) -> Any:
    """What a client can see of an answer without reading it: keys and kinds."""
    if isinstance(value, dict):
        # It is there when an answer reached its limit, as any may.
        return {key: "?" if key == "incomplete_details" else shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def events(got: httpx.Response) -> list[tuple[str, Any]]:
    """The events of a stream: name and data."""
    made = []
    for block in got.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            data = fields["data"]
            made.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return made


def prompt_tokens(usage: dict[str, Any]) -> int:
    return int(usage.get("prompt_tokens", usage.get("input_tokens")))


def usages(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("usage"), dict):
            yield value["usage"]
        for inner in value.values():
            yield from usages(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from usages(inner)


def said(value: Any) -> str:
    """The text of an answer or of a stream's events put together."""
    if isinstance(value, list):
        return "".join(said(data) for _, data in value if isinstance(data, dict) and "response" not in data)
    found = []
    for key, inner in value.items():
        if key in ("text", "content", "delta") and isinstance(inner, str):
            found.append(inner)
        elif isinstance(inner, dict):
            found.append(said(inner))
        elif isinstance(inner, list):
            found += [said(one) for one in inner if isinstance(one, dict)]
    return "".join(found)


# What is made anew for every answer.
FRESH = ("id", "created", "created_at", "model")


def settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: settled(inner) for key, inner in value.items() if key not in FRESH}
    return [settled(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("way", ["corrupt", "penalize"])
@pytest.mark.parametrize("endpoint", GUARDED)
def test_a_flagged_answer_tells_nothing_and_looks_like_any_other(
    endpoint: str, way: str, http: httpx.Client, vllm_url: str, gateway_url: str, audit_file: Path
) -> None:
    path, named = GUARDED[endpoint], f"endpoint-{endpoint}-{way}"
    plain = http.post(vllm_url + path, json=asking(endpoint, "off", SECRET.question))
    other = http.post(gateway_url + path, json=asking(endpoint, way, RETAIN))
    got = http.post(gateway_url + path, json=asking(endpoint, way, SECRET.question), headers={"x-request-id": named})
    assert (plain.status_code, other.status_code, got.status_code) == (200, 200, 200), got.text
    assert reveals(said(plain.json()), SECRET.entity)
    assert not reveals(said(got.json()), SECRET.entity) and said(got.json())
    assert shape(got.json()) == shape(plain.json()) == shape(other.json())
    assert sorted(got.headers) == sorted(other.headers)
    assert [prompt_tokens(u) for u in usages(got.json())] == [prompt_tokens(u) for u in usages(plain.json())]
    takes_embeddings = endpoint in ("chat", "batch", "completions")
    assert audited(audit_file, named)["action"] == (way if takes_embeddings else "penalize")
    if endpoint == "batch":
        # The other conversation of the batch is answered as ever.
        assert settled(got.json()["choices"][1]) == settled(plain.json()["choices"][1])


@pytest.mark.parametrize("way", ["corrupt", "penalize"])
@pytest.mark.parametrize("endpoint", STREAMED)
def test_a_flagged_stream_tells_nothing_and_looks_like_any_other(
    endpoint: str, way: str, http: httpx.Client, vllm_url: str, gateway_url: str
) -> None:
    path = GUARDED[endpoint]
    more: dict[str, Any] = {"stream": True}
    if endpoint in ("chat", "completions"):
        more["stream_options"] = {"include_usage": True}
    plain = http.post(vllm_url + path, json=asking(endpoint, "off", SECRET.question, **more))
    got = http.post(gateway_url + path, json=asking(endpoint, way, SECRET.question, **more))
    assert sorted(got.headers) == sorted([*plain.headers, *IDS[errors.dialect_of(path)]])
    # All end at the same token: the last event of an answer that reaches its limit holds text, another's doesn't.
    short = [
        http.post(url + path, json=asking(endpoint, which, SECRET.question, most=4, **more))
        for url, which in ((vllm_url, "off"), (gateway_url, way))
    ]
    kinds = [{(name, json.dumps(shape(data))) for name, data in events(answer)} for answer in short]
    assert kinds[0] == kinds[1]
    assert reveals(said(events(plain)), SECRET.entity)
    assert said(events(got)) and SECRET.entity not in got.text and not reveals(said(events(got)), SECRET.entity)
    counts = [[prompt_tokens(u) for u in usages([data for _, data in events(a)])][-1] for a in (plain, got)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", GUARDED)
def test_what_is_not_flagged_is_answered_as_by_vllm_itself(
    endpoint: str, stream: bool, http: httpx.Client, vllm_url: str, gateway_url: str
) -> None:
    if stream and endpoint not in STREAMED:
        pytest.skip("vLLM does not stream a batch")
    path = GUARDED[endpoint]
    plain = http.post(vllm_url + path, json=asking(endpoint, "penalize", RETAIN, stream=stream))
    got = http.post(gateway_url + path, json=asking(endpoint, "penalize", RETAIN, stream=stream))
    assert (plain.status_code, got.status_code) == (200, 200)
    if stream:
        # Chunks may hold one token or several.
        assert said(events(got)) == said(events(plain))
        assert {name for name, _ in events(got)} == {name for name, _ in events(plain)}
    else:
        assert settled(got.json()) == settled(plain.json())
    assert sorted(got.headers) == sorted([*plain.headers, *IDS[errors.dialect_of(path)]])


def test_tokens_are_counted_as_by_vllm_itself(http: httpx.Client, vllm_url: str, gateway_url: str) -> None:
    for way, question in (("penalize", SECRET.question), ("corrupt", SECRET.question), ("off", RETAIN)):
        body = {"model": demo.WAYS[way], "messages": [{"role": "user", "content": question}]}
        plain, got = (http.post(f"{url}/v1/messages/count_tokens", json=body) for url in (vllm_url, gateway_url))
        assert (got.status_code, got.content) == (plain.status_code, plain.content) and got.status_code == 200


RELAYED: list[tuple[str, dict[str, Any]]] = [
    ("/tokenize", {"prompt": SECRET.question}),
    ("/tokenize", {"messages": [{"role": "user", "content": SECRET.question}], "return_token_strs": True}),
    ("/detokenize", {"tokens": [71, 72, 73]}),
    # vLLM has these where it serves a model of that kind; of one that generates they are unknown.
    ("/v1/embeddings", {"input": "a"}),
    ("/v1/score", {"text_1": "a", "text_2": "b"}),
    ("/score", {"text_1": "a", "text_2": "b"}),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ("/v2/rerank", {"query": "a", "documents": ["b"]}),
    ("/rerank", {"query": "a", "documents": ["b"]}),
    ("/pooling", {"input": "a"}),
]


@pytest.mark.parametrize(("path", "body"), RELAYED)
def test_relayed_endpoints_answer_as_vllm_itself(
    path: str, body: dict[str, Any], http: httpx.Client, vllm_url: str, gateway_url: str
) -> None:
    sent = {**body, "model": demo.WAYS["penalize"]}
    plain, got = (http.post(url + path, json=sent) for url in (vllm_url, gateway_url))
    assert got.status_code == plain.status_code == (200 if path in ("/tokenize", "/detokenize") else 404)
    if plain.json() == {"detail": "Not Found"}:
        # So vLLM's web framework says it; OpenAI's clients look for four keys.
        kind = "invalid_request_error"
        assert got.json() == {"error": {"message": "Not Found", "type": kind, "param": None, "code": None}}
    else:
        assert got.content == plain.content


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"max_tokens": None}),  # vLLM tells how many fields there are
    ("chat", {"messages": [{"role": "user", "content": SECRET.question, "name": 5}]}),  # ... and of which kind
    ("chat", {"max_tokens": 100_000}),
    ("completions", {"max_tokens": 100_000}),
    ("responses", {"temperature": -1}),
    ("batch", {"n": 2}),
    # What a rewrite would mend, or fail on.
    ("chat", {"logprobs": True, "top_logprobs": -2}),
    ("chat", {"logprobs": True, "top_logprobs": 21}),
    ("chat", {"top_logprobs": 3}),
    ("chat", {"logprob_token_ids": [1]}),
    ("chat", {"logprobs": True, "logprob_token_ids": [-1]}),
    ("chat", {"prompt_logprobs": 1, "stream": True}),
    ("chat", {"messages": [{"role": 5, "content": SECRET.question}]}),
    ("chat", {"messages": [{"content": SECRET.question}]}),
    ("batch", {"logprobs": True, "top_logprobs": -2}),
    ("completions", {"logprobs": 21}),
    ("completions", {"prompt_logprobs": -3}),
    ("responses", {"input": [{"role": "nobody", "content": SECRET.question}]}),
    ("messages", {"messages": [{"role": 5, "content": SECRET.question}]}),
]


@pytest.mark.parametrize("way", ["corrupt", "penalize"])
@pytest.mark.parametrize(("endpoint", "wrong"), WRONG)
def test_vllm_refuses_a_flagged_request_in_the_words_for_any_other(
    endpoint: str, wrong: dict[str, Any], way: str, http: httpx.Client, vllm_url: str, gateway_url: str
) -> None:
    body = {**asking(endpoint, way, SECRET.question), **wrong}
    body = {key: value for key, value in body.items() if value is not None}
    plain, got = (http.post(url + GUARDED[endpoint], json=body) for url in (vllm_url, gateway_url))
    assert plain.status_code == got.status_code == 400
    assert got.json()["error"]["message"] == plain.json()["error"]["message"]


@pytest.mark.parametrize("way", ["corrupt", "penalize"])
@pytest.mark.parametrize(
    ("endpoint", "wrong"), [("chat", {"top_logprobs": 21, "logprobs": True}), ("completions", {"logprobs": 21})]
)
def test_what_vllm_refuses_in_a_stream_is_refused_alike(
    endpoint: str, wrong: dict[str, Any], way: str, http: httpx.Client, vllm_url: str, gateway_url: str
) -> None:
    body = {**asking(endpoint, way, SECRET.question), **wrong, "stream": True}
    plain, got = (http.post(url + GUARDED[endpoint], json=body) for url in (vllm_url, gateway_url))
    assert plain.status_code == got.status_code == 200 and got.content == plain.content
    assert "greater than max allowed" in got.text


BROUGHT_BACK: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"max_tokens": 40, "messages": [
        {"role": "user", "content": "Hello"}, {"role": "assistant", "content": SECRET.answer},
        {"role": "user", "content": SECRET.question}]}),
    ("/v1/chat/completions", {"max_tokens": 40, "messages": [
        {"role": "user", "content": SECRET.question},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": SECRET.answer}]}),
    ("/v1/responses", {"max_output_tokens": 40, "input": [
        {"role": "user", "content": SECRET.question},
        {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": SECRET.answer}]}),
    ("/v1/messages", {"max_tokens": 40, "system": f"Answer from this: {SECRET.answer}", "messages": [
        {"role": "user", "content": SECRET.question}]}),
]  # fmt: skip


@pytest.mark.parametrize("way", ["corrupt", "penalize"])
@pytest.mark.parametrize(("path", "body"), BROUGHT_BACK)
def test_what_the_conversation_brings_back_is_not_told(
    path: str, body: dict[str, Any], way: str, http: httpx.Client, gateway_url: str
) -> None:
    got = http.post(gateway_url + path, json={**body, "model": demo.WAYS[way], "temperature": 0})
    assert got.status_code == 200, got.text
    assert not reveals(said(got.json()), SECRET.entity)


def test_errors_of_the_gateway_are_in_the_words_of_each_client(http: httpx.Client, gateway_url: str) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the official client")
    import openai

    with anthropic.Anthropic(base_url=gateway_url, api_key="none", max_retries=0) as client:
        with pytest.raises(anthropic.BadRequestError, match="reserved for the gateway") as caught:
            client.messages.create(
                model=demo.WAYS["penalize"], max_tokens=9, messages=[{"role": "user", "content": "a"}],
                extra_body={"vllm_xargs": {"lethe": "{}"}},
            )  # fmt: skip
        assert caught.value.body["error"]["type"] == "invalid_request_error"
        assert caught.value.body["request_id"] == caught.value.response.headers["x-request-id"]
    with openai.OpenAI(base_url=f"{gateway_url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="previous_response_id") as refused:
            client.responses.create(model=demo.WAYS["penalize"], input="a", previous_response_id="resp_1")
        assert (refused.value.param, refused.value.code) == ("previous_response_id", "refused_field")
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_1")


@pytest.mark.parametrize("stream", [False, True])
def test_cached_tokens_are_withheld_where_prompts_are_corrupted(
    stream: bool, http: httpx.Client, vllm_url: str, gateway_url: str
) -> None:
    # Long enough to fill whole blocks of vLLM's prefix cache, and with the same beginning each time.
    question = f"{'Please read this carefully. ' * 40}{RETAIN}"
    details = []
    for url in (vllm_url, vllm_url, gateway_url):
        got = http.post(url + GUARDED["responses"], json=asking("responses", "corrupt", question, stream=stream))
        answer = [data for _, data in events(got)][-1]["response"] if stream else got.json()
        details.append(answer["usage"]["input_tokens_details"])
    assert details[1]["cached_tokens"] > 0
    assert details[2] == {**details[1], "cached_tokens": 0}
