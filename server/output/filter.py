"""The output filter on one answer, whole or streamed, in any API dialect. Pure: bytes in, bytes out.

Which phrases are filtered is decided by the guard; how they are found in a text is
`corruption/phrases/stream_filter.py`; which strings of the JSON are texts is `server/output/text_filter.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from lethe.corruption.phrases.stream_filter import AnswerFilter
from lethe.server.errors import UpstreamFailed
from lethe.server.output.completions import CompletionChunks, expected_choices, filter_whole_completion
from lethe.server.output.dialect import StreamDialect, UnknownDialect
from lethe.server.output.messages import EVENT_TYPES, MessageEvents
from lethe.server.output.responses import ResponseEvents, filter_response
from lethe.server.output.sse import BrokenEvent, Event, Parser, encode_comment
from lethe.server.output.text_filter import STOP_REFUSAL, JsonObject, MalformedAnswer, TextFilter

# The data of the event that ends a stream of completions.
DONE: Final = "[DONE]"
# Bytes of a whole answer, which is read before it is filtered: more than any model writes. Chosen, not measured; bounds
# memory.
MAX_WHOLE_BYTES: Final = 64 * 2**20
# Exceptions that a malformed answer can raise. All of them must end in `on_unreadable`, never in an unfiltered answer.
UNREADABLE: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
# What may be the name of an event.
EVENT_NAME = re.compile(r"[\w.]{1,100}", re.ASCII)


class ResponseFilter:
    """The output filter on the answer to one request.

    body: the request's. usage_added: only the gateway asked for usage in every chunk. on_unreadable: called with the
    reason where the answer can't be filtered; it raises what the client is answered, or returns where the policy lets
    the answer pass. `hits` counts the removed phrases by policy; `cut`: the answer ended before upstream's did.
    """

    def __init__(
        self,
        rules: AnswerFilter,
        body: JsonObject,
        on_unreadable: Callable[[str], None],
        *,
        usage_added: bool = False,
    ) -> None:
        self._rules = rules
        self.on_unreadable = on_unreadable
        self.hits: Counter[str] = Counter()
        self._parser = Parser()
        options = body.get("stream_options")
        self._chunks = CompletionChunks(
            rules,
            self.hits,
            choices=expected_choices(body),
            wants_usage=isinstance(options, dict) and bool(options.get("include_usage")),
            usage_added=usage_added,
        )
        self._responses = ResponseEvents(rules, self.hits)
        self._messages = MessageEvents(rules, self.hits)
        self._unknown = UnknownDialect(rules, self.hits)
        self._dialect: StreamDialect = self._unknown
        self._finished = False
        self.cut = False

    def whole(self, raw: bytes) -> bytes:
        """An answer that arrived whole, filtered. Raises what `on_unreadable` raises."""
        try:
            return orjson.dumps(self._filter_whole(orjson.loads(raw)))
        except UNREADABLE:
            self.on_unreadable("an answer that is not JSON of a known form")
            return raw

    def _filter_whole(self, answer: Any) -> Any:
        if isinstance(answer, dict) and isinstance(answer.get("choices"), list):
            return filter_whole_completion(answer, self._rules, self.hits)
        text_filter = TextFilter(self._rules, set(), self.hits, whole=True)
        if isinstance(answer, dict) and answer.get("object") == "response":
            return filter_response(answer, text_filter)
        filtered = text_filter.apply(answer)
        if isinstance(answer, dict) and text_filter.stopped and answer.get("type") == "message":
            filtered |= {"stop_reason": STOP_REFUSAL, "stop_sequence": None}
        return filtered

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """A stream's next bytes, filtered. Raises what `on_unreadable` raises, and UpstreamFailed."""
        try:
            for event in self._parser.feed(chunk):
                if self._finished:
                    return
                yield from self._pass_comments()
                if event.data.startswith(DONE):
                    yield from self.end()
                    yield Event(DONE).encode()
                else:
                    yield from self._filter_event(event)
            if not self._finished:
                yield from self._pass_comments()
        except BrokenEvent as error:
            self.on_unreadable(str(error))
            raise UpstreamFailed("the model server broke off the stream", code="broken") from error

    def _pass_comments(self) -> Iterator[bytes]:
        """The comments with which upstream keeps the connection open."""
        for text in self._parser.comments:
            # No model writes comments, but they are filtered like any text: one with a forbidden phrase is emptied.
            filtered = TextFilter(self._rules, set(), Counter(), whole=True).apply(text, is_word=True)
            yield encode_comment(text if filtered == text else "")
        self._parser.comments.clear()

    def end(self) -> Iterator[bytes]:
        """What may be sent now that upstream's bytes have ended."""
        if not self._finished:
            self._finished = True
            for event in self._dialect.finish():
                yield _encode_event(event, "")

    def _filter_event(self, event: Event) -> Iterator[bytes]:
        try:
            value = orjson.loads(event.data)
            if not isinstance(value, dict):
                raise MalformedAnswer("an event that is not an object")
            dialect = self._dialect = self._dialect_of(value)
            pieces = [_encode_event(filtered, event.name) for filtered in dialect.event(value)]
        except UNREADABLE:
            self.on_unreadable("an event that is not JSON of a known form")
            yield event.encode()
            return
        if dialect.ended:
            # Set before the last piece is sent: the caller closes the upstream response first.
            self._finished = self.cut = True
        yield from pieces
        if dialect.ended and isinstance(dialect, CompletionChunks | UnknownDialect):
            yield Event(DONE).encode()

    def _dialect_of(self, event: JsonObject) -> StreamDialect:
        kind = event.get("type")
        if isinstance(event.get("choices"), list):
            return self._chunks
        if isinstance(kind, str) and kind.startswith("response."):
            return self._responses
        return self._messages if isinstance(kind, str) and kind in EVENT_TYPES else self._unknown


def _encode_event(event: JsonObject, name: str) -> bytes:
    """An event as bytes, named by its own type where it has one."""
    kind = event.get("type")
    name = kind if isinstance(kind, str) else name
    return Event(orjson.dumps(event).decode(), name if EVENT_NAME.fullmatch(name) else "").encode()
