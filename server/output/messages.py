"""Anthropic's messages API: content blocks, one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from lethe.corruption.phrases.stream_filter import AnswerFilter
from lethe.server.output.dialect import StreamDialect
from lethe.server.output.text_filter import (
    STOP_REFUSAL,
    JsonObject,
    MalformedAnswer,
    TextFilter,
    TextPath,
    add_text,
    index_of,
)

EVENT_TYPES: Final = frozenset({
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop", "ping",
})  # fmt: skip


class MessageEvents(StreamDialect):
    """The events of a streamed message.

    A message that ends here reports as usage what `message_start` told of the prompt, and as output tokens the deltas
    that came, since vLLM counts them only at the end. It sends about one delta a token, and fewer where a step makes
    several tokens, so that the number is a lower bound.
    """

    def __init__(self, rules: AnswerFilter, hits: Counter[str]) -> None:
        super().__init__(rules, hits)
        self._block_filters: dict[int, TextFilter] = {}
        self._delta_types: dict[tuple[int, TextPath], Any] = {}
        self._usage: JsonObject = {}
        self._delta_count = 0

    def event(self, event: JsonObject) -> Iterator[JsonObject]:
        kind = event["type"]
        # Before anything is flushed, which may end the message.
        self._note_usage(event)
        if kind == "content_block_delta":
            self._delta_count += 1
            yield from self._filter_delta(event)
            return
        if kind == "content_block_stop":
            yield from self._flush(index_of(event))
        elif kind in ("message_delta", "message_stop"):
            for index in list(self._block_filters):
                yield from self._flush(index)
        if not self.ended:
            yield from self._filter_other(event, kind)

    def _note_usage(self, event: JsonObject) -> None:
        message = event.get("message")
        usage = message.get("usage") if isinstance(message, dict) else event.get("usage")
        if isinstance(usage, dict):
            self._usage |= {key: count for key, count in usage.items() if type(count) is int}

    def _filter_other(self, event: JsonObject, kind: str) -> Iterator[JsonObject]:
        event_filter = self._new_filter(whole=True)
        filtered: JsonObject = event_filter.apply(event)
        if event_filter.stopped:
            if kind != "message_delta":  # the message has one, which is made below
                yield filtered
            yield from self._end(index_of(event) if kind == "content_block_start" else None)
        else:
            if kind == "content_block_start":
                self._block_filters[index_of(event)] = self._new_filter()
            yield filtered

    def _filter_delta(self, event: JsonObject) -> Iterator[JsonObject]:
        index, delta = index_of(event), event.get("delta")
        if not isinstance(delta, dict):
            raise MalformedAnswer("a block's delta is not an object")
        block_filter = self._block_filters.setdefault(index, self._new_filter())
        filtered = block_filter.apply(delta)
        for key in delta:
            self._delta_types[index, (key,)] = delta.get("type")
        other_fields = {key: value for key, value in event.items() if key != "delta"}
        yield {**self._new_filter(whole=True).apply(other_fields), "delta": filtered}
        if block_filter.stopped:
            yield from self._end(index)

    def _flush(self, index: int) -> Iterator[JsonObject]:
        """What is held back of a block that ends now, as delta events."""
        block_filter = self._block_filters.pop(index, None)
        if block_filter is None:
            return
        for path, text in block_filter.finish():
            delta: JsonObject = {"type": self._delta_types.get((index, path[:1]))}
            add_text(delta, path, text)
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        if block_filter.stopped:
            yield from self._end(index)

    def _end(self, open_block: int | None) -> Iterator[JsonObject]:
        """The events that end the message here. open_block: the index of a block that has begun."""
        self.ended = True
        if open_block is not None:
            yield {"type": "content_block_stop", "index": open_block}
        delta = {"stop_reason": STOP_REFUSAL, "stop_sequence": None}
        output_tokens = max(self._usage.get("output_tokens", 0), self._delta_count)
        yield {"type": "message_delta", "delta": delta, "usage": {**self._usage, "output_tokens": output_tokens}}
        yield {"type": "message_stop"}
