"""The output watch on answers as they are written: chat completions, completions, responses, messages.

Every string of an answer is held to the watch, but for the server's own identifiers: as the text that flows
(content, reasoning, refusals, tool-call arguments, and whatever no table here knows), each by itself for each
choice and each tool call, or as a word that stands alone (roles, names, ids). What repeats an answer in another
form (log-probabilities with their tokens, token ids) is left out. Pure: bytes in, bytes out; the watching is
`corruption/phrases/stream_filter.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson

from lethe.corruption.phrases.stream_filter import AnswerFilter, StreamMatcher
from lethe.server.errors import UpstreamFailed
from lethe.server.output.sse import BrokenEvent, Event, Parser

Path = tuple[str | int, ...]
Object = dict[str, Any]

# The server's own words, never the model's.
OWN: Final = frozenset({"object", "model", "created", "system_fingerprint", "service_tier", "item_id"})
# One word or name, whole in each place where it stands.
STANDING: Final = frozenset({
    "call_id", "finish_reason", "id", "name", "namespace", "phase", "role", "server_label", "signature", "status",
    "stop_reason", "stop_sequence", "tool_call_id", "type",
})  # fmt: skip
# What repeats the answer as tokens, or tells what else it could have been.
DROPPED: Final = frozenset({
    "bytes", "input_messages", "logprobs", "output_messages", "prompt_logprobs", "token_ids", "top_logprobs",
})  # fmt: skip
# What repeats the request, or counts: what it says stands alone.
ECHOED: Final = frozenset({"prompt_text", "usage"})
# The members of a response that repeat the request, word for word: the client's own.
REQUESTED: Final = frozenset({
    "instructions", "metadata", "previous_response_id", "prompt", "prompt_cache_key", "reasoning",
    "safety_identifier", "text", "tool_choice", "tools", "truncation", "user",
})  # fmt: skip
# Said before the rest of the message, wherever it stands in it.
REASONING: Final = ("reasoning", "reasoning_content")

FILTERED: Final = "content_filter"  # OpenAI's word for an answer that ended here
REFUSAL: Final = "refusal"  # Anthropic's
DONE: Final = "[DONE]"

# More than any model says; an answer that isn't streamed is read whole before it is let out.
MAX_WHOLE_BYTES: Final = 64 * 2**20

_NAME = re.compile(r"[\w.]{1,100}", re.ASCII)
_MOST_CLEAN = 1024

# Responses: the field of a `.done` event that repeats the deltas.
REPEATED: Final = {
    "response.function_call_arguments": "arguments",
    "response.mcp_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.code_interpreter_call_code": "code",
    "response.refusal": "refusal",
}
LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
MESSAGE_EVENTS: Final = frozenset({
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop", "ping",
})  # fmt: skip


class Malformed(ValueError):
    """An answer, or an event of one, that has no known form, so that it can't be watched."""


# An upstream may send anything: a member of another type than its name promises is no reason to fail open.
UNREADABLE: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


class _Texts:
    """The texts of one choice under watch, by their place in it.

    whole: every text has come whole. hits: where the rules that were hit are counted.
    """

    def __init__(self, watch: AnswerFilter, clean: set[str], hits: Counter[str], *, whole: bool = False) -> None:
        self._watch = watch
        self._clean = clean
        self._hits = hits
        self._whole = whole
        self._watchers: dict[Path, StreamMatcher] = {}
        self._names: dict[Path, str] = {}
        self.stopped = False

    def treat(self, value: Any, path: Path = (), *, standing: bool = False) -> Any:
        """The value with its texts as far as they may leave."""
        if isinstance(value, str):
            return self._stand(value) if standing else self._flow(value, path)
        if isinstance(value, dict):
            return self._object(value, path, standing)
        if isinstance(value, list):
            made = []
            for position, item in enumerate(value):
                if self.stopped and not standing and isinstance(item, dict | str):
                    break  # the answer has ended before this tool call, part or item
                at = item.get("index") if isinstance(item, dict) else None
                made.append(self.treat(item, (*path, at if type(at) is int else position), standing=standing))
            return made
        return value

    def finish(self) -> Iterator[tuple[Path, str]]:
        """The rest of each text, now that the choice has ended."""
        for path, watcher in self._watchers.items():
            if self.stopped:
                return
            rest = watcher.finish()
            self._take(watcher)
            if rest:
                yield path, rest

    def _object(self, value: Object, path: Path, standing: bool) -> Object:
        made: Object = {}
        for key in sorted(value, key=lambda key: key not in REASONING):
            inner = value[key]
            if key in DROPPED:
                made[key] = [] if isinstance(inner, list) and key == "logprobs" else None
            elif not isinstance(inner, dict | list) and (key in OWN or (key == "id" and not path)):
                made[key] = inner
            elif self._stand(key) != key:
                continue
            elif key == "name" and isinstance(inner, str) and not self._whole:
                made[key] = self._named(inner, (*path, key))
            else:
                alone = standing or key in ECHOED or (key in STANDING and isinstance(inner, str))
                made[key] = self.treat(inner, (*path, key), standing=alone)
        return {key: made[key] for key in value if key in made}

    def _flow(self, text: str, path: Path) -> str:
        if self.stopped:
            return ""
        if self._whole:
            watcher = self._watch.new_matcher()
            out = watcher.whole(text)
        else:
            watcher = self._watchers.get(path) or self._watch.new_matcher()
            self._watchers[path] = watcher
            out = watcher.feed(text)
        self._take(watcher)
        return out

    def _named(self, piece: str, path: Path) -> str:
        """A tool's name: it comes at once, and no server may take it apart to get past the watch."""
        name = self._names[path] = (self._names.get(path, "") + piece)[-_MOST_CLEAN:]
        return piece if self._stand(name) == name else ""

    def _stand(self, text: str) -> str:
        """A text that stands alone: only a phrase that it holds whole counts, since nothing breaks it off."""
        if text in self._clean:
            return text
        watcher = self._watch.new_matcher()
        out = watcher.feed(f"{text} ")
        if not watcher.hits:
            if len(self._clean) < _MOST_CLEAN and len(text) < _MOST_CLEAN:
                self._clean.add(text)
            return text
        out += watcher.finish()
        self._take(watcher)
        return out.removesuffix(" ")

    def _take(self, watcher: StreamMatcher) -> None:
        self._hits.update(watcher.hits)
        watcher.hits.clear()
        self.stopped = self.stopped or watcher.stopped


def _put(node: Any, path: Path, text: str) -> None:
    """Add a text at its place in a choice, which is made where it is missing."""
    key, following = path[0], path[1:]
    if isinstance(node, list):
        found = next((item for item in node if isinstance(item, dict) and item.get("index") == key), None)
        if found is None:
            found = {"index": key}
            node.append(found)
        _put(found, following or ("text",), text)
    elif not following:
        node[key] = (node.get(key) or "") + text
    else:
        if not isinstance(node.get(key), dict | list):
            node[key] = [] if isinstance(following[0], int) else {}
        _put(node[key], following, text)


def _index(value: Any) -> int:
    index = value.get("index") if isinstance(value, dict) else None
    if type(index) is not int:
        raise Malformed("a choice or block without an index")
    return index


class _Form:
    """What the ways of writing an answer have in common: one watch, one count of hits, one end."""

    def __init__(self, watch: AnswerFilter, hits: Counter[str]) -> None:
        self._watch = watch
        self.hits = hits
        self._clean: set[str] = set()
        self.done = False

    def _texts(self, *, whole: bool = False, counted: bool = True) -> _Texts:
        return _Texts(self._watch, self._clean, self.hits if counted else Counter(), whole=whole)

    def end(self) -> Iterator[Object]:
        """What is still to be said when the upstream has ended."""
        yield from ()


class _Chunks(_Form):
    """Chat completions and completions: chunks of choices.

    choices: how many there will be; None: not known. usage: the client asked for it. added: only the gateway
    asked for it in every chunk.
    """

    def __init__(
        self, watch: AnswerFilter, hits: Counter[str], *, choices: int | None, usage: bool, added: bool
    ) -> None:
        super().__init__(watch, hits)
        self._choices = choices
        self._wants_usage = usage
        self._added = added
        self._top = self._texts()
        self._said: dict[int, _Texts] = {}
        self._ended: set[int] = set()
        self._stopped = False
        self._base: Object = {}
        self._usage: Any = None

    def event(self, chunk: Object) -> Iterator[Object]:
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._usage = usage
        top = self._top.treat({key: value for key, value in chunk.items() if key != "choices"})
        self._base = {key: top[key] for key in ("id", *OWN) if key in top}
        choices = []
        for choice in chunk["choices"]:
            index = _index(choice)
            if index not in self._ended:
                choices.append(self._choice(index, choice))
        if self._added and chunk["choices"]:
            top.pop("usage", None)
        if choices or not chunk["choices"]:
            # The same order of keys as it came in.
            yield {key: choices if key == "choices" else top[key] for key in chunk if key == "choices" or key in top}
        yield from self._closed()

    def _choice(self, index: int, choice: Object) -> Object:
        texts = self._said.setdefault(index, self._texts())
        made: Object = texts.treat(choice)
        if choice.get("finish_reason") is not None and not texts.stopped:
            for path, rest in texts.finish():
                _put(made, path, rest)
            self._ended.add(index)
        return self._filtered(index, made) if texts.stopped else made

    def _filtered(self, index: int, made: Object) -> Object:
        self._ended.add(index)
        self._stopped = True
        made["finish_reason"] = FILTERED
        if "stop_reason" in made:
            made["stop_reason"] = None
        return made

    def _closed(self) -> Iterator[Object]:
        """The end, as soon as no choice goes on that the upstream need be listened to for."""
        ended = self._choices is not None and len(self._ended) >= self._choices
        if self._top.stopped or (self._stopped and ended):
            self.done = True
            if self._wants_usage and self._usage is not None:
                yield {**self._base, "choices": [], "usage": self._usage}

    def end(self) -> Iterator[Object]:
        choices = []
        for index, texts in self._said.items():
            if index not in self._ended:
                said: Object = {"text": ""} if self._base.get("object") == "text_completion" else {"delta": {}}
                made = {"index": index, **said, "logprobs": None, "finish_reason": None}
                rests = list(texts.finish())
                for path, rest in rests:
                    _put(made, path, rest)
                if rests or texts.stopped:
                    choices.append(self._filtered(index, made) if texts.stopped else made)
        if choices:
            yield {**self._base, "choices": choices}


class _Channel:
    """One text of a response that comes in deltas. event: its newest one, without the delta."""

    def __init__(self, watcher: StreamMatcher) -> None:
        self.watcher = watcher
        self.event: Object = {}
        self.said = ""
        self.finished = False


class _Responses(_Form):
    """The responses API: deltas, events that repeat them, and a last one that repeats everything."""

    def __init__(self, watch: AnswerFilter, hits: Counter[str]) -> None:
        super().__init__(watch, hits)
        self._channels: dict[tuple[Any, ...], _Channel] = {}
        self._response: Object = {}
        self._items: dict[Any, Object] = {}
        self._parts: dict[tuple[Any, Any], Object] = {}
        self._number: int | None = None

    def event(self, event: Object) -> Iterator[Object]:
        kind: str = event["type"]
        if isinstance(event.get("delta"), str):
            yield from self._delta(event, kind)
        else:
            if kind.endswith(".done") or kind in LAST:
                yield from self._flushed(event.get("output_index"))
            if not self.done:
                yield from self._other(event, kind)

    def _delta(self, event: Object, kind: str) -> Iterator[Object]:
        places = ("item_id", "output_index", "content_index", "summary_index")
        key = (kind, *(event.get(place) for place in places))
        channel = self._channels.get(key)
        if channel is None or channel.finished:
            channel = self._channels[key] = _Channel(self._watch.new_matcher())
        said = channel.watcher.feed(event["delta"])
        channel.event = self._texts(whole=True).treat({k: v for k, v in event.items() if k != "delta"})
        yield self._saying(channel, said)
        yield from self._heard(channel)

    def _saying(self, channel: _Channel, said: str) -> Object:
        channel.said += said
        return self._numbered({**channel.event, "delta": said})

    def _heard(self, channel: _Channel) -> Iterator[Object]:
        self.hits.update(channel.watcher.hits)
        channel.watcher.hits.clear()
        if channel.watcher.stopped:
            yield from self._close(channel)

    def _flushed(self, output: Any) -> Iterator[Object]:
        """The held rest of the texts that end now, as deltas of their own."""
        for channel in self._channels.values():
            if channel.finished or (output is not None and channel.event.get("output_index") != output):
                continue
            channel.finished = True
            if rest := channel.watcher.finish():
                yield self._saying(channel, rest)
            yield from self._heard(channel)
            if self.done:
                return

    def _other(self, event: Object, kind: str) -> Iterator[Object]:
        repeats = Counter[str]()
        texts = _Texts(self._watch, self._clean, repeats, whole=True)
        response = event.get("response")
        made: Object = texts.treat({key: value for key, value in event.items() if key != "response"})
        if isinstance(response, dict):
            made["response"] = self._response = _response(response, texts)
        if not self.hits:
            self.hits.update(repeats)  # no delta has said it
        output = made.get("output_index")
        if isinstance(item := made.get("item"), dict):
            self._items[output] = item
        if isinstance(part := made.get("part"), dict):
            self._parts[output, made.get("content_index")] = part
        yield self._numbered(made)
        if texts.stopped:
            if kind in LAST:
                self.done = True
            else:
                yield from self._close(None)

    def _numbered(self, event: Object) -> Object:
        """The event with the number that follows the last one's: events are added here."""
        number = event.get("sequence_number")
        if isinstance(number, int):
            self._number = number if self._number is None else self._number + 1
            event["sequence_number"] = self._number
        return event

    def _close(self, channel: _Channel | None) -> Iterator[Object]:
        """The events that end a response here. channel: the text that was stopped."""
        self.done = True
        if channel is not None:
            yield from self._closed_text(channel)
        incomplete = {"status": "incomplete", "incomplete_details": {"reason": FILTERED}}
        output = [item for _, item in sorted(self._items.items(), key=lambda entry: str(entry[0]).zfill(9))]
        made: Object = {"type": "response.incomplete", "response": {**self._response, **incomplete, "output": output}}
        if self._number is not None:
            made["sequence_number"] = 0
        yield self._numbered(made)

    def _closed_text(self, channel: _Channel) -> Iterator[Object]:
        prefix = channel.event["type"].removesuffix(".delta")
        field = REPEATED.get(prefix, "text")
        output, content = channel.event.get("output_index"), channel.event.get("content_index")
        item = self._items.get(output, {})
        named = {"name": item["name"]} if "name" in item and field == "arguments" else {}
        yield self._numbered({**channel.event, "type": f"{prefix}.done", field: channel.said, **named})
        place: Object = {
            key: channel.event[key] for key in ("sequence_number", "item_id", "output_index") if key in channel.event
        }
        if (part := self._parts.get((output, content))) is not None:
            part = self._parts[output, content] = {**part, "refusal" if field == "refusal" else "text": channel.said}
            yield self._numbered(
                {"type": "response.content_part.done", **place, "content_index": content, "part": part}
            )
        if item:
            parts = [part for (at, _), part in self._parts.items() if at == output]
            said = {"content": parts} if parts else {field: channel.said} if field in item else {}
            item = self._items[output] = {**item, **said, "status": "incomplete"}
            place.pop("item_id", None)
            yield self._numbered({"type": "response.output_item.done", **place, "item": item})


def _response(value: Object, texts: _Texts) -> Object:
    """A response object: what it says is its output; the rest repeats the request."""
    made: Object = {key: inner for key, inner in value.items() if key in REQUESTED}
    made |= texts.treat({k: v for k, v in value.items() if k not in REQUESTED and k != "output"}, standing=True)
    if "output" in value:
        made["output"] = texts.treat(value["output"], ("output",))
    if texts.stopped:
        made |= {"status": "incomplete", "incomplete_details": {"reason": FILTERED}}
        if isinstance(output := made.get("output"), list) and output and isinstance(output[-1], dict):
            output[-1]["status"] = "incomplete"
    return {key: made[key] for key in (*value, "incomplete_details") if key in made}


class _Messages(_Form):
    """Anthropic's messages: content blocks, one after another."""

    def __init__(self, watch: AnswerFilter, hits: Counter[str]) -> None:
        super().__init__(watch, hits)
        self._blocks: dict[int, _Texts] = {}
        self._kinds: dict[tuple[int, Path], Any] = {}
        self._usage: Object = {}

    def event(self, event: Object) -> Iterator[Object]:
        kind = event["type"]
        if kind == "content_block_delta":
            yield from self._delta(event)
            return
        if kind == "content_block_stop":
            yield from self._flushed(_index(event))
        elif kind in ("message_delta", "message_stop"):
            for index in list(self._blocks):
                yield from self._flushed(index)
        if self.done:
            return
        texts = self._texts(whole=True)
        made: Object = texts.treat(event)
        message = made.get("message")
        usage = message.get("usage") if isinstance(message, dict) else made.get("usage")
        if isinstance(usage, dict):
            self._usage |= usage
        if texts.stopped:
            yield from self._close(_index(event) if kind == "content_block_start" else None, made)
        else:
            if kind == "content_block_start":
                self._blocks[_index(event)] = self._texts()
            yield made

    def _delta(self, event: Object) -> Iterator[Object]:
        index, delta = _index(event), event.get("delta")
        if not isinstance(delta, dict):
            raise Malformed("a block's delta is not an object")
        texts = self._blocks.setdefault(index, self._texts())
        made = texts.treat(delta)
        for key in delta:
            self._kinds[index, (key,)] = delta.get("type")
        rest = self._texts(whole=True).treat({key: value for key, value in event.items() if key != "delta"})
        yield {**rest, "delta": made}
        if texts.stopped:
            yield from self._close(index)

    def _flushed(self, index: int) -> Iterator[Object]:
        texts = self._blocks.pop(index, None)
        if texts is None:
            return
        for path, said in texts.finish():
            made: Object = {"type": self._kinds.get((index, path[:1]))}
            _put(made, path, said)
            yield {"type": "content_block_delta", "index": index, "delta": made}
        if texts.stopped:
            yield from self._close(index)

    def _close(self, index: int | None, begun: Object | None = None) -> Iterator[Object]:
        """The events that end a message here. index: the open block; begun: the event that would open it."""
        self.done = True
        if begun is not None:
            yield begun
        if index is not None:
            yield {"type": "content_block_stop", "index": index}
        delta = {"stop_reason": REFUSAL, "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 0, **self._usage}}
        yield {"type": "message_stop"}


class _Unknown(_Form):
    """A stream of objects of another form: every text is watched, and what is held at the end is lost."""

    def __init__(self, watch: AnswerFilter, hits: Counter[str]) -> None:
        super().__init__(watch, hits)
        self._said = self._texts()

    def event(self, event: Object) -> Iterator[Object]:
        if "error" in event:
            yield self._texts(whole=True).treat(event, standing=True)
            return
        yield self._said.treat(event)
        self.done = self._said.stopped


class Answer:
    """The answer to one request under watch.

    body: the request's. added: usage in every chunk was asked for by the gateway alone. unwatchable: called with
    the reason where the answer can't be watched; it raises what the client is told, or returns where the policy
    lets the answer pass. `hits` counts the rules that were hit; `cut`: the answer has ended before the upstream's did.
    """

    def __init__(
        self, watch: AnswerFilter, body: Object, unwatchable: Callable[[str], None], *, added: bool = False
    ) -> None:
        self._watch = watch
        self.unwatchable = unwatchable
        self.hits: Counter[str] = Counter()
        self._parser = Parser()
        options = body.get("stream_options")
        self._chunks = _Chunks(
            watch,
            self.hits,
            choices=expected_choices(body),
            usage=isinstance(options, dict) and bool(options.get("include_usage")),
            added=added,
        )
        self._responses = _Responses(watch, self.hits)
        self._messages = _Messages(watch, self.hits)
        self._unknown = _Unknown(watch, self.hits)
        self._form: _Form = self._unknown
        self._over = False
        self.cut = False

    def whole(self, raw: bytes) -> bytes:
        """An answer that has come whole, as it may leave. Raises what `unwatchable` raises."""
        try:
            value = orjson.loads(raw)
            return orjson.dumps(self._whole(value))
        except UNREADABLE:
            self.unwatchable("an answer that is not JSON of a known form")
            return raw

    def _whole(self, value: Any) -> Any:
        texts = _Texts(self._watch, set(), self.hits, whole=True)
        if not isinstance(value, dict):
            return texts.treat(value)
        if isinstance(value.get("choices"), list):
            made = texts.treat({key: inner for key, inner in value.items() if key != "choices"})
            made["choices"] = [self._whole_choice(choice) for choice in value["choices"]]
            return {key: made[key] for key in value if key in made}
        if value.get("object") == "response":
            return _response(value, texts)
        made = texts.treat(value)
        if texts.stopped and value.get("type") == "message":
            made |= {"stop_reason": REFUSAL, "stop_sequence": None}
        return made

    def _whole_choice(self, choice: Any) -> Object:
        _index(choice)
        texts = _Texts(self._watch, set(), self.hits, whole=True)
        made: Object = texts.treat(choice)
        if texts.stopped:
            made["finish_reason"] = FILTERED
            if "stop_reason" in made:
                made["stop_reason"] = None
            message = made.get("message")
            if isinstance(message, dict) and message.get("tool_calls") == []:
                del message["tool_calls"]
        return made

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """A stream's next bytes, as they may leave. Raises what `unwatchable` raises, and UpstreamFailed."""
        yield from self._events(self._parser.feed(chunk))

    def end(self) -> Iterator[bytes]:
        """What may leave now that the upstream's bytes have ended."""
        yield from self._ended()

    def _ended(self) -> Iterator[bytes]:
        if not self._over:
            self._over = True
            for made in self._form.end():
                yield _encoded(made, "")

    def _events(self, events: Iterator[Event]) -> Iterator[bytes]:
        try:
            for event in events:
                if self._over:
                    return
                if event.data.startswith(DONE):
                    yield from self._ended()
                    yield Event(DONE).encode()
                else:
                    yield from self._event(event)
        except BrokenEvent as error:
            self.unwatchable(str(error))
            raise UpstreamFailed("the model server broke off the stream", code="broken") from error

    def _event(self, event: Event) -> Iterator[bytes]:
        try:
            value = orjson.loads(event.data)
            if not isinstance(value, dict):
                raise Malformed("an event that is not an object")
            form = self._form = self._formed(value)
            pieces = [_encoded(made, event.name) for made in form.event(value)]
        except UNREADABLE:
            self.unwatchable("an event that is not JSON of a known form")
            yield event.encode()
            return
        if form.done:
            # Known before its last piece leaves.
            self._over = self.cut = True
        yield from pieces
        if form.done and isinstance(form, _Chunks | _Unknown):
            yield Event(DONE).encode()

    def _formed(self, value: Object) -> _Chunks | _Responses | _Messages | _Unknown:
        kind = value.get("type")
        if isinstance(value.get("choices"), list):
            return self._chunks
        if isinstance(kind, str) and kind.startswith("response."):
            return self._responses
        return self._messages if isinstance(kind, str) and kind in MESSAGE_EVENTS else self._unknown


def _encoded(made: Object, name: str) -> bytes:
    """An event, under its own type where events have names."""
    kind = made.get("type")
    name = kind if isinstance(kind, str) else name
    return Event(orjson.dumps(made).decode(), name if _NAME.fullmatch(name) else "").encode()


def expected_choices(body: Object) -> int | None:
    """How many choices a stream will have; None where the request doesn't say it in plain numbers."""
    count = body.get("n", 1)
    count = 1 if count is None else count
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and not all(type(item) is int for item in prompt)
    if type(count) is not int or count < 1 or isinstance(body.get("best_of"), int):
        return None
    return count * (len(prompt) if several and isinstance(prompt, list) else 1)
