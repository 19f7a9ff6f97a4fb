"""Whole requests of any kind against the running gateway: no 5xx, errors in shape, bytes unchanged, nothing past it."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lethe.corruption.prompt.message_parts import TEXT_PARTS
from lethe.server.errors import BadRequest
from lethe.server.requests import request_body as bodies
from lethe.server.requests.fields import REFUSED_PARTS, RELAYED, SERVER_TOOLS, TABLES
from lethe.server.requests.routes import ROUTES
from tests.fuzz.conftest import ACTIONS, FACTOR, Served
from tests.server.fakes import KEYWORD

JSON = {"content-type": "application/json"}
POSTED = [(path, endpoint) for path, _, endpoint in ROUTES if endpoint is not None]
GUARDED = [(path, endpoint) for path, endpoint in POSTED if endpoint not in RELAYED]
ROUTE = st.sampled_from(POSTED)

few = settings(max_examples=150 * FACTOR, deadline=None, suppress_health_check=list(HealthCheck))


def refused_code(path: str) -> str:
    """What `checked` says of a refusal; Anthropic's errors have no code."""
    return "" if path.startswith("/v1/messages") else "refused_by_policy"


def checked(served: Served, path: str, raw: bytes, headers: dict[str, str] = JSON) -> tuple[int, str]:
    """Status and error code of one request, after what holds of every one."""
    status, told, answer = served.ask(path, raw, headers)
    up = served.sent()
    if asked_first := up[:1] == [raw] and up != [answer]:
        # It may be invalid, so vLLM was asked first; the client never gets what it answers, unless that is an error.
        up = up[1:]
    assert status < 500, (status, answer)
    assert told["x-request-id"] is None or len(told["x-request-id"]) <= 128
    if status == 200:
        # The echo: either the bytes that came, or a body that was written anew.
        assert up == [answer]
        return status, ""
    assert up == [] and told["x-should-retry"] == "false" and told["content-type"] == "application/json"
    error = orjson.loads(answer)["error"]
    if path.startswith("/v1/messages"):
        assert set(orjson.loads(answer)) == {"type", "error", "request_id"} and set(error) == {"type", "message"}
        return status, ""
    assert set(error) == {"message", "type", "param", "code"}
    assert not (asked_first and error["code"] == "refused_by_policy")
    assert isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)
    return status, str(error["code"])


# Any bytes

HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "application/json; charset=utf-8", "text/plain", "a/b;c"])
        | st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_categories=["Cc"]), max_size=20),
        "content-encoding": st.sampled_from(["gzip", "identity", "br", "", "deflate, gzip"]),
        "x-request-id": st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=["Cc"])),
        "accept": st.sampled_from(["*/*", "text/event-stream", "\xff"]),
    },
)


@few
@given(ROUTE, st.binary(max_size=300), HEADERS)
def test_any_bytes_under_any_headers_get_an_answer(
    served: Served, route: tuple[str, Any], raw: bytes, headers: dict[str, str]
) -> None:
    status, _ = checked(served, route[0], raw, headers)
    assert status == 400 or status == 200


@few
@given(ROUTE, st.data())
def test_a_body_spoilt_anywhere_is_served_as_it_is_or_refused(
    served: Served, route: tuple[str, Any], data: st.DataObject
) -> None:
    path, endpoint = route
    raw = json.dumps(asking(endpoint, "hello", "refuse"), indent=1).encode()
    at = data.draw(st.integers(0, len(raw)))
    raw = raw[:at] + data.draw(st.binary(max_size=6) | SPOILT) + raw[at + data.draw(st.integers(0, 4)) :]
    status, code = checked(served, path, raw)
    try:
        bodies.parse(raw, max_depth=100)
    except BadRequest as error:
        assert status == 400 and (path.startswith("/v1/messages") or code == error.code)


SPOILT = st.sampled_from(
    [b"NaN", b"1e999", b"\xff", b"\xef\xbb\xbf", b'"\\ud800"', b"9" * 30, b'"model":1,', b"[" * 200]
)


# Any JSON

NAMES = sorted({name for table in TABLES.values() for group in vars(table).values() for name in group})
INSIDE = ["type", "text", "role", "content", "name", "function", "arguments", "tool_calls", "output", "data", "url",
          *REFUSED_PARTS, "chat_template", "lethe", "index", "parameters", "image_url", "input",
          "tool_use_id"]  # fmt: skip
WORDS = [*TEXT_PARTS, *SERVER_TOOLS, "user", "system", "assistant", "tool", "message", "function_call", "tool_result",
         "thinking", "image_url", "function", "<prompt_embeds>", '{"a": "\\u0062"}', "", KEYWORD]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUE: st.SearchStrategy[Any] = st.recursive(
    LEAVES | st.sampled_from(WORDS) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(INSIDE) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | VALUE},
        optional={"content": st.sampled_from(WORDS) | st.lists(VALUE, max_size=3) | VALUE, "tool_calls": VALUE},
    )
    | VALUE,
    max_size=3,
)
ANY = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUE | MESSAGES, max_size=5)


def failures(served: Served) -> float:
    return sum(served.gate.count("lethe_guard_failures_total", policy=action, stage="judge", outcome="refuse")
               for action in ACTIONS)  # fmt: skip


@settings(few, max_examples=120 * FACTOR)
@given(ROUTE, ANY, st.sampled_from(ACTIONS) | VALUE)
@example(("/v1/responses", "responses"), {"input": [[]]}, "both")
def test_any_json_is_passed_as_it_came_or_refused(
    served: Served, route: tuple[str, Any], body: dict[str, Any], model: Any
) -> None:
    """Under every action, and without the guard ever failing on what a client made up."""
    path, endpoint = route
    raw = json.dumps({**body, "model": model}).encode("utf-8", "surrogatepass")
    status, _, answer = served.ask(path, raw, JSON)
    up = served.sent()
    if up[:1] == [raw] and up != [answer]:
        # It may be invalid, so vLLM was asked first. Where it is refused because it can't be rewritten, nothing of what
        # vLLM answered is passed on.
        assert b"refused_by_policy" not in answer or (raw not in answer and not up[1:])
        up = up[1:]
    assert status in (200, 400), answer
    assert failures(served) == 0
    if KEYWORD.encode() not in raw and status == 200:
        assert up == [raw] and answer == raw
    if endpoint in RELAYED:
        assert b"refused_by_policy" not in answer and up in ([], [raw])


# Text in every place, noise around


def asking(endpoint: str, text: str, model: str) -> dict[str, Any]:
    """The least request."""
    if endpoint == "batch":
        return {"model": model, "messages": [[{"role": "user", "content": text}]]}
    if endpoint in ("chat", "messages", "count_tokens"):
        return {"model": model, "messages": [{"role": "user", "content": text}]}
    return {"model": model, "prompt" if endpoint == "completions" else "input": text}


def placed(endpoint: str, text: str) -> list[dict[str, Any]]:
    """Requests that hold the text in one place each: messages in every form, and every field that is read."""
    parts = [{"type": kind, key: text} for kind, key in TEXT_PARTS.items()]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"q": text})}}
    escaped = {"function": {"name": "f", "arguments": '{"q": "' + "".join(f"\\u{ord(c):04x}" for c in text) + '"}'}}
    contents = [text, [text], *([part] for part in parts), [{"odd": {"deep": [text]}}], {"odd": text}, [[text]]]
    said: list[Any] = [{"role": "user", "content": content} for content in contents]
    said += [{"role": "user", "content": "a", key: text} for key in ("name", "reasoning", "odd", text)]
    said += [{"role": "assistant", "tool_calls": [one]} for one in (call, escaped)]
    said += [
        {"role": text, "content": "a"},
        text,
        [text],
        {"role": "tool", "content": [{"type": "text", "text": text}]},
    ]
    table = TABLES[endpoint]  # type: ignore[index]  # a guarded endpoint's name
    inside = {name: {"odd": [text]} for name in ("chat_template_kwargs", "vllm_xargs")}
    made: list[dict[str, Any]] = [
        {name: inside.get(name, value)}
        for name in sorted(table.shown | table.judged | set(table.words) | table.numeric)
        for value in (text, [text], {"type": "function", "odd": text})
    ]
    made += [{"odd": text}, {text: 1}, {"odd": [[{"deep": text}]]}]
    match endpoint:
        case "completions":
            return [*made, {"prompt": text}, {"prompt": ["a", text]}]
        case "responses":
            items = [{"type": "function_call_output", "call_id": "c", "output": text},
                     {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}]  # fmt: skip
            odd = [{"instructions": text}, {"previous_input_messages": [{"odd": text}]}, {"input": text}]
            return [*made, *odd, *({"input": ["a", one]} for one in [*said, *items])]
        case "batch":
            return [*made, *({"messages": [[], [one]]} for one in said)]
        case "messages" | "count_tokens":
            block = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": text}]}
            blocks = [block, {"type": "tool_use", "id": "c", "name": "f", "input": {"q": text}}]
            more = [{"system": text}, {"system": [{"type": "text", "text": text}]}]
            return [*made, *more, *({"messages": [{"role": "user", "content": [one]}]} for one in blocks),
                    *({"messages": [one]} for one in said)]  # fmt: skip
    return [*made, *({"messages": [one]} for one in said)]


PLACES = [(path, at) for path, endpoint in GUARDED for at in range(len(placed(endpoint, KEYWORD)))]
KEYS = {path: endpoint for path, endpoint in GUARDED}


@settings(few, max_examples=150 * FACTOR)
@given(st.sampled_from(PLACES), ANY, st.text(max_size=6), st.text(max_size=6), st.booleans())
def test_a_forget_question_is_flagged_in_every_place(
    served: Served, place: tuple[str, int], noise: dict[str, Any], before: str, after: str, escaped: bool
) -> None:
    path, at = place

    def status(text: str) -> tuple[int, str]:
        body = {**noise, **placed(KEYS[path], text)[at], "model": "refuse"}
        raw = json.dumps(body, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
        return checked(served, path, raw)

    plain = json.dumps(noise).casefold()
    if KEYWORD in plain:
        return
    without = status("hello")
    asked = status(before + KEYWORD.title() + after)
    # Where the request is served at all, the word makes the difference.
    assert asked == ((400, refused_code(path)) if without[0] == 200 else without)


@pytest.mark.parametrize(("path", "endpoint"), GUARDED)
def test_without_noise_every_place_is_served_and_flagged(served: Served, path: str, endpoint: str) -> None:
    """Else the test above could hold for want of anything that is served."""
    for plain, asked in zip(placed(endpoint, "hello"), placed(endpoint, f"About {KEYWORD}."), strict=True):
        for body, status in ((plain, (200, "")), (asked, (400, refused_code(path)))):
            raw = orjson.dumps({**body, "model": "refuse"})
            assert (checked(served, path, raw), body) == (status, body)


# What two parsers could read differently, on every route


def differing(raw: bytes) -> list[tuple[str, bytes]]:
    """Code → the same request in a form that is refused for it."""
    text = raw.decode()
    return [
        ("duplicate_key", b'{"x": 1, "\\u0078": 1,' + raw[1:]),
        ("duplicate_key", b'{"x": [{"y": {"a": 1, "a": 1}}],' + raw[1:]),
        ("invalid_json", b"\xef\xbb\xbf" + raw),
        ("invalid_json", b'{"x": NaN,' + raw[1:]),
        ("invalid_json", b'{"x": -Infinity,' + raw[1:]),
        ("invalid_json", b'{"x": 1e999,' + raw[1:]),
        ("invalid_json", b'{"x": 18446744073709551616,' + raw[1:]),
        ("invalid_json", b'{"x": ' + b"9" * 5000 + b"," + raw[1:]),
        ("invalid_json", b'{"x": "\\ud800",' + raw[1:]),
        ("invalid_json", b'{"\\udfff": 1,' + raw[1:]),
        ("invalid_json", raw + raw),
        ("invalid_json", raw + b"x"),
        ("invalid_json", raw + b"\x00"),
        ("invalid_json", b"[" + raw + b"]"),
        ("invalid_json", b""),
        ("invalid_json", raw[:-1] + b",}"),
        ("invalid_json", b"// note\n" + raw),
        ("invalid_utf8", b'{"x": "\xff",' + raw[1:]),
        ("invalid_utf8", b'{"x": "\xed\xa0\x80",' + raw[1:]),
        ("invalid_utf8", text.encode("utf-16")),
        ("too_deep", b'{"x": ' + b"[" * 120 + b"]" * 120 + b"," + raw[1:]),
        ("too_deep", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"," + raw[1:]),
        ("too_many_values", b'{"x": [' + b"1," * 500_000 + b"1]," + raw[1:]),
    ]  # fmt: skip


@pytest.mark.parametrize(("path", "endpoint"), POSTED)
def test_what_could_be_read_in_two_ways_is_refused_on_every_route(served: Served, path: str, endpoint: str) -> None:
    raw = orjson.dumps(asking(endpoint, "hello", "refuse"))
    anthropic = path.startswith("/v1/messages")
    assert checked(served, path, raw) == (200, "")
    for code, changed in differing(raw):
        assert checked(served, path, changed) == (400, "" if anthropic else code), changed[:80]
    for encoding, packed in (("gzip", gzip.compress(raw)), ("deflate", zlib.compress(raw)), ("br", raw), ("", raw)):
        headers = {**JSON, "content-encoding": encoding}
        assert checked(served, path, packed, headers) == (400, "" if anthropic else "content_encoding")
    assert checked(served, path, gzip.compress(raw))[0] == 400
