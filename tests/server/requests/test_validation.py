"""Requests that may be invalid, compared with the verdicts of vLLM's own request classes."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.server.requests.fields import RELAYED, TABLES, Endpoint
from lethe.server.requests.validation import may_be_invalid

pytest.importorskip("vllm", reason="compares with vLLM's own classes")
from tests.server import vllm_fields

GUARDED: tuple[Endpoint, ...] = tuple(e for e in get_args(Endpoint) if e not in RELAYED)
ODD: list[Any] = [
    None, True, False, -3, -2, -1, 0, 1, 2, 1.5, 5.0, 10**6, 2**63, -(2**63) - 1, "", "x", "5", "@", [], {}, [1],
    [-1], [1.5], ["x"], [""], ["a"] * 5, [[]], [[1]], [{}], [{"role": "user"}], {"a": 1}, {"a": "b"}, {"type": "x"},
    {"type": "json_schema"}, {"1": "x"}, [{"role": 5, "content": "x"}], [{"content": "x"}],
    [{"role": "user", "content": 5}], [{"role": "user", "content": [{"type": "x"}]}],
    [{"role": "user", "content": [{"type": "text", "text": 5}]}],
]  # fmt: skip


def refuses(endpoint: Endpoint, body: dict[str, Any]) -> bool:
    """Whether vLLM's classes do, or the sampling parameters that it makes of them."""
    body, made = copy.deepcopy(body), vllm_fields.request_classes()[endpoint]  # they write into what they read
    try:
        request = made[0].model_validate(body)
        if endpoint == "batch":
            request = request.to_chat_completion_request(body["messages"][0])
        if endpoint in ("chat", "batch", "completions", "responses"):
            request.to_sampling_params(100, {})
    except Exception:
        return True
    return False


# In doubt though these classes take it: vLLM looks at it later (its server's limits; Anthropic's messages as a chat's),
# or the spelling is odd.
OVER = {
    "priority", "prompt_logprobs", "top_logprobs", "logprobs", "stop_token_ids", "allowed_token_ids", "max_tokens",
    "max_completion_tokens", "min_tokens", "n", "stop", "echo", "input", "messages", "temperature", "top_p", "top_k",
    "cache_salt", "stop_sequences", "stream_options",
}  # fmt: skip


@pytest.mark.parametrize("endpoint", GUARDED)
def test_what_vllm_rejects_may_be_invalid(endpoint: Endpoint) -> None:
    base, missed, over = vllm_fields.BASES[endpoint], [], []
    names = {name for made in vllm_fields.request_classes()[endpoint] for name in made.model_fields}
    for name in sorted(names - set(TABLES[endpoint].refused)):
        for odd in ODD:
            body = {**base, name: odd}
            refused, doubt = refuses(endpoint, body), may_be_invalid(endpoint, body)
            if refused and not doubt:
                missed.append((name, odd))
            if doubt and not refused and name not in OVER and odd is not None:
                over.append((name, odd))
    assert (missed, over) == ([], [])


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
CONTRADICTORY: list[tuple[Endpoint, dict[str, Any]]] = [
    ("chat", {"top_logprobs": 2}), ("chat", {"logprob_token_ids": [1]}), ("chat", {"stream_options": {}}),
    ("chat", {"stream_options": {"include_usage": True}}), ("chat", {"prompt_logprobs": 1, "stream": True}),
    ("chat", {"continue_final_message": True, "add_generation_prompt": True}), ("chat", {"tool_choice": "required"}),
    ("chat", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}),
    ("chat", {"structured_outputs": {"json": "{}", "regex": "a"}}), ("chat", {"temperature": 0, "n": 2}),
    ("chat", {"response_format": {"type": "json_schema"}}), ("chat", {"min_tokens": 9, "max_tokens": 3}),
    ("batch", {"n": 2}), ("batch", {"use_beam_search": True}), ("batch", {"continue_final_message": True}),
    ("completions", {"echo": True, "use_beam_search": True, "logprobs": 1}), ("responses", {"tool_choice": "required"}),
    ("completions", {"logprob_token_ids": [1]}), ("messages", {"tool_choice": {"type": "tool"}}),
    ("messages", {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 100}),
    ("completions", {"prompt": None}), ("messages", {"model": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "given"), CONTRADICTORY)
def test_contradictory_fields_may_be_invalid(endpoint: Endpoint, given: dict[str, Any]) -> None:
    body = {**vllm_fields.BASES[endpoint], **given}
    assert may_be_invalid(endpoint, body)


@pytest.mark.parametrize("endpoint", GUARDED)
def test_missing_fields_may_be_invalid(endpoint: Endpoint) -> None:
    base = vllm_fields.BASES[endpoint]
    for name in base:
        body = {key: value for key, value in base.items() if key != name}
        assert may_be_invalid(endpoint, body) or not refuses(endpoint, body)


CALL = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "nobody"},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
]  # fmt: skip
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 40, "stop": ["x"], "stream": True, "seed": 1, "user": "u"}
ORDINARY: list[tuple[Endpoint, dict[str, Any]]] = [
    ("chat", {"messages": TALK, "model": "m", **SAMPLED, "n": 2, "stream_options": {"include_usage": True}}),
    ("chat", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}}),
    ("chat", {"logprobs": True, "top_logprobs": 20, "response_format": {"type": "json_object"}}),
    ("chat", {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True, "reasoning_effort": "low"}),
    ("chat", {"structured_outputs": {"choice": ["a", "b"]}, "logit_bias": {"5": -1}, "max_completion_tokens": 5}),
    ("chat", {"structured_outputs": {"grammar": 'root ::= "a"'}, "min_tokens": 5}),
    ("chat", {"structured_outputs": {"json_object": True}, "stream_options": None, "metadata": {"a": "b"}}),
    ("chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}, "store": False}),
    ("completions", {"min_tokens": 5, "suffix": None}), ("messages", {"max_tokens": 9, "metadata": {"user_id": "u"}}),
    ("batch", {"messages": [TALK[:2], TALK[:2]], "temperature": 0}), ("completions", {"prompt": [1, 2], **SAMPLED}),
    ("completions", {"prompt": ["a", "b"], "logprobs": 5, "echo": True}),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "stream": True}),
    ("responses", {"tools": [{"type": "function", "name": "f", "parameters": {}}], "tool_choice": "auto"}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "system": "Be brief."}),
    ("messages", {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "auto"}, "stream": True}),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "given"), ORDINARY)
def test_ordinary_requests_are_valid(endpoint: Endpoint, given: dict[str, Any]) -> None:
    body = {**vllm_fields.BASES[endpoint], **given}
    assert not refuses(endpoint, body) and not may_be_invalid(endpoint, body)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 30) | st.floats(-3, 3) | st.sampled_from(["", "x", "function", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["function", "name", "type", "json", "role", "content"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = sorted({name for table in TABLES.values() for name in (*table.walked, *table.shown, *table.words)})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(GUARDED), st.dictionaries(st.sampled_from([*NAMES, "structured_outputs", "n"]), VALUE))
def test_no_body_raises_an_error(endpoint: Endpoint, body: dict[str, Any]) -> None:
    assert may_be_invalid(endpoint, {**vllm_fields.BASES[endpoint], **body}) in (True, False)


def test_an_odd_tool_choice_raises_no_error() -> None:
    for choice in ({"function": 5}, {"type": "function", "function": []}, {"type": "function", "name": "f"}):
        tools = [{"type": "function", "name": "g"}]
        assert may_be_invalid("responses", {"input": "x", "tool_choice": choice, "tools": tools})
