"""Errors inside a stream that answers a rewritten request, in words that don't tell what was rewritten."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import orjson

from lethe.server.errors import Dialect, UpstreamFailed
from lethe.server.output.sse import EVENT_ENDS, MAX_EVENT_BYTES, BrokenEvent, Event, Parser

JsonObject = dict[str, Any]

# The error in place of vLLM's, in the form of vLLM's.
NEUTRAL_ERROR: Final = {
    "message": "The request could not be processed.", "type": "BadRequestError", "param": None, "code": 400,
}  # fmt: skip
# What vLLM (0.32) says of every request whose engine failed: the same words whatever the request was.
SAME_FOR_ALL: Final = frozenset({
    "Internal server error",
    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
})  # fmt: skip
# What every event with an error has in it. Quotes within a string are escaped, so that no text of an answer matches.
_ERROR_MARK: Final = re.compile(rb'"error"|^event: ?error', re.MULTILINE)
_AFTER_EVENT: Final = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)|(?<=\r\r)")


class NeutralErrors:
    """Replaces the errors of one stream; all other bytes stay as they are.

    dialect: the form of the new error. on_error: called for each that is replaced. The bytes of an event pass when it
    is complete.
    """

    def __init__(self, dialect: Dialect, on_error: Callable[[], None]) -> None:
        self._dialect = dialect
        self._on_error = on_error
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that may be sent now. Raises UpstreamFailed for an event that is too long."""
        data = self._rest + chunk
        complete = max(data.rfind(end) + len(end) if end in data else 0 for end in EVENT_ENDS)
        self._rest = data[complete:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise UpstreamFailed("the model server broke off the stream", code="broken")
        return self._replace_errors(data[:complete])

    def end(self) -> bytes:
        """The rest, once the stream has ended: some clients also read an event without its last empty line."""
        rest, self._rest = self._rest, b""
        return self._replace_errors(rest)

    def _replace_errors(self, data: bytes) -> bytes:
        if not _ERROR_MARK.search(data):
            return data
        events = _AFTER_EVENT.split(data)
        return b"".join(self._replace_error(event) if _ERROR_MARK.search(event) else event for event in events)

    def _replace_error(self, raw: bytes) -> bytes:
        """The bytes in place of an event that has the mark. One that can't be read counts as an error."""
        value: Any = None
        try:
            event = next(Parser().feed(raw + b"\n\n"), None)
            if event is None:
                return raw
            value = orjson.loads(event.data)
        except (BrokenEvent, orjson.JSONDecodeError):
            event = Event("", "error")
        fields = value if isinstance(value, dict) else {}
        response = fields.get("response")
        if isinstance(response, dict) and (error := response.get("error")):
            words = {"code": "server_error", "message": NEUTRAL_ERROR["message"]}
            neutral = {**fields, "response": {**response, "error": words}}
        elif error := fields.get("error"):
            neutral = self._neutral_event(fields)
        elif event.name == "error" or fields.get("type") == "error" or value is not fields:
            error, neutral = fields, self._neutral_event(fields)
        else:
            return raw
        message = error.get("message") if isinstance(error, dict) else None
        if isinstance(message, str) and message in SAME_FOR_ALL:
            return raw
        self._on_error()
        return Event(orjson.dumps(neutral).decode(), event.name).encode()

    def _neutral_event(self, fields: JsonObject) -> JsonObject:
        """The event in place of one that is an error. fields: of upstream's event."""
        message = NEUTRAL_ERROR["message"]
        if self._dialect == "anthropic":
            return {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
        if self._dialect == "responses":
            number = fields.get("sequence_number")
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            # As in `errors.error_event`: the documented event has the fields at its top level.
            return {**error, "type": "error", "sequence_number": number if type(number) is int else 0, "error": error}
        return {"error": NEUTRAL_ERROR}
