"""Error statuses, bodies, headers and events for OpenAI and Anthropic clients."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.server import errors
from lethe.server.errors import (
    BadRequest,
    GatewayError,
    HeadTooLarge,
    NotFound,
    Overloaded,
    PromptTooLong,
    RateLimited,
    Refused,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unreadable,
    UpstreamDown,
    UpstreamFailed,
    UpstreamTimeout,
    UrlTooLong,
)

TABLE = [
    (GatewayError, 500, "server_error", False),
    (BadRequest, 400, "invalid_request_error", False),
    (Unauthorized, 401, "authentication_error", False),
    (NotFound, 404, "invalid_request_error", False),
    (TooSlow, 408, "timeout_error", True),
    (TooLarge, 413, "invalid_request_error", False),
    (UrlTooLong, 414, "invalid_request_error", False),
    (HeadTooLarge, 431, "invalid_request_error", False),
    (RateLimited, 429, "rate_limit_error", True),
    (Refused, 400, "policy_error", False),
    (UpstreamFailed, 502, "upstream_error", True),
    (Overloaded, 503, "overloaded_error", True),
    (UpstreamDown, 503, "upstream_error", True),
    (UpstreamTimeout, 504, "upstream_error", True),
]


@pytest.mark.parametrize(("kind", "status", "named", "retryable"), TABLE)
def test_status_body_and_headers_of_every_error(
    kind: type[GatewayError], status: int, named: str, retryable: bool
) -> None:
    error = kind("what happened", param="messages", code="some_code")
    assert (error.status, error.retryable, str(error)) == (status, retryable, "what happened")
    assert json.loads(errors.error_body(error)) == {
        "error": {"message": "what happened", "type": named, "param": "messages", "code": "some_code"}
    }
    own = {b"www-authenticate": b"Bearer"} if kind is Unauthorized else {}
    assert dict(errors.error_headers(error)) == own | {
        b"content-type": b"application/json",
        b"x-should-retry": b"true" if retryable else b"false",
    }


def test_the_table_is_complete() -> None:
    # A BadRequest of its own words, which has a test of its own.
    kinds = {GatewayError, *GatewayError.__subclasses__(), *TooLarge.__subclasses__()} - {PromptTooLong, Unreadable}
    assert {row[0] for row in TABLE} == {kind for kind in kinds if kind.__module__ == errors.__name__}


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, b"1"), (1.0, b"1"), (1.2, b"2"), (59.001, b"60")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, expected: bytes) -> None:
    assert dict(errors.error_headers(RateLimited("wait", retry_after_s=seconds)))[b"retry-after"] == expected


def test_guard_decisions_have_statuses_that_are_not_retried() -> None:
    """The official clients retry 408, 409, 429 and 5xx automatically."""
    for kind in (BadRequest, NotFound, TooLarge, Refused):
        assert 400 <= kind.status < 500 and kind.status not in (408, 409, 429)


def test_the_body_has_all_four_keys_without_param_and_code() -> None:
    assert json.loads(errors.error_body(BadRequest("no")))["error"].keys() == {"message", "type", "param", "code"}


def test_an_error_in_a_stream_is_one_event() -> None:
    error = UpstreamFailed("line\nbreak\n\ndata: x")
    event = errors.error_event(error)
    assert event == b"\n\ndata: " + errors.error_body(error) + b"\n\n"
    assert event.strip().count(b"\n") == 0


@pytest.mark.parametrize(("path", "dialect"), [
    ("/v1/messages", "anthropic"), ("/v1/messages/count_tokens", "anthropic"), ("/v1/responses", "responses"),
    ("/v1/responses/resp_1", "responses"), ("/v1/chat/completions", "openai"), ("/score", "openai"),
])  # fmt: skip
def test_each_route_has_a_dialect(path: str, dialect: str) -> None:
    assert errors.dialect_of(path) == dialect


def all_error_classes() -> list[type[GatewayError]]:
    """GatewayError and all its subclasses."""
    classes: list[type[GatewayError]] = []
    todo = [GatewayError]
    while todo:
        classes.append(todo.pop())
        todo += classes[-1].__subclasses__()
    return classes


def test_the_anthropic_client_parses_every_error() -> None:
    from anthropic.types import ErrorResponse

    for kind in all_error_classes():
        error = kind("what happened", param="messages", code="some_code")
        body = json.loads(errors.error_body(error, "anthropic", "req-1"))
        assert body["type"] == "error" and body["request_id"] == "req-1"
        assert set(body["error"]) == {"type", "message"} and body["error"]["message"] == "what happened"
        if error.status not in (413, 414, 431):
            # Anthropic documents these types, but its client has no classes for them.
            read = ErrorResponse.model_validate(body).error
            assert (read.type == "api_error") == (kind.status in (500, 502))
        lines = errors.error_event(error, "anthropic", "req-1").strip().split(b"\n")
        assert lines == [b"event: error", b"data: " + errors.error_body(error, "anthropic", "req-1")]


def test_the_openai_client_parses_an_error_event_of_responses() -> None:
    from openai.types.responses import ResponseErrorEvent

    error = UpstreamFailed("gone", code="broken")
    name, data = errors.error_event(error, "responses").strip().split(b"\n")
    body = json.loads(data.removeprefix(b"data: "))
    assert (
        name == b"event: error"
        and body["sequence_number"] == 0
        and body["error"] == json.loads(errors.error_body(error, "responses"))["error"]
    )
    read = ResponseErrorEvent.model_validate(body, strict=True)
    assert (read.type, read.code, read.message, read.param) == ("error", "broken", "gone", None)


@pytest.mark.parametrize(("last", "number"), [
    (b'data: {"delta":"a","sequence_number":7,"type":"x"}\n\ndata: {"sequence_number": 8, "type', 9),
    (b'data: {"delta":"\\"sequence_number\\":99","sequence_number":7}\n\n', 8),
    (b"data: {}", 0),
])  # fmt: skip
def test_an_error_event_continues_the_sequence_numbers(last: bytes, number: int) -> None:
    data = errors.error_event(UpstreamFailed("gone"), "responses", last=last).strip().split(b"data: ")[1]
    assert json.loads(data)["sequence_number"] == number


@pytest.mark.parametrize(("path", "names"), [
    ("/v1/chat/completions", {b"x-request-id"}), ("/v1/messages", {b"x-request-id", b"request-id"}),
])  # fmt: skip
def test_an_error_response_has_the_routes_request_id_headers(path: str, names: set[bytes]) -> None:
    headers, body = errors.error_response(Refused("no"), path)
    ids = {name: value for name, value in headers if name.endswith(b"request-id")}
    assert ids.keys() == names and len(set(ids.values())) == 1
    assert dict(headers)[b"content-length"] == str(len(body)).encode()
    assert errors.error_response(Refused("no"), path)[0] != headers


OURS = b'{"error": {"message":"m", "type":"BadRequestError", "param":"temperature", "code":400}}'
THEIRS = b'{"type":"error","error":{"type":"NotFoundError","message":"m"}}'


def test_upstream_errors_in_the_routes_dialect_are_unchanged() -> None:
    assert (
        errors.translate_upstream_error(400, OURS, "openai", "r")
        is errors.translate_upstream_error(400, OURS, "responses", "r")
        is None
    )
    assert errors.translate_upstream_error(404, THEIRS, "anthropic", "r") is None


@pytest.mark.parametrize(("status", "raw", "expected"), [
    (404, b'{"detail":"Not Found"}', ("Not Found", "invalid_request_error", None, None)),
    (401, b'{"error":"Unauthorized"}', ("Unauthorized", "authentication_error", None, None)),
    (400, b'{"error":{"message":"m","code":"c","param":"p"}}', ("m", "invalid_request_error", "p", "c")),
    (400, b'{"error":{"message":"m","type":"t","param":1}}', ("m", "invalid_request_error", None, None)),
    (400, b'{"message":"m"}', ("m", "invalid_request_error", None, None)),
    (404, THEIRS, ("m", "invalid_request_error", None, None)),
    (500, b"Internal Server Error", ("upstream returned status 500", "upstream_error", None, None)),
    (502, b"<html>bad</html>", ("upstream returned status 502", "upstream_error", None, None)),
    (502, b'["x"]', ("upstream returned status 502", "upstream_error", None, None)),
    (422, b'{"detail":[1]}', ("upstream returned status 422", "invalid_request_error", None, None)),
    (429, b"\xff", ("upstream returned status 429", "rate_limit_error", None, None)),
])  # fmt: skip
def test_other_upstream_errors_are_translated_to_openais_form(
    status: int, raw: bytes, expected: tuple[str, str, str | None, str | None]
) -> None:
    translated = errors.translate_upstream_error(status, raw, "openai", "r")
    assert translated is not None
    assert json.loads(translated) == {"error": dict(zip(("message", "type", "param", "code"), expected, strict=True))}
    assert errors.translate_upstream_error(status, translated, "openai", "r") is None


@pytest.mark.parametrize(("status", "raw", "kind"), [
    (400, OURS, "invalid_request_error"), (404, b'{"detail":"m"}', "not_found_error"), (500, OURS, "api_error"),
])  # fmt: skip
def test_other_upstream_errors_are_translated_to_anthropics_form(status: int, raw: bytes, kind: str) -> None:
    translated = errors.translate_upstream_error(status, raw, "anthropic", "r")
    assert translated is not None
    assert json.loads(translated) == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "r"}
    assert errors.translate_upstream_error(status, translated, "anthropic", "r") is None


def test_upstream_messages_are_cut_at_the_maximum_length() -> None:
    translated = errors.translate_upstream_error(500, json.dumps({"message": "a" * 10_000}).encode(), "openai", "r")
    assert translated is not None and json.loads(translated)["error"]["message"] == "a" * errors.MAX_MESSAGE_CHARS


# vLLM's messages, by the module that has them; {n}: tokens of the prompt, {m}: the model's maximum.
TOO_LONG = [
    # renderers/params.py
    "This model's maximum context length is {m} tokens. However, your prompt contains {n} input tokens, which exceeds "
    "this limit even without any output tokens. Please reduce the length of the input prompt.",
    "This model's maximum context length is {m} tokens. However, your prompt contains at least {n} input tokens, which "
    "exceeds this limit even without any output tokens.",
    # entrypoints/serve/utils/api_utils.py
    "Input length ({n}) exceeds model's maximum context length ({m}).",
    # v1/engine/input_processor.py
    "The decoder prompt (length {n}) is longer than the maximum model length of {m}. Make sure that `max_model_len` is "
    "no smaller than the number of text tokens.",
    "The decoder prompt (length {n}) plus the number of requested output tokens (at least 1) is longer than the "
    "maximum model length of {m}. Make sure",
    # of 0.11 and earlier
    "This model's maximum context length is {m} tokens. However, you requested {n} tokens (1 in the messages, 2 in the "
    "completion). Please reduce the length of the messages or completion.",
    "This model's maximum context length is {m} tokens. However, your request has {n} input tokens.",
]


@given(st.sampled_from(TOO_LONG), st.integers(1, 10**7), st.integers(0, 10**7), st.sampled_from([None, "input_tokens"]))
def test_upstreams_words_on_a_long_prompt_are_the_clients(text: str, limit: int, more: int, param: str | None) -> None:
    message = text.format(n=limit + more, m=limit)
    openai = {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}
    anthropic = {"type": "error", "error": {"type": "BadRequestError", "message": message}}
    for raw in (json.dumps(openai).encode(), json.dumps(anthropic).encode()):
        for dialect in ("openai", "responses"):
            translated = errors.translate_upstream_error(400, raw, dialect, "r")
            assert translated is not None
            error = json.loads(translated)["error"]
            assert (error["code"], error["type"], error["message"]) == (
                "context_length_exceeded", "invalid_request_error", message)  # fmt: skip
        translated = errors.translate_upstream_error(400, raw, "anthropic", "r")
        assert translated is not None
        body = json.loads(translated)
        found = re.fullmatch(r"prompt is too long: (\d+) tokens > (\d+) maximum", body["error"]["message"])
        assert found is not None and body["error"]["type"] == "invalid_request_error" and body["type"] == "error"
        assert int(found[1]) > int(found[2]) == limit and int(found[1]) in (limit + more, limit + 1)


def test_a_prompt_counted_in_characters_is_told_in_tokens() -> None:
    message = (
        "This model's maximum context length is 1000 tokens. However, your prompt contains 90000 characters (more than "
        "8000 characters, which is the upper bound for 1000 input tokens). Please reduce"
    )
    translated = errors.translate_upstream_error(400, json.dumps({"message": message}).encode(), "anthropic", "r")
    assert translated is not None and b"prompt is too long: 11250 tokens > 1000 maximum" in translated
    own = PromptTooLong.in_characters(10_001, 10_000)
    assert b"prompt is too long: 2501 tokens > 2500 maximum" in errors.error_body(own, "anthropic")
    error = json.loads(errors.error_body(own))["error"]
    assert error["code"] == "context_length_exceeded" and "maximum context length is 2500 tokens" in error["message"]


def test_no_room_for_the_answer_is_told_in_anthropics_words() -> None:
    message = (
        "'max_tokens' or 'max_completion_tokens' is too large: 900. This model's maximum context length is 1000 tokens "
        "and your request has 200 input tokens (900 > 1000 - 200)."
    )
    raw = json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}).encode()
    translated = errors.translate_upstream_error(400, raw, "anthropic", "r")
    assert translated is not None and b"exceed context limit: 200 + 900 > 1000, decrease" in translated
    assert (
        json.loads(errors.translate_upstream_error(400, raw, "openai", "r") or b"")["error"]["code"] == errors.TOO_LONG
    )


def test_other_statuses_and_words_are_no_long_prompts() -> None:
    for status, message in [(500, TOO_LONG[2]), (400, "maximum context length"), (400, "Input length (x)")]:
        raw = json.dumps({"error": {"message": message, "type": "t", "param": None, "code": 400}}).encode()
        assert errors.translate_upstream_error(status, raw, "openai", "r") is None
