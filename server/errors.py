"""The errors that end a request, and their bodies for OpenAI and Anthropic clients.

    GatewayError
    ├── BadRequest        400  invalid fields, JSON or sizes
    ├── Refused           400  a policy refused the request, and says `refuse.as: error`
    ├── Unauthorized      401  missing or unknown API key
    ├── NotFound          404  unknown route, or a model that the key may not use
    ├── TooSlow           408  the request did not arrive in time
    ├── TooLarge          413  the body exceeds its limit
    │   ├── UrlTooLong    414
    │   └── HeadTooLarge  431  URL and headers exceed their limit
    ├── RateLimited       429  the key's limits are reached
    ├── UpstreamFailed    502  vLLM can't be reached, or closed the connection too early
    ├── Overloaded        503  the gateway's limits are reached
    ├── UpstreamDown      503  no available replica can answer
    └── UpstreamTimeout   504  vLLM sent nothing in time

A decision of the guard is never a 5xx: the official clients retry those automatically.
"""

from __future__ import annotations

import math
import re
import secrets
from typing import Any, ClassVar, Final, Literal

import orjson

Dialect = Literal["openai", "responses", "anthropic"]

# The error type of each status in Anthropic's API (its documentation, "Errors").
ANTHROPIC_KINDS: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 414: "request_too_large", 429: "rate_limit_error", 431: "request_too_large",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip

# The code by which OpenAI's clients know that a prompt is too long.
TOO_LONG: Final = "context_length_exceeded"
# Characters of a token, to state a limit in characters in tokens. A usual rule of thumb for English.
CHARACTERS_PER_TOKEN: Final = 4
# How vLLM's messages say that a prompt is too long (0.11 to 0.33): the numbers of tokens of prompt and limit.
_TOO_LONG_MESSAGES: Final = (
    re.compile(r"maximum context length is (?P<max>\d+) tokens\. However, your (?:prompt|request) (?:contains|has) "
               r"(?:at least )?(?P<tokens>\d+) input tokens"),
    re.compile(r"maximum context length is (?P<max>\d+) tokens\. However, your prompt contains (?P<characters>\d+) "
               r"characters \(more than (?P<max_characters>\d+) characters"),
    re.compile(r"maximum context length is (?P<max>\d+) tokens\. However, you requested (?P<tokens>\d+) tokens"),
    re.compile(r"Input length \((?P<tokens>\d+)\) exceeds model's maximum context length \((?P<max>\d+)\)"),
    re.compile(r"prompt \((?:total )?length (?P<tokens>\d+)\).{0,80} longer than the maximum model length of "
               r"(?P<max>\d+)"),
)  # fmt: skip
# Prompt and answer together are too long: vLLM's words, and Anthropic's.
_NO_ROOM: Final = re.compile(
    r"(?P<answer>\d+)\. This model's maximum context length is (?P<max>\d+) tokens and your request has "
    r"(?P<tokens>\d+) input tokens"
)
# Characters of an upstream error message that are repeated to the client. Chosen: several lines.
MAX_MESSAGE_CHARS: Final = 2000
# Only matches a JSON key: inside a string its quotation marks would be escaped.
_SEQUENCE_NUMBER: Final = re.compile(rb'(?<!\\)"sequence_number":\s*(\d{1,18})')


class GatewayError(Exception):
    """The base of all errors that the gateway answers with."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """retry_after_s: seconds after which a retry makes sense; sent as whole seconds, rounded up."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


class BadRequest(GatewayError):
    status = 400
    kind = "invalid_request_error"


class Unreadable(BadRequest):
    """What the gateway can't read, and vLLM may refuse in its own words, which the client then gets.

    body: the parsed body, where it can't be serialised again.
    """

    body: dict[str, Any] | None = None


class PromptTooLong(BadRequest):
    """The prompt is longer than the model, or the gateway, reads. Agents that know it by its words shorten the prompt.

    tokens, max_tokens: of the prompt, if known, and of what is read at most.
    """

    def __init__(
        self,
        message: str,
        *,
        tokens: int | None = None,
        max_tokens: int = 0,
        param: str | None = None,
        code: str = TOO_LONG,
    ) -> None:
        super().__init__(message, param=param, code=code)
        # In this form Claude Code recognises it; the second number must be smaller.
        self.anthropic_message = (
            message
            if tokens is None
            else f"prompt is too long: {max(tokens, max_tokens + 1)} tokens > {max_tokens} maximum"
        )

    @staticmethod
    def in_characters(characters: int, max_characters: int) -> PromptTooLong:
        """The gateway's own limit, which counts characters."""
        tokens, max_tokens = math.ceil(characters / CHARACTERS_PER_TOKEN), max_characters // CHARACTERS_PER_TOKEN
        message = (
            f"This model's maximum context length is {max_tokens} tokens. However, your prompt has {characters} "
            f"characters, about {tokens} tokens; at most {max_characters} characters are judged "
            "(LETHE_MAX_PROMPT_CHARS). Please reduce the length of the prompt."
        )
        return PromptTooLong(
            message, tokens=tokens, max_tokens=max_tokens, param="messages", code="context_length_exceeded"
        )


class Unauthorized(GatewayError):
    status = 401
    kind = "authentication_error"


class NotFound(GatewayError):
    status = 404
    kind = "invalid_request_error"


class TooSlow(GatewayError):
    status = 408
    kind = "timeout_error"
    retryable = True


class TooLarge(GatewayError):
    status = 413
    kind = "invalid_request_error"


class UrlTooLong(TooLarge):
    status = 414


class HeadTooLarge(TooLarge):
    status = 431


class RateLimited(GatewayError):
    status = 429
    kind = "rate_limit_error"
    retryable = True


class Refused(GatewayError):
    """A policy refused the request. as_answer: the client gets an ordinary answer that says so, not an error.

    failed_stage, failure: where the guard failed and why, if the refusal stands in for what it could not do. They are
    for the audit trail; the client is told neither.
    400 and not 403, which agents read as a broken login, and retry.
    """

    status = 400
    kind = "policy_error"

    def __init__(
        self, message: str, *, as_answer: bool = False, param: str | None = None, code: str = "refused_by_policy"
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.as_answer = as_answer
        self.failed_stage: str | None = None
        self.failure: str | None = None


class UpstreamFailed(GatewayError):
    status = 502
    kind = "upstream_error"
    retryable = True


class Overloaded(GatewayError):
    status = 503
    kind = "overloaded_error"
    retryable = True


class UpstreamDown(GatewayError):
    status = 503
    kind = "upstream_error"
    retryable = True


class UpstreamTimeout(GatewayError):
    status = 504
    kind = "upstream_error"
    retryable = True


# The OpenAI error type of an upstream error without a type of its own, where the status alone doesn't decide.
OPENAI_KINDS: Final = {error.status: error.kind for error in (Unauthorized, TooSlow, RateLimited)}


def dialect_of(path: str) -> Dialect:
    """The API whose error bodies the clients of a route expect."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "responses" if path.startswith("/v1/responses") else "openai"


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def id_headers(request_id: str, dialect: Dialect) -> list[tuple[bytes, bytes]]:
    """The request id in the headers in which the clients of the route look for it."""
    headers = [(b"x-request-id", request_id.encode())]
    return [*headers, (b"request-id", request_id.encode())] if dialect == "anthropic" else headers


def error_response(
    error: GatewayError, path: str, request_id: str | None = None
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an error response for the clients of `path`. request_id: None makes a new one."""
    request_id, dialect = request_id or new_request_id(), dialect_of(path)
    body = error_body(error, dialect, request_id)
    length = (b"content-length", str(len(body)).encode())
    return [*error_headers(error), length, *id_headers(request_id, dialect)], body


def error_body(error: GatewayError, dialect: Dialect = "openai", request_id: str | None = None) -> bytes:
    """The JSON body: OpenAI's, always with all four keys, or Anthropic's."""
    if dialect == "anthropic":
        message = error.anthropic_message if isinstance(error, PromptTooLong) else error.message
        return _anthropic_body(error.status, message, request_id)
    return orjson.dumps({"error": _openai_fields(error)})


def _anthropic_body(status: int, message: str, request_id: str | None) -> bytes:
    kind = ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})


def translate_upstream_error(status: int, raw: bytes, dialect: Dialect, request_id: str) -> bytes | None:
    """The body of an upstream error in the route's dialect; None if `raw` has that form already.

    vLLM answers errors of its web framework in the framework's form, and uses OpenAI's form on Anthropic's routes;
    a proxy between gateway and vLLM has forms of its own.
    """
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        parsed = None
    body = parsed if isinstance(parsed, dict) else {}
    error = body["error"] if isinstance(body.get("error"), dict) else {}
    if status == BadRequest.status and (
        too_long := _too_long_body(_message_in(body, error), error, dialect, request_id)
    ):
        return too_long
    if _has_form(body, error, dialect):
        return None
    message = _message_in(body, error) or f"upstream returned status {status}"
    if dialect == "anthropic":
        return _anthropic_body(status, message, request_id)
    kind = OPENAI_KINDS.get(status, BadRequest.kind if status < 500 else UpstreamFailed.kind)
    param, code = (value if isinstance(value := error.get(key), str) else None for key in ("param", "code"))
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _too_long_body(message: str, error: dict[str, Any], dialect: Dialect, request_id: str) -> bytes | None:
    """The error body for vLLM's message that a prompt is too long, in the words of the dialect; None for any other."""
    no_room = _NO_ROOM.search(message)
    matches = (pattern.search(message) for pattern in _TOO_LONG_MESSAGES)
    match = no_room or next((match for match in matches if match), None)
    if match is None:
        return None
    numbers = {name: int(value) for name, value in match.groupdict().items()}
    param = error.get("param")
    param = param if isinstance(param, str) else None
    if no_room and dialect == "anthropic":
        message = (
            f"input length and `max_tokens` exceed context limit: {numbers['tokens']} + {numbers['answer']} > "
            f"{numbers['max']}, decrease input length or `max_tokens` and try again"
        )
        return _anthropic_body(BadRequest.status, message, request_id)
    if "characters" in numbers:
        numbers["tokens"] = numbers["characters"] * numbers["max"] // max(numbers["max_characters"], 1)
    return error_body(
        PromptTooLong(message, tokens=numbers["tokens"], max_tokens=numbers["max"], param=param), dialect, request_id
    )


def message_of(raw: bytes) -> str:
    """The message of an error body of any form; "" where it has none."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    body = body if isinstance(body, dict) else {}
    return _message_in(body, body["error"] if isinstance(body.get("error"), dict) else {})


def _message_in(body: dict[str, Any], error: dict[str, Any]) -> str:
    candidates = (error.get("message"), body.get("message"), body.get("detail"), body.get("error"))
    return next((text for text in candidates if isinstance(text, str) and text), "")[:MAX_MESSAGE_CHARS]


def _has_form(body: dict[str, Any], error: dict[str, Any], dialect: Dialect) -> bool:
    """Whether an error body has the form of the dialect."""
    if not (isinstance(error.get("message"), str) and isinstance(error.get("type"), str)):
        return False
    if dialect == "anthropic":
        return body.get("type") == "error"
    return {"message", "type", "param", "code"} <= set(error)


def error_event(
    error: GatewayError, dialect: Dialect = "openai", request_id: str | None = None, last: bytes = b""
) -> bytes:
    """The error as a server-sent event, for a stream that has already started.

    last: the last bytes sent, from which the event's sequence number follows in the Responses API.
    """
    name, data = b"", error_body(error, dialect, request_id)
    if dialect != "openai":
        name = b"event: error\n"
    if dialect == "responses":
        sent = _SEQUENCE_NUMBER.findall(last)
        number = int(sent[-1]) + 1 if sent else 0
        fields = _openai_fields(error)
        # The documented event has the fields at its top level; the official client also reads `error`.
        data = orjson.dumps({**fields, "type": "error", "sequence_number": number, "error": fields})
    # The stream may have stopped within a line; clients ignore an additional empty line between events.
    return b"\n\n" + name + b"data: " + data + b"\n\n"


def _openai_fields(error: GatewayError) -> dict[str, str | None]:
    return {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}


def error_headers(error: GatewayError) -> list[tuple[bytes, bytes]]:
    """Headers of an error response, without length and request id."""
    headers = [
        (b"content-type", b"application/json"),
        (b"x-should-retry", b"true" if error.retryable else b"false"),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
