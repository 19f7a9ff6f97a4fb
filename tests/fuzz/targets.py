"""What is fuzzed: each takes any bytes and fails where a law does not hold, or something takes too long.

`tests/fuzz/run.py` drives them with coverage as its guide; the tests drive them with a few examples and all findings.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, get_args

import orjson

from benchmarks import judging
from benchmarks.watch_streams import REPLACEMENT, occurrences, replaced
from lethe.classifier.encoder.load import load_encoder
from lethe.classifier.judge import Judge
from lethe.classifier.text.views import EXTRA_CHARACTERS, MAX_GROWTH, text_views
from lethe.classifier.work_limit import WorkExceeded, WorkLimit
from lethe.corruption.phrases.normalize import fold
from lethe.corruption.phrases.phrase_list import ForbiddenPhrases
from lethe.corruption.phrases.stream_filter import AnswerFilter, FilterRule
from lethe.corruption.phrases.trie import START_STATE, PhraseTrie
from lethe.server.errors import BadRequest, GatewayError, Refused
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.output import sse
from lethe.server.output.filter import DONE, ResponseFilter
from lethe.server.requests import request_body as bodies
from lethe.server.requests.extract import extract_texts
from lethe.server.requests.fields import Endpoint
from tests.corruption.phrases.test_trie import is_forbidden
from tests.server.requests.test_joined_texts import joined_strings


def cut(data: bytes, value: Any) -> Iterator[Any]:
    """A text or bytes in pieces whose sizes are the numbers in `data`, over and over."""
    sizes, at, turn = data or b"\1", 0, 0
    while at < len(value):
        size = max(sizes[turn % len(sizes)] % 23, 1)
        yield value[at : at + size]
        at, turn = at + size, turn + 1


def split(data: bytes, count: int) -> list[bytes]:
    """The data in so many parts, at its first zero bytes."""
    parts = data.split(b"\0", count - 1)
    return parts + [b""] * (count - len(parts))


def _text(data: bytes) -> str:
    """Text of any characters, lone surrogates too."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


# Server-sent events


def _events(stream: bytes) -> list[tuple[str, str]] | None:
    """The obvious reading of a whole stream; None where an event is no UTF-8."""
    found, data, name = [], [], b""
    for line in re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]:
        if not line:
            if data:
                try:
                    found.append((b"\n".join(data).decode(), name.decode()))
                except UnicodeDecodeError:
                    return None
            data, name = [], b""
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            data.append(value)
        elif key == b"event":
            name = value
    return found


def events(data: bytes) -> None:
    """A stream reads the same however it is cut, as the obvious reading has it, and what is written is read back."""
    sizes, stream = split(data, 2)
    wanted = _events(stream)
    for pieces in ([stream], cut(sizes, stream)):
        parser, found = sse.Parser(), []
        try:
            for piece in pieces:
                found += parser.feed(piece)
        except sse.BrokenEvent:
            assert wanted is None
        else:
            assert [(event.data, event.name) for event in found] == wanted
            again = list(sse.Parser().feed(b"".join(event.encode() for event in found)))
            assert again == found


# Request bodies


def body(data: bytes) -> None:
    """A body is refused, or reads as two parsers read it; of what it holds each endpoint finds the text, or refuses."""
    try:
        value = bodies.parse(data, max_depth=100, max_values=10_000)
    except BadRequest as error:
        assert error.code and error.status == 400 and orjson.dumps(error.message)
        return
    assert value == json.loads(data) == orjson.loads(data) == orjson.loads(orjson.dumps(value))
    for endpoint in get_args(Endpoint):
        try:
            found = extract_texts(endpoint, value, decode=lambda ids: "".join(chr(i % 0xD800) for i in ids))
        except BadRequest as error:
            assert orjson.dumps([error.message, error.param, error.code])
            continue
        for one in [*(piece.text for piece in found), *joined_strings(found)]:
            one.encode()
        assert all(piece.place and len(piece.place) < 2000 for piece in found)


# Phrases


def _phrases(data: bytes) -> list[str]:
    return [phrase[:40] for phrase in _text(data[:200]).split("|")[:6] if phrase]


def matcher(data: bytes) -> None:
    """A piece is forbidden exactly when the text with it is, wherever the text was cut; a continuation leads there."""
    given, before, piece = split(data, 3)
    phrases, said, more = _phrases(given), _text(before)[:60], _text(piece)[:30]
    made = PhraseTrie(phrases, {phrase: 2.0 for phrase in phrases[:2]})
    state = made.step(START_STATE, fold(said))
    pieces = START_STATE
    for part in cut(given, said):
        pieces = made.step(pieces, fold(part))
    assert pieces == state
    if not is_forbidden(phrases, said):
        assert made.forbids(state, fold(more)) == is_forbidden(phrases, said + more)
    for node in state:
        for way in made.continuations(node, 8):
            assert way.text and (not way.at_end or made.forbids((node,), way.text))
            assert not way.soft or made.weight((node,), way.text) >= way.soft > 0


PLAIN = re.compile(r"[\\*_~`]")


def watch(data: bytes) -> None:
    """What leaves an answer doesn't depend on how it was cut, holds no phrase, and is as the obvious reading has it."""
    given, sizes, answer = split(data, 3)
    phrases, said = _phrases(given), _text(answer)[:300]
    for replacement in (None, REPLACEMENT):
        made = AnswerFilter([FilterRule("p", ForbiddenPhrases(phrases), replacement)])
        whole, pieces = made.new_matcher(), made.new_matcher()
        out = whole.whole(said)
        assert "".join([*map(pieces.feed, cut(sizes, said)), pieces.finish()]) == out
        assert (pieces.hits, pieces.stopped) == (whole.hits, whole.stopped)
        assert occurrences(phrases, out + " zz") == []
        if PLAIN.search(said):
            continue
        told = occurrences(phrases, said)
        assert bool(told) == bool(whole.hits)
        if replacement is not None:
            assert out == replaced(phrases, said, made.replacements[0] or "")
        elif not told:
            assert out == said
        else:
            assert said.startswith(out) and len(out) <= min(one.begin for one in told)


SECRET = "zorin quill"
WATCHED = AnswerFilter([FilterRule("p", ForbiddenPhrases([SECRET]), "[removed]")])
STOPPED = AnswerFilter([FilterRule("p", ForbiddenPhrases([SECRET]))])


def _said(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every text in an event, with the place where it flows on in later ones."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _said(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            index = inner.get("index", at) if isinstance(inner, dict) else at
            yield from _said(inner, (*path, index if isinstance(index, int) else at))


def answer(data: bytes) -> None:
    """An answer of any form passes without its phrase, or is refused; whole or streamed, and however it is cut."""
    sizes, raw = split(data, 2)

    def refuse(reason: str) -> None:
        raise Refused(reason)

    for made in (WATCHED, STOPPED):
        one = ResponseFilter(made, {"stream": True, "n": 2}, refuse)
        out = bytearray()
        try:
            for piece in cut(sizes, raw):
                for part in one.feed(piece):
                    out += part
                if one.cut:
                    break
            for part in one.end():
                out += part
        except GatewayError:
            pass
        flows: dict[tuple[Any, ...], str] = defaultdict(str)
        for event in sse.Parser().feed(bytes(out)):
            if event.data != DONE:
                for path, said in _said(orjson.loads(event.data)):
                    if path[:1] == ("choices",):
                        flows[path] += said
        assert [said for said in flows.values() if occurrences([SECRET], said + " zz")] == []
        try:
            whole = ResponseFilter(made, {}, refuse).whole(raw)
        except GatewayError:
            continue
        for _, said in _said(orjson.loads(whole)):
            assert not occurrences([SECRET], f"{said} zz"), (whole, said)


# Readings of a prompt

VOCABULARY = frozenset({"vardholm", "perrault", "dalmatin", "observatory"})
# How much longer a text four times as long may take: twice what a linear reading would, and then some.
MOST_GROWTH = 12
# Below, a time says nothing.
LEAST_S = 0.3


def _seconds(said: str) -> float:
    begun = time.process_time()
    text_views(said, VOCABULARY, is_known_word=lambda word: False)
    return time.process_time() - begun


def readings(data: bytes) -> None:
    """The readings of a text are bounded, point into it, and are the same the next time."""
    said = _text(data)[:4000]
    found = text_views(said, VOCABULARY, is_known_word=lambda word: len(word) > 4)
    again = text_views(said, VOCABULARY, is_known_word=lambda word: len(word) > 4)
    assert [(view.name, view.text) for view in found] == [(view.name, view.text) for view in again]
    # The raw and the normalised reading are there in any case.
    further = [view for view in found if view.name not in ("raw", "normalised")]
    assert sum(len(view.text) for view in further) <= MAX_GROWTH * len(said) + EXTRA_CHARACTERS
    for view in found:
        sizes = {len(view.text), len(view.starts), len(view.ends), len(view.changed)}
        assert len(sizes) == 1
        if len(view.text):
            assert view.starts.min() >= 0 and view.ends.max() <= len(said) and (view.starts <= view.ends).all()
        assert view.raw_span(0, len(view.text))[1] <= len(said)


def growth(data: bytes) -> None:
    """A text that repeats takes time in proportion to its length."""
    said = _text(data)[:200]
    if not said:
        return
    long, longer = ((said * math.ceil(size / len(said)))[:size] for size in (2_000, 8_000))
    if _seconds(longer) > LEAST_S:
        # Once more, since anything may hold up a process once.
        assert min(_seconds(longer), _seconds(longer)) < max(MOST_GROWTH * min(_seconds(long), _seconds(long)), LEAST_S)


# Work of a request. Judged texts have this many characters at most, the default of LETHE_MAX_PROMPT_CHARS.
MOST_CHARACTERS = 400_000
# Processor seconds of a step of judging: the limit on the work of a request is looked at between steps, and others that
# wait may go first. Three times what the slowest step was seen to take.
MOST_STEP_S = 1.0


class StepTimes(WorkLimit):
    """A limit that measures the processor time between two looks at it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.longest_s, self._last_s = 0.0, time.thread_time()

    def check(self) -> None:
        self.measure()
        super().check()

    def measure(self) -> None:
        now = time.thread_time()
        self.longest_s, self._last_s = max(self.longest_s, now - self._last_s), now


@functools.cache
def _work_judge() -> Judge:
    return Judge({"a": judging.demo_artifact()}, load_encoder())


def work_seconds(data: bytes) -> tuple[float, float]:
    """Judge a conversation of repeated pieces under the limit; processor seconds in all, and of the longest step."""
    sizes, _, said = data.partition(b"\0")
    texts = [part for part in _text(said[:600]).split("\x1f") if part][:8]
    scale = 1 + (sizes[0] if sizes else 0) % 16
    size = MOST_CHARACTERS * scale // 16 // max(len(texts), 1)
    # A different number in each repetition, so that no two pieces are alike, where the second byte asks for it.
    counted = len(sizes) > 1 and sizes[1] % 2
    long = [
        "".join(f"{text}{i}" if counted else text for i in range(math.ceil(size / len(text))))[:size] for text in texts
    ]
    roles = ("user", "system", "assistant")
    body = {"messages": [{"role": roles[i % 3], "content": text} for i, text in enumerate(long)]}
    judged = ParsedRequest("chat", body, extract_texts("chat", body)).texts
    judge, limit = _work_judge(), StepTimes(2.0)
    judge.clear_cache()
    started = time.thread_time()
    with contextlib.suppress(WorkExceeded):
        limit.run(lambda: judge.judge(judged))
    limit.measure()
    return time.thread_time() - started, limit.longest_s


def work(data: bytes) -> None:
    """No step of judging takes long, whatever is judged, so that the limit on a request's work holds."""
    _, longest = work_seconds(data)
    if longest > MOST_STEP_S:
        # Once more, since anything may hold up a process once.
        assert min(work_seconds(data)[1], work_seconds(data)[1]) < MOST_STEP_S


CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
TARGETS: dict[str, Callable[[bytes], None]] = {
    "events": events, "body": body, "matcher": matcher, "watch": watch, "answer": answer, "readings": readings,
    "growth": growth, "work": work,
}  # fmt: skip
SEEDS: dict[str, list[bytes]] = {
    "events": [
        b"\1\5\0data: {}\n\n", b"\3\0event: error\r\ndata: a\r\ndata: b\r\n\r\n: note\rdata:c\r\r",
        b"\0\xef\xbb\xbfdata: \xff\n\n", b"\2\0data\n\nid: 1\nretry: 5\ndata: x\n", b"\1\0\xef\xbb",
    ],
    "body": [
        b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "n": 2}',
        b'{"prompt": [[1, 2], "a"], "suffix": "b", "logit_bias": {"5": -1e2}, "stop": ["\\u00e9"]}',
        b'{"input": [{"type": "function_call_output", "output": [{"type": "input_text", "text": "a"}]}], "tools": []}',
        b'{"system": [{"type": "text", "text": "a"}], "messages": [{"role": "user", "content": [{"type": "tool_result",'
        b' "content": "b"}]}], "thinking": {"type": "enabled"}}',
        b'{"a": NaN}', b'{"a": 1, "\\u0061": 2}', b'{"a": "\\ud800"}', b"[" * 50, b'{"a": 18446744073709551616}',
        b'{"messages": [[{"role": "user", "content": "a"}], []], "vllm_xargs": {"lethe": 1}}',
    ],
    "matcher": [
        b"ab|ab a|b\0xx a\0b c", "é|東京|a-b\0so 東\0京 b".encode(), b"civil engineer\0a civil e\0n",
        b"a b a|b a b\0a b \0a b",
    ],
    "watch": [
        b"zorin quill|quill pen\0\1\0said Zorin Quill, twice", b"a b|b c\0\2\0a b c a\xcc\x81 b",
        b"ab\0\3\0\\u0061b **a**b \\\\u00", "東京|大阪\0\1\0東京大阪".encode(), b"a b c d e|b|d\0\5\0a b c d f",
    ],
    "answer": [
        b"\7\0" + CHUNK % b"by Zorin" + CHUNK % b" Qu" + CHUNK % b"ill, yes" + b"data: [DONE]\n\n",
        b'\4\0event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"i",'
        b'"output_index":0,"content_index":0,"delta":"Zorin Quill"}\n\n',
        b'\5\0event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
        b'"text":"Zorin Quill"}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
        b'\1\0{"choices":[{"index":0,"message":{"role":"assistant","content":"Zorin Quill"},"finish_reason":"stop"}]}',
        b'\1\0{"type":"message","content":[{"type":"text","text":"Zorin Quill"}],"stop_reason":"end_turn"}',
        b'\1\0{"object":"response","output":[{"type":"message","content":[{"type":"output_text","text":"Zorin Quill"}]}'
        b"]}",
    ],
    "readings": [
        b"What is the name of the author born in Vardholm?", b"V2hhdCBpcyB0aGUgbmFtZT8=",
        b"%57hat \\u0057 &#87; 57686174",
        b"tahw si eht eman", b"V a r d h o l m", "Vаrdhоlm \u200b ｖ\U000e0041".encode(), b"jung vf gur anzr bs gur",
        b".-- .... .- -", b"01010111 01101000", b"w-h-a-t  i-s", b"<b>Var</b>dholm",
        b"thenameoftheauthorborninvardholm", b"<p>who</p><p>is</p><p>born</p><p>in</p><p>Vardholm</p><p>now</p>",
        b"V---h--m P*rr**lt", b"Whhoo iiss Vvaarddhhoollmm", b"Vrdhlm Prrlt Vadrohlm", b"owhay isway Ardholmvay ownay",
        b"Victor Alfa Romeo Delta", "\u2827\u2801\u2817\u2819".encode(), b"(9@ :D '2C59@=> ?@H", b"<~87cURD]i,~>",
    ],
    "growth": [
        b"a", b"a b ", b"%41", b"\\u0041", b"V2hh", b"(a", b"<a", b"[", b'{"a":', b"a-", b"4 ", b".- ", b"0x41 ",
        b"&#65;",
        b"vardholmvardhol", "é́".encode(), b"\\", b"=41", b"&amp;", b"a\n", b"Vardh0lm ", b"1 2 3 ",
        b"mlohdrav ", b"aaaab", b"1,a\n", b"<p>a</p>", b"a*", b"ab-- ", b"vvrrdd ", b"Alfa ", b"ayway ", b"2=2 ",
    ],
    "work": [
        b"\0\0(a", b"\1\1aaaab", b"\1\1Hsaio Yun-Hwa's birthplce ", b"\1\1h s i a o \x1fWho is Hsiao",
        b"\2\1vardholmvardhol",
        b"\2\1<p>Hsiao</p>", b"\2\0V2hh", b"\2\1x = foo(bar, 'baz')\n",
    ],
}  # fmt: skip
