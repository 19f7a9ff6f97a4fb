"""Answers under watch: every shape, whole and streamed, cut anywhere; nothing of a phrase's second half."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import orjson
import pytest
from anthropic.types import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from benchmarks.watch_streams import cut, occurrences, passage, phrase, replaced
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.stream_filter import AnswerFilter, FilterRule
from lethe.server.errors import Refused, UpstreamFailed
from lethe.server.output import sse
from lethe.server.output.filter import ResponseFilter
from lethe.server.output.responses import usage_of_response
from tests.clients import strict

NAME = "Zorin Quill"
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def answer(
    *phrases: str, replacement: str | None = None, body: Any = None, may_pass: bool = False, **more: Any
) -> ResponseFilter:
    def unwatchable(reason: str) -> None:
        if not may_pass:
            raise Refused("not here")

    rule = FilterRule("p", ForbiddenPhrases(phrases or (NAME,)), replacement)
    return ResponseFilter(AnswerFilter([rule]), body or {}, unwatchable, **more)


def encoded(*events: Any, done: bool = True) -> bytes:
    """Events as vLLM writes them: those with a type under its name."""
    lines = [(f"event: {e['type']}\n" if "type" in e else "") + f"data: {json.dumps(e)}\n\n" for e in events]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


def streamed(watched: ResponseFilter, raw: bytes, draw: random.Random | None = None) -> list[Any]:
    """The events that leave, [DONE] as a string."""
    places = sorted(draw.randrange(len(raw)) for _ in range(draw.randrange(40))) if draw else range(0, len(raw), 7)
    chunks = [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]
    out = b""
    for chunk in chunks:
        out += b"".join(watched.feed(chunk))
    out += b"".join(watched.end())
    events = list(sse.Parser().feed(out))
    assert all(
        event.name == ("" if event.data == "[DONE]" else orjson.loads(event.data).get("type", "")) for event in events
    )
    return [event.data if event.data == "[DONE]" else orjson.loads(event.data) for event in events]


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def said(events: list[Any], index: int = 0, *keys: str) -> str:
    """What a choice's deltas say together under a key."""
    out = ""
    for event in events:
        for choice in event["choices"] if isinstance(event, dict) else []:
            value = choice.get("delta", choice)
            for key in keys or ("content",):
                value = (value.get(key) if isinstance(value, dict) else value[int(key)] if value else None) or ""
            out += value if choice["index"] == index else ""
    return out


def reasons(events: list[Any]) -> dict[int, Any]:
    return {
        c["index"]: c["finish_reason"]
        for e in events
        if isinstance(e, dict)
        for c in e["choices"]
        if c["finish_reason"]
    }


def test_a_chat_stream_ends_before_the_phrase() -> None:
    watched = answer()
    events = streamed(
        watched, encoded(*(chunk(content=piece) for piece in ["By Zo", "rin", " Qui", "ll", ", of", " X"]))
    )
    assert said(events) == "By "
    assert reasons(events) == {0: "content_filter"}
    assert events[-1] == "[DONE]" and events.count("[DONE]") == 1
    assert watched.cut and watched.hits == Counter(p=1)
    for event in events[:-1]:
        ChatCompletionChunk.model_validate(event, strict=True)


def test_a_chat_stream_without_a_phrase_is_complete() -> None:
    watched = answer()
    text = ["By Zo", "rin", " Qui", "n, Zorin"]
    events = streamed(watched, encoded(*(chunk(content=piece) for piece in text), chunk(finish="stop", content="")))
    assert said(events) == "By Zorin Quin, Zorin"
    assert reasons(events) == {0: "stop"} and events[-1] == "[DONE]"
    assert not watched.cut and not watched.hits


def test_held_back_text_is_sent_when_a_stream_ends_early() -> None:
    events = streamed(answer(), encoded(chunk(content="by Zorin"), chunk(content=" a Zorin")))
    assert said(events) == "by Zorin a Zorin" and events[-1] == "[DONE]"
    assert said(streamed(answer(), encoded(chunk(content="by Zorin"), done=False))) == "by Zorin"
    assert reasons(streamed(answer(), encoded(chunk(content="by Zorin Qui")))) == {0: "content_filter"}


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "refusal", "content", "unknown"])
def test_every_text_of_a_choice_is_filtered(key: str) -> None:
    pieces = [chunk(**{key: piece}) for piece in ("So Zor", "in Quill.")]
    events = streamed(answer(), encoded(*pieces, chunk(content="more")))
    assert said(events, 0, key) == "So " and reasons(events) == {0: "content_filter"}
    whole = {
        "index": 0,
        "message": {"role": "assistant", key: f"So {NAME}."},
        "finish_reason": "stop",
        "logprobs": None,
    }
    made = orjson.loads(answer().whole(orjson.dumps({"id": "c", "choices": [whole]})))
    assert made["choices"][0]["message"][key] == "So "
    assert made["choices"][0]["finish_reason"] == "content_filter"


def call(index: int, at: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return chunk(index, tool_calls=[{"index": at, "function": function}])


def test_tool_arguments_are_read_as_json_each_call_by_itself() -> None:
    pieces = [call(0, 0, '{"a": "Zor', "f"), call(0, 1, '{"b": "Qui', "g"), call(0, 0, 'an"}'), call(0, 1, 'll"}')]
    events = streamed(answer(), encoded(*pieces, chunk(finish="tool_calls")))
    assert reasons(events) == {0: "tool_calls"}
    assert "".join(t["function"]["arguments"] for e in events[:-1] for c in e["choices"]
                   for t in c["delta"].get("tool_calls", []) if t["index"] == 0) == '{"a": "Zoran"}'  # fmt: skip
    hidden = ['{"a": "\\u00', "5aorin\\nQu", 'ill"}']
    events = streamed(answer(), encoded(*(call(0, 0, piece) for piece in hidden)))
    assert said(events, 0, "tool_calls", "0", "function", "arguments") == '{"a": "'
    assert reasons(events) == {0: "content_filter"}
    events = streamed(
        answer(replacement="[x]"), encoded(*(call(0, 0, piece) for piece in hidden), chunk(finish="stop"))
    )
    assert json.loads(said(events, 0, "tool_calls", "0", "function", "arguments")) == {"a": "[x]"}


@pytest.mark.parametrize("names", [["zorin_quill"], ["zorin_", "quill"]])
def test_a_tool_name_is_filtered(names: list[str]) -> None:
    events = streamed(answer(), encoded(*(call(0, 0, "", name) for name in names), call(0, 0, "{}")))
    assert "quill" not in json.dumps(events) and reasons(events) == {0: "content_filter"}
    assert streamed(answer("notes"), encoded(call(0, 0, "{}", "note"), done=False)) == [call(0, 0, "{}", "note")]


def test_choices_are_filtered_one_by_one() -> None:
    pieces = [
        chunk(0, content="a Zorin"),
        chunk(1, content="b Zorin"),
        chunk(0, content=" Quill"),
        chunk(1, content=" Q"),
    ]
    rest = [chunk(0, content=", c"), chunk(1, content="x d"), chunk(0, finish="stop"), chunk(1, finish="stop")]
    watched = answer(body={"n": 2})
    events = streamed(watched, encoded(*pieces, *rest))
    assert (said(events, 0), said(events, 1)) == ("a ", "b Zorin Qx d")
    assert reasons(events) == {0: "content_filter", 1: "stop"}
    assert watched.cut and events[-1] == "[DONE]"


def test_the_stream_is_cut_only_when_every_choice_has_ended() -> None:
    watched = answer(body={"n": 2})
    assert b"content_filter" in b"".join(watched.feed(encoded(chunk(0, content=f"{NAME}."), done=False)))
    assert not watched.cut
    assert b"content_filter" in b"".join(watched.feed(encoded(chunk(1, content=f"{NAME}."), done=False)))
    assert watched.cut and list(watched.feed(encoded(chunk(1, content="more")))) == [] and list(watched.end()) == []


@pytest.mark.parametrize(
    ("body", "count"),
    [({}, 1), ({"n": None}, 1), ({"n": 3}, 3), ({"prompt": ["a", "b"], "n": 2}, 4), ({"prompt": [1, 2]}, 1)],
)
def test_the_number_of_choices_is_read_from_the_request(body: Any, count: int) -> None:
    watched = answer(body=body)
    for index in range(count):
        assert not watched.cut
        list(watched.feed(encoded(chunk(index, content=f"{NAME}."), done=False)))
    assert watched.cut


@pytest.mark.parametrize("count", ["1", 1.0, 0])
def test_an_unreadable_number_of_choices_never_cuts_the_stream(count: Any) -> None:
    watched = answer(body={"n": count})
    events = streamed(watched, encoded(chunk(content=f"{NAME}."), chunk(content="more")))
    assert said(events) == "" and events[-1] == "[DONE]" and not watched.cut


def test_a_cut_stream_still_reports_usage() -> None:
    body = {"stream_options": {"include_usage": True}}
    watched = answer(body=body, usage_added=True)
    pieces = [
        {**chunk(content="a"), "usage": {**USAGE, "completion_tokens": 1}},
        {**chunk(content=f" {NAME}."), "usage": USAGE},
    ]
    events = streamed(watched, encoded(*pieces))
    assert events[-2] == {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [],
        "usage": USAGE,
    }
    assert all("usage" not in event for event in events[:-2])
    given = streamed(answer(body=body), encoded(*pieces))
    assert [event.get("usage") for event in given[:-1]] == [pieces[0]["usage"], USAGE, USAGE]
    silent = streamed(answer(), encoded(*({**piece, "usage": None} for piece in pieces)))
    assert len(silent) == 3


def test_the_usage_chunk_of_a_complete_stream_stays() -> None:
    last = {**chunk(), "choices": [], "usage": USAGE}
    watched = answer(body={"stream_options": {"include_usage": True}}, usage_added=True)
    assert streamed(watched, encoded(chunk(content="a", finish="stop"), last))[-2:] == [last, "[DONE]"]


def test_log_probabilities_and_token_ids_are_removed() -> None:
    token = {"token": NAME, "bytes": list(NAME.encode()), "logprob": -1.0, "top_logprobs": [{"token": NAME}]}
    piece = chunk(content="a")
    piece["choices"][0] |= {"logprobs": {"content": [token]}, "token_ids": [1, 2]}
    piece["prompt_logprobs"] = [{"1": {"decoded_token": NAME}}]
    (event, _) = streamed(answer(), encoded(piece))
    assert event["choices"][0]["logprobs"] is None and event["choices"][0]["token_ids"] is None
    assert event["prompt_logprobs"] is None
    whole = {"choices": [{**piece["choices"][0], "text": "a"}], "prompt_logprobs": [{"1": {"decoded_token": NAME}}]}
    assert "Quill" not in answer().whole(orjson.dumps(whole)).decode()


def test_a_whole_chat_answer_keeps_its_schema() -> None:
    message = {
        "role": "assistant", "content": f"by {NAME}, of X", "refusal": None,
        "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }  # fmt: skip
    choices = [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": "x"},
        {"index": 1, "message": {**message, "content": "by another"}, "logprobs": None, "finish_reason": "stop"},
    ]
    raw = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": USAGE}
    watched = answer()
    made = orjson.loads(watched.whole(orjson.dumps(raw)))
    ChatCompletion.model_validate(made, strict=True)
    assert made["choices"][0]["message"] == {"role": "assistant", "content": "by ", "refusal": None}
    assert made["choices"][0]["finish_reason"] == "content_filter" and made["choices"][0]["stop_reason"] is None
    assert made["choices"][1] == choices[1] and made["usage"] == USAGE
    assert watched.hits == Counter(p=1)
    assert orjson.loads(answer("nothing").whole(orjson.dumps(raw))) == raw


def test_completions_are_filtered_whole_and_streamed() -> None:
    raw = {
        "id": "c", "object": "text_completion", "created": 1, "model": "m", "usage": USAGE,
        "choices": [{"index": 0, "text": f"by {NAME}, of X", "logprobs": None, "finish_reason": "length"}],
    }  # fmt: skip
    made = orjson.loads(answer(replacement="[x]").whole(orjson.dumps(raw)))
    Completion.model_validate(made, strict=True)
    assert made["choices"][0]["text"] == "by [x], of X" and made["choices"][0]["finish_reason"] == "length"
    pieces = [
        {**raw, "choices": [{**raw["choices"][0], "text": t, "finish_reason": None}]} for t in ("by Zorin", " Quill")
    ]
    events = streamed(answer(), encoded(*pieces))
    assert [choice["text"] for event in events[:-1] for choice in event["choices"]] == ["by ", "", ""]
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"


def response_events(deltas: list[str], *, kind: str = "message") -> list[dict[str, Any]]:
    """A response's events as vLLM writes them."""
    text = "".join(deltas)
    base = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "parallel_tool_calls": True,
            "tool_choice": "auto", "tools": [], "instructions": None, "temperature": 1.0, "top_p": 1.0,
            "metadata": {"mine": NAME}, "incomplete_details": None, "error": None, "usage": None}  # fmt: skip
    at = {"item_id": "i", "output_index": 0}
    if kind == "message":
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item: dict[str, Any] = {"id": "i", "type": "message", "role": "assistant", "content": []}
        prefix, repeat = "response.output_text", {"text": text, "logprobs": []}
        done = {**item, "content": [{**part, "text": text}], "status": "completed"}
        opened = [{"type": "response.content_part.added", **at, "content_index": 0, "part": part}]
        closed = [{"type": "response.content_part.done", **at, "content_index": 0, "part": {**part, "text": text}}]
        at["content_index"] = 0  # type: ignore[assignment]
        more: dict[str, Any] = {"logprobs": []}
    else:
        item = {"id": "i", "type": "function_call", "name": "f", "call_id": "call_1", "arguments": ""}
        prefix, repeat = "response.function_call_arguments", {"arguments": text, "name": "f"}
        done = {**item, "arguments": text, "status": "completed"}
        opened, closed, more = [], [], {}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**base, "status": "in_progress", "output": []}},
        {"type": "response.in_progress", "response": {**base, "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress"}},
        *opened,
        *({"type": f"{prefix}.delta", **at, **more, "delta": delta} for delta in deltas),
        {"type": f"{prefix}.done", **at, **repeat},
        *closed,
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {"type": "response.completed", "response": {**base, "status": "completed", "output": [done]}},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def deltas(events: list[Any]) -> str:
    return "".join(event["delta"] for event in events if isinstance(event.get("delta"), str))


@pytest.mark.parametrize(("kind", "end"), [("message", [".content_part.done"]), ("function_call", [])])
def test_a_response_stream_ends_before_the_phrase(kind: str, end: list[str]) -> None:
    watched = answer()
    pieces = ["By ", "Zor", "in Qu", "ill", ", of X"] if kind == "message" else ['{"by": "Zor', "in Qu", 'ill"}']
    events = streamed(watched, encoded(*response_events(pieces, kind=kind), done=False))
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event)
    safe = "By " if kind == "message" else '{"by": "'
    assert deltas(events) == safe
    prefix = "response.output_text.done" if kind == "message" else "response.function_call_arguments.done"
    closing = [prefix, *(f"response{name}" for name in end), "response.output_item.done", "response.incomplete"]
    assert [event["type"] for event in events[-len(closing) :]] == closing
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = Response.model_validate(events[-1]["response"])
    assert (
        final.status == "incomplete"
        and final.incomplete_details
        and final.incomplete_details.reason == "content_filter"
    )
    assert safe in json.dumps(events[-1]) if kind == "message" else final.output[0].arguments == safe  # type: ignore[union-attr]
    assert "Quill" not in json.dumps([{**e, "response": {**e.get("response", {}), "metadata": None}} for e in events])
    assert watched.cut and watched.hits == Counter(p=1)


def test_a_response_with_a_replacement_repeats_it_everywhere() -> None:
    watched = answer(replacement="[x]")
    events = streamed(watched, encoded(*response_events(["By ", "Zor", "in Qu", "ill", ", of Zorin"]), done=False))
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event)
    text = "By [x], of Zorin"
    assert deltas(events) == text
    done = {event["type"]: event for event in events}
    assert done["response.output_text.done"]["text"] == text
    assert done["response.content_part.done"]["part"]["text"] == text
    assert done["response.output_item.done"]["item"]["content"][0]["text"] == text
    assert done["response.completed"]["response"]["output"][0]["content"][0]["text"] == text
    assert done["response.completed"]["response"]["metadata"] == {"mine": NAME}
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert watched.hits == Counter(p=1) and not watched.cut


def test_a_response_without_a_phrase_is_unchanged() -> None:
    events = response_events(["By ", "Zorin", " Q, ", "no"])
    assert streamed(answer("other thing"), encoded(*events, done=False)) == events


def test_a_phrase_only_in_the_last_response_event_is_found() -> None:
    events = [event for event in response_events([NAME]) if "delta" not in event]
    out = streamed(answer(), encoded(*events, done=False))
    assert out[-1]["type"] == "response.incomplete"
    assert NAME not in json.dumps([event for event in out if "response" not in event])
    completed = streamed(answer(), encoded(events[0], events[-1], done=False))
    assert completed[-1]["response"]["status"] == "incomplete"
    assert "Quill" not in json.dumps(completed[-1]["response"]["output"])


def test_a_whole_response_ends_before_the_phrase() -> None:
    raw = response_events([f"By {NAME}."])[-1]["response"]
    raw["output"] = [*raw["output"], {**raw["output"][0], "id": "j"}]
    made = orjson.loads(answer().whole(orjson.dumps(raw)))
    Response.model_validate(made)
    assert made["status"] == "incomplete" and made["incomplete_details"] == {"reason": "content_filter"}
    assert [item["content"][0]["text"] for item in made["output"]] == ["By "]
    assert made["output"][0]["status"] == "incomplete" and made["metadata"] == {"mine": NAME}


def message_events(pieces: list[str], kind: str = "text_delta", key: str = "text") -> list[dict[str, Any]]:
    block = {"text_delta": {"type": "text", "text": ""}, "thinking_delta": {"type": "thinking", "thinking": ""},
             "input_json_delta": {"type": "tool_use", "id": "t", "name": "f", "input": {}}}[kind]  # fmt: skip
    message = {"id": "m1", "type": "message", "role": "assistant", "content": [], "model": "m", "stop_reason": None,
               "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 0}}  # fmt: skip
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": kind, key: piece}} for piece in pieces),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 5},
        },
        {"type": "message_stop"},
    ]


@pytest.mark.parametrize(
    ("kind", "key"), [("text_delta", "text"), ("thinking_delta", "thinking"), ("input_json_delta", "partial_json")]
)
def test_a_message_stream_ends_before_the_phrase(kind: str, key: str) -> None:
    watched = answer()
    events = streamed(watched, encoded(*message_events(["By Zor", "in Qu", "ill, of"], kind, key), done=False))
    assert "".join(event["delta"].get(key, "") for event in events if "delta" in event) == "By "
    assert [event["type"] for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2]["delta"] == {"stop_reason": "refusal", "stop_sequence": None}
    # Three deltas came; the last event, which says what vLLM counted, never does.
    assert events[-2]["usage"] == {"input_tokens": 3, "output_tokens": 3}
    assert watched.cut


def test_a_message_that_ends_in_its_last_event_has_vllms_usage() -> None:
    pieces = message_events(["By ", "Zorin Qui"])[:-3] + message_events([])[-2:]
    events = streamed(answer("Zorin Qui"), encoded(*pieces, done=False))
    assert [event["type"] for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2]["usage"] == {"input_tokens": 3, "output_tokens": 5}
    # The last event itself holds the phrase: it is not sent beside the one that ends the message.
    pieces[-2]["delta"] = {"stop_reason": "stop_sequence", "stop_sequence": NAME}
    events = streamed(answer(), encoded(*pieces, done=False))
    assert [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"] == ["refusal"]
    assert events[-2]["usage"] == {"input_tokens": 3, "output_tokens": 5} and NAME not in json.dumps(events)


@pytest.mark.parametrize(("deltas", "usage"), [(["By ", "Zorin ", "Qui, of"], (0, 3)), (["By ", "Zorin Qui"], (3, 5))])
def test_a_response_that_ends_early_reports_usage(deltas: list[str], usage: tuple[int, int]) -> None:
    counted = {
        "input_tokens": 3, "output_tokens": 5, "total_tokens": 8, "output_tokens_details": {"reasoning_tokens": 0},
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    }  # fmt: skip
    pieces = response_events(deltas)
    pieces[-1]["response"]["usage"] = counted
    if usage[0]:
        # The text ends only with the last event, which has vLLM's counts.
        pieces = [event for event in pieces if not event["type"].endswith(".done")]
    events = streamed(answer("Zorin Qui"), encoded(*pieces, done=False))
    assert events[-1]["type"] == "response.incomplete"
    made = strict.told(Response, orjson.dumps(events[-1]["response"]))["usage"]
    assert (made["input_tokens"], made["output_tokens"], made["total_tokens"]) == (*usage, sum(usage))


def test_reasoning_deltas_are_counted_as_reasoning_tokens() -> None:
    deltas = [event for event in response_events(["a ", "b ", f"{NAME}, of"]) if "delta" in event]
    for number in (0, 1):
        deltas[number]["type"] = "response.reasoning_text.delta"
    events = streamed(answer(), encoded(*response_events([])[:2], *deltas, done=False))
    usage = events[-1]["response"]["usage"]
    assert (usage["output_tokens"], usage["output_tokens_details"]) == (3, {"reasoning_tokens": 2})


@pytest.mark.parametrize("kind", ["response", "message"])
def test_a_whole_answer_that_is_cut_keeps_its_usage(kind: str) -> None:
    if kind == "message":
        raw = {**message_events([])[0]["message"], "content": [{"type": "text", "text": f"By {NAME}."}]}
    else:
        raw = {**response_events([f"By {NAME}."])[-1]["response"], "usage": usage_of_response(5)}
        raw["metadata"] = {}
    made = answer().whole(orjson.dumps(raw))
    assert NAME.encode() not in made
    published: Any = Message if kind == "message" else Response
    assert strict.told(published, made)["usage"] == raw["usage"]


def test_a_message_with_a_replacement_keeps_its_shape() -> None:
    pieces = message_events(["By Zor", "in Qu", "ill, of Zorin"])
    events = streamed(answer(replacement="[x]"), encoded(*pieces, done=False))
    assert "".join(event["delta"].get("text", "") for event in events if "delta" in event) == "By [x], of Zorin"
    assert [e for e in events if e["type"] != "content_block_delta"] == [
        e for e in pieces if e["type"] != "content_block_delta"
    ]
    assert streamed(answer("other thing"), encoded(*pieces, done=False)) == pieces


def test_a_whole_message_ends_before_the_phrase() -> None:
    raw = {**message_events([])[0]["message"], "content": [
        {"type": "text", "text": f"By {NAME}."}, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "b"}},
    ]}  # fmt: skip
    made = orjson.loads(answer().whole(orjson.dumps(raw)))
    assert made["content"] == [{"type": "text", "text": "By "}] and made["stop_reason"] == "refusal"
    raw["content"] = [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": [f"x {NAME}"], NAME: 1}}]
    made = orjson.loads(answer(replacement="[x]").whole(orjson.dumps(raw)))
    assert made["content"][0]["input"] == {"a": ["x [x]"]} and made["stop_reason"] is None


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_streamed_and_whole_answers_are_filtered_alike(draw: random.Random, stop: bool) -> None:
    phrases = [phrase(draw) for _ in range(draw.randint(1, 4))]
    texts = [passage(phrases, draw) for _ in range(draw.randint(1, 3))]
    made = {"replacement": None if stop else "[removed]", "body": {"n": len(texts)}}
    pieces = [chunk(at, content=piece) for at, text in enumerate(texts) for piece in cut(text, draw)]
    draw.shuffle(order := [piece["choices"][0]["index"] for piece in pieces])
    queues = {at: iter([piece for piece in pieces if piece["choices"][0]["index"] == at]) for at in range(len(texts))}
    ends = [chunk(at, finish="stop") for at in range(len(texts))]
    events = streamed(answer(*phrases, **made), encoded(*(next(queues[at]) for at in order), *ends), draw)
    choices = [{"index": at, "message": {"content": text}, "finish_reason": "stop"} for at, text in enumerate(texts)]
    whole = orjson.loads(answer(*phrases, **made).whole(orjson.dumps({"choices": choices})))
    for at, text in enumerate(texts):
        assert said(events, at) == whole["choices"][at]["message"]["content"]
        assert reasons(events)[at] == whole["choices"][at]["finish_reason"]
        if not stop:
            assert said(events, at) == replaced(phrases, text, answer(*phrases, **made)._rules.replacements[0] or "")
        elif found := occurrences(phrases, text):
            assert len(said(events, at)) <= max(place.begin for place in found)


@pytest.mark.parametrize(
    "broken", [b"data: {\n\n", b"data: 7\n\n", b'data: {"choices":[{"delta":{}}]}\n\n', b'data: {"choices":[5]}\n\n',
               b'data: {"type":"content_block_delta","index":0,"delta":"x"}\n\n', b"data: " + b"[" * 2000 + b"\n\n",
               b'data: {"type":"response.output_text.delta","item_id":{},"delta":"x"}\n\n']
)  # fmt: skip
def test_on_failure_decides_about_an_unreadable_event(broken: bytes) -> None:
    with pytest.raises(Refused):
        list(answer().feed(broken))
    watched = answer(may_pass=True)
    assert b"".join(watched.feed(broken)) == broken
    assert said(streamed(watched, encoded(chunk(content=f"by {NAME}.")))) == "by "


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"choices":[{}]}', b"[" * 2000, b'{"choices":[5]}'])
def test_on_failure_decides_about_an_unreadable_whole_answer(raw: bytes) -> None:
    with pytest.raises(Refused):
        answer().whole(raw)
    assert answer(may_pass=True).whole(raw) == raw


def test_a_stream_that_is_not_text_is_aborted() -> None:
    with pytest.raises(Refused):
        list(answer().feed(b"data: \xff\n\n"))
    with pytest.raises(UpstreamFailed):
        list(answer(may_pass=True).feed(b"data: \xff\n\n"))


def test_a_stream_of_an_unknown_dialect_is_filtered() -> None:
    pieces = [{"token": {"text": text}} for text in ("By Zor", "in ", "Quill", ", of")]
    events = streamed(answer(), encoded(*pieces))
    assert "".join(event["token"]["text"] for event in events[:-1]) == "By "
    assert events[-1] == "[DONE]"


def test_an_error_event_is_passed_on_unchanged() -> None:
    error = {"error": {"message": "by Zorin", "type": "server_error", "param": None, "code": 500}}
    assert streamed(answer(), encoded(chunk(content="a"), error))[1:] == [error, "[DONE]"]


def test_a_whole_word_is_not_held_back() -> None:
    piece = chunk(content="no", role="assistant")
    piece["system_fingerprint"] = "assist"
    piece["usage"] = {"prompt_tokens": 1, "assistan": 2}
    assert streamed(answer("assistants"), encoded(piece))[0] == {
        **piece, "choices": [{**piece["choices"][0], "token_ids": None}]
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_comments_of_upstream_pass_a_filtered_stream(size: int) -> None:
    events = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("It was ", "Zor", "ro.")]
    raw = b": ping\n\n" + b"".join(encoded(event, done=False) + b": keep-alive\n\n" for event in events)
    raw += b":\r\n\r\n: " + NAME.encode() + b"\n\n: \xff\n\ndata: [DONE]\n\n"
    made = answer()
    filtered = b"".join(piece for at in range(0, len(raw), size) for piece in made.feed(raw[at : at + size]))
    assert filtered.startswith(b": ping\n\n") and filtered.count(b": keep-alive\n\n") == 3
    # What is no server's keep-alive passes without its text.
    assert filtered.count(b":\n\n") == 3 and NAME.encode() not in filtered
    assert [event.data for event in sse.Parser().feed(filtered)][-1] == "[DONE]"
