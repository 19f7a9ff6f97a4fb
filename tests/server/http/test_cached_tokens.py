"""How many prompt tokens were cached is withheld, and everything else in a response stays as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.server.http.cached_tokens import CachedTokensFilter

ZEROED = ["cached_tokens", "created_cache_tokens", "cached_tokens_per_turn"]
CACHE_MEMBERS = ["cache_read_input_tokens", "cache_creation_input_tokens"]
NUMBER = st.integers(0, 10**7)
# In vLLM's order, which is that of its class.
USAGE = st.fixed_dictionaries(
    {"input_tokens": NUMBER, "output_tokens": NUMBER},
    optional={name: st.none() | NUMBER for name in CACHE_MEMBERS},
).map(lambda usage: {name: usage[name] for name in ("input_tokens", *sorted(usage)) if name in usage})
DETAILS = st.fixed_dictionaries(
    {"prompt_tokens": NUMBER},
    optional={"cached_tokens": st.none() | NUMBER, "created_cache_tokens": NUMBER, "audio_tokens": NUMBER}
    | {"cached_tokens_per_turn": st.lists(NUMBER, max_size=4)},
)
TEXT = st.text() | st.sampled_from(
    ['"cached_tokens":1664', '{"usage":{"input_tokens":36,"cache_read_input_tokens":1664}}', "cached_tokens", "\\"]
)
ANSWER = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT | USAGE | DETAILS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT.filter(lambda key: key not in ZEROED), inner, max_size=4)
    ),
)
SEPARATORS = [(",", ":"), (", ", ": "), (" ,\n ", " :\t")]
# Pieces of keys, values and of what may stand around them, valid JSON or not.
FRAGMENTS = [
    b'"', b"\\", b'"input_tokens"', b'"cached_tokens"', b'"cached_tokens_per_turn"', b'"cache_read_input_tokens"',
    b":", b",", b" ", b"{", b"}", b"[", b"]", b"1664", b"36", b"-", b".", b"null", b"cached_", b"tokens", b"input_",
    b"\n\ndata: ", b'"output_tokens":5', b"0" * 4090,
]  # fmt: skip


def filtered(chunks: list[bytes]) -> bytes:
    cached = CachedTokensFilter()
    return b"".join([*(cached.feed(chunk) for chunk in chunks), cached.end()])


def expected(value: Any) -> Any:
    """The value without what was cached."""
    if isinstance(value, list):
        return [expected(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    result = {key: expected(inner) for key, inner in value.items()}
    for key in ZEROED:
        if isinstance(result.get(key), list):
            result[key] = [0] * len(result[key])
        elif isinstance(result.get(key), int):
            result[key] = 0
    cached = {key: result[key] for key in CACHE_MEMBERS if isinstance(result.get(key), int)}
    if cached and "input_tokens" in result:
        result = {key: inner for key, inner in result.items() if key not in cached}
        result["input_tokens"] += sum(cached.values())
    return result


@given(ANSWER, st.sampled_from(SEPARATORS), st.booleans())
def test_only_the_numbers_of_cached_tokens_change(answer: Any, separators: tuple[str, str], ascii_only: bool) -> None:
    raw = json.dumps(answer, separators=separators, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    result = filtered([raw])
    assert len(result) == len(raw)
    assert json.loads(result.decode("utf-8", "surrogatepass")) == expected(answer)
    if expected(answer) == answer:
        assert result == raw


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30), st.data())
def test_any_split_into_chunks_gives_the_same_bytes(fragments: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    chunks = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    whole = filtered([raw])
    assert filtered(chunks) == whole and len(whole) == len(raw)


@pytest.mark.parametrize(
    ("raw", "result"),
    [
        (b'{"prompt_tokens_details":{"cached_tokens":1664}}', b'{"prompt_tokens_details":{"cached_tokens":0   }}'),
        (b'{"cached_tokens": null, "x": 1664}', b'{"cached_tokens": null, "x": 1664}'),
        (b'{"cached_tokens_per_turn":[16,1664]}', b'{"cached_tokens_per_turn":[0 ,0   ]}'),
        (b'{"text":"\\"cached_tokens\\":1664"}', b'{"text":"\\"cached_tokens\\":1664"}'),
        (b'{"cache_read_input_tokens":1664}', b'{"cache_read_input_tokens":0   }'),
        (b'{"input_tokens":9,"cache_read_input_tokens":96}', b'{"input_tokens":105' + b" " * 27 + b"}"),
        (b'{"input_tokens":9,"input_tokens_details":{"x":1}}', b'{"input_tokens":9,"input_tokens_details":{"x":1}}'),
        (b'{"cached_tokens":1664', b'{"cached_tokens":0   '),
    ],
)
def test_members_of_each_api(raw: bytes, result: bytes) -> None:
    assert filtered([raw]) == result
    assert filtered([raw[at : at + 1] for at in range(len(raw))]) == result


def test_nothing_is_held_back_after_an_event_and_its_numbers() -> None:
    event = b'data: {"choices":[],"usage":{"prompt_tokens_details":{"cached_tokens":1664}}}\n\n'
    cached = CachedTokensFilter()
    assert cached.feed(event) == event.replace(b"1664", b"0   ")
    assert cached.feed(b'data: {"cached_to') == b"data: {"
    assert cached.feed(b"ken: 1") == b'"cached_token: 1'
