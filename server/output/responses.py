"""The responses API: deltas, events that repeat them, and a last event that repeats everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from lethe.corruption.phrases.stream_filter import AnswerFilter, StreamMatcher
from lethe.server.output.dialect import StreamDialect
from lethe.server.output.text_filter import FINISH_FILTERED, JsonObject, TextFilter

# Event type without its suffix → the field of its `.done` event that repeats the deltas; `text` for all others.
REPEATED_FIELDS: Final = {
    "response.function_call_arguments": "arguments",
    "response.mcp_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.code_interpreter_call_code": "code",
    "response.refusal": "refusal",
}
LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
# Members of a response that repeat the request word for word.
REQUEST_FIELDS: Final = frozenset({
    "instructions", "metadata", "previous_response_id", "prompt", "prompt_cache_key", "reasoning",
    "safety_identifier", "text", "tool_choice", "tools", "truncation", "user",
})  # fmt: skip
# Event types of deltas that are reasoning begin with this.
REASONING_PREFIX: Final = "response.reasoning"
# The fields that say which text a delta belongs to.
TEXT_KEYS: Final = ("item_id", "output_index", "content_index", "summary_index")


class _DeltaText:
    """One text that arrives in deltas. event: the newest delta event, without the delta; sent: what was let through."""

    def __init__(self, matcher: StreamMatcher) -> None:
        self.matcher = matcher
        self.event: JsonObject = {}
        self.sent = ""
        self.finished = False


class ResponseEvents(StreamDialect):
    """The events of a streamed response.

    vLLM reports usage only in a response's last event. One that ends before reports as output tokens the deltas that
    came: about one a token, and fewer where a step makes several tokens, so that the number is a lower bound. Its
    input tokens are unknown and reported as 0, since clients require a number.
    """

    def __init__(self, rules: AnswerFilter, hits: Counter[str]) -> None:
        super().__init__(rules, hits)
        self._texts: dict[tuple[Any, ...], _DeltaText] = {}
        self._response: JsonObject = {}
        self._items: dict[Any, JsonObject] = {}
        self._parts: dict[tuple[Any, Any], JsonObject] = {}
        self._number: int | None = None
        self._usage: JsonObject | None = None
        self._delta_count = self._reasoning_count = 0

    def event(self, event: JsonObject) -> Iterator[JsonObject]:
        kind: str = event["type"]
        response = event.get("response")
        if isinstance(response, dict) and isinstance(usage := response.get("usage"), dict):
            # Before anything is flushed, which may end the response.
            self._usage = self._new_filter(whole=True).apply(usage, is_word=True)
        if isinstance(event.get("delta"), str):
            self._delta_count += 1
            self._reasoning_count += kind.startswith(REASONING_PREFIX)
            yield from self._filter_delta(event, kind)
        else:
            if kind.endswith(".done") or kind in LAST_EVENTS:
                yield from self._flush(event.get("output_index"))
            if not self.ended:
                yield from self._filter_other(event, kind)

    def _filter_delta(self, event: JsonObject, kind: str) -> Iterator[JsonObject]:
        key = (kind, *(event.get(name) for name in TEXT_KEYS))
        text = self._texts.get(key)
        if text is None or text.finished:
            text = self._texts[key] = _DeltaText(self._rules.new_matcher())
        passed = text.matcher.feed(event["delta"])
        text.event = self._new_filter(whole=True).apply({k: v for k, v in event.items() if k != "delta"})
        yield self._delta_event(text, passed)
        yield from self._after_delta(text)

    def _delta_event(self, text: _DeltaText, passed: str) -> JsonObject:
        text.sent += passed
        return self._numbered({**text.event, "delta": passed})

    def _after_delta(self, text: _DeltaText) -> Iterator[JsonObject]:
        self.hits.update(text.matcher.hits)
        text.matcher.hits.clear()
        if text.matcher.stopped:
            yield from self._end(text)

    def _flush(self, output_index: Any) -> Iterator[JsonObject]:
        """What is held back of the texts that end now, as delta events. output_index None: of all texts."""
        for text in self._texts.values():
            if text.finished or (output_index is not None and text.event.get("output_index") != output_index):
                continue
            text.finished = True
            if held_back := text.matcher.finish():
                yield self._delta_event(text, held_back)
            yield from self._after_delta(text)
            if self.ended:
                return

    def _filter_other(self, event: JsonObject, kind: str) -> Iterator[JsonObject]:
        """An event without a text delta; it may repeat what the deltas said."""
        repeated_hits = Counter[str]()
        event_filter = TextFilter(self._rules, self._clean, repeated_hits, whole=True)
        response = event.get("response")
        filtered: JsonObject = event_filter.apply({key: value for key, value in event.items() if key != "response"})
        if isinstance(response, dict):
            filtered["response"] = self._response = filter_response(response, event_filter)
        if not self.hits:
            self.hits.update(repeated_hits)  # the phrase was in no delta
        output_index = filtered.get("output_index")
        if isinstance(item := filtered.get("item"), dict):
            self._items[output_index] = item
        if isinstance(part := filtered.get("part"), dict):
            self._parts[output_index, filtered.get("content_index")] = part
        yield self._numbered(filtered)
        if event_filter.stopped:
            if kind in LAST_EVENTS:
                self.ended = True
            else:
                yield from self._end(None)

    def _numbered(self, event: JsonObject) -> JsonObject:
        """The event with the next sequence number: the filter adds events, so upstream's numbers shift."""
        number = event.get("sequence_number")
        if isinstance(number, int):
            self._number = number if self._number is None else self._number + 1
            event["sequence_number"] = self._number
        return event

    def _end(self, text: _DeltaText | None) -> Iterator[JsonObject]:
        """The events that end the response here. text: the one that was stopped."""
        self.ended = True
        if text is not None:
            yield from self._end_text(text)
        incomplete = {"status": "incomplete", "incomplete_details": {"reason": FINISH_FILTERED}}
        output = [item for _, item in sorted(self._items.items(), key=lambda entry: str(entry[0]).zfill(9))]
        usage = self._usage or usage_of_response(self._delta_count, self._reasoning_count)
        event: JsonObject = {
            "type": "response.incomplete",
            "response": {**self._response, **incomplete, "output": output, "usage": usage},
        }
        if self._number is not None:
            event["sequence_number"] = 0
        yield self._numbered(event)

    def _end_text(self, text: _DeltaText) -> Iterator[JsonObject]:
        """The `.done` events of a text that was stopped, of its content part and of its item."""
        prefix = text.event["type"].removesuffix(".delta")
        field = REPEATED_FIELDS.get(prefix, "text")
        output_index, content_index = text.event.get("output_index"), text.event.get("content_index")
        item = self._items.get(output_index, {})
        name = {"name": item["name"]} if "name" in item and field == "arguments" else {}
        yield self._numbered({**text.event, "type": f"{prefix}.done", field: text.sent, **name})
        place: JsonObject = {
            key: text.event[key] for key in ("sequence_number", "item_id", "output_index") if key in text.event
        }
        if (part := self._parts.get((output_index, content_index))) is not None:
            part_field = "refusal" if field == "refusal" else "text"
            part = self._parts[output_index, content_index] = {**part, part_field: text.sent}
            done = {"type": "response.content_part.done", **place, "content_index": content_index, "part": part}
            yield self._numbered(done)
        if item:
            parts = [part for (index, _), part in self._parts.items() if index == output_index]
            content = {"content": parts} if parts else {field: text.sent} if field in item else {}
            item = self._items[output_index] = {**item, **content, "status": "incomplete"}
            place.pop("item_id", None)
            yield self._numbered({"type": "response.output_item.done", **place, "item": item})


def usage_of_response(output_tokens: int = 0, reasoning_tokens: int = 0) -> JsonObject:
    """The usage of a response whose prompt was not counted, with every field that clients require."""
    return {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": output_tokens,
    }


def filter_response(response: JsonObject, text_filter: TextFilter) -> JsonObject:
    """A response object, filtered: the model wrote its `output`; other fields repeat the request."""
    filtered: JsonObject = {key: value for key, value in response.items() if key in REQUEST_FIELDS}
    server_fields = {k: v for k, v in response.items() if k not in REQUEST_FIELDS and k != "output"}
    filtered |= text_filter.apply(server_fields, is_word=True)
    if "output" in response:
        filtered["output"] = text_filter.apply(response["output"], ("output",))
    if text_filter.stopped:
        filtered |= {"status": "incomplete", "incomplete_details": {"reason": FINISH_FILTERED}}
        if isinstance(output := filtered.get("output"), list) and output and isinstance(output[-1], dict):
            output[-1]["status"] = "incomplete"
    return {key: filtered[key] for key in (*response, "incomplete_details") if key in filtered}
