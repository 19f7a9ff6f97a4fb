"""What can go wrong with a request, and how it reads to an OpenAI client.

    GuardError
    ├── BadRequest        400  the client's fault: fields, JSON, sizes
    ├── NotFound          404  a route that is not served
    ├── TooLarge          413  body over the limit
    ├── Refused           403  a policy's decision
    ├── UpstreamFailed    502  vLLM can't be reached, or broke off
    └── UpstreamTimeout   504  vLLM was silent for too long

A decision of the guard is never a 5xx: official clients retry those by themselves.
"""

from __future__ import annotations

from typing import ClassVar

import orjson


class GuardError(Exception):
    """An error that is answered with the OpenAI error body: message, type, param, code."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class BadRequest(GuardError):
    status = 400
    kind = "invalid_request_error"


class NotFound(GuardError):
    status = 404
    kind = "invalid_request_error"


class TooLarge(GuardError):
    status = 413
    kind = "invalid_request_error"


class Refused(GuardError):
    status = 403
    kind = "policy_error"


class UpstreamFailed(GuardError):
    status = 502
    kind = "upstream_error"
    retryable = True


class UpstreamTimeout(GuardError):
    status = 504
    kind = "upstream_error"
    retryable = True


def body(error: GuardError) -> bytes:
    """The OpenAI error body; all four keys are always there."""
    return orjson.dumps(
        {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}
    )


def event(error: GuardError) -> bytes:
    """The same as a server-sent event, for a stream that has already begun."""
    # The stream may have broken off within a line; a blank line more between events is ignored.
    return b"\n\ndata: " + body(error) + b"\n\n"


def headers(error: GuardError) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"x-should-retry", b"true" if error.retryable else b"false"),
    ]
