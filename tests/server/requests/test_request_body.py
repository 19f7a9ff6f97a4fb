"""Strict parsing: an accepted body reads the same in every parser, everything else is a BadRequest."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lethe.server.errors import BadRequest
from lethe.server.requests import request_body

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4)


def rejection_of(raw: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        request_body.parse(raw)
    assert caught.value.status == 400
    return caught.value


@given(OBJECTS, st.booleans())
def test_valid_objects_parse_as_in_other_parsers(value: dict[str, Any], escaped: bool) -> None:
    raw = json.dumps(value, ensure_ascii=escaped).encode()
    assert request_body.parse(raw) == value == json.loads(raw) == orjson.loads(raw)


@given(st.binary(max_size=200))
def test_random_bytes_are_an_object_or_a_bad_request(raw: bytes) -> None:
    try:
        value = request_body.parse(raw)
    except BadRequest:
        return
    assert value == json.loads(raw)


FRAGMENTS = [
    "{", "}", "[", "]", ":", ",", '"a"', '"b"', '"\\ud800"', '"\\udc00"', '"\\u0061"', "1", "-0", "1e999",
    "1E-999", "NaN", "-Infinity", "true", "null", "9" * 30, "\ufeff", " ", "\x00", "é", '"', "\\",
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14))
def test_accepted_bodies_parse_alike_and_can_be_serialised(fragments: list[str]) -> None:
    raw = "".join(fragments).encode()
    try:
        value = request_body.parse(raw)
    except BadRequest:
        return
    assert value == json.loads(raw) == orjson.loads(raw) == orjson.loads(orjson.dumps(value))


@settings(deadline=None)
@given(OBJECTS)
def test_orjsons_own_spelling_is_parsed_without_json_loads(body: dict[str, Any]) -> None:
    raw = orjson.dumps(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_body.json, "loads", None)
        assert request_body.parse(raw) == body
    assert json.loads(raw) == body


@settings(deadline=None)
@given(OBJECTS, st.integers(0, 5), TEXT, VALUES, VALUES, st.sampled_from([", ", ","]), st.sampled_from([": ", ":"]))
def test_duplicate_keys_are_rejected_at_any_depth(
    around: dict[str, Any], depth: int, key: str, first: Any, second: Any, comma: str, colon: str
) -> None:
    def dumped(value: Any) -> str:
        return json.dumps(value, separators=(comma, colon), ensure_ascii=False)

    inner = f"{{{dumped(key)}{colon}{dumped(first)}{comma}{dumped(key)}{colon}{dumped(second)}}}"
    for _ in range(depth):
        inner = f'[{{"x"{colon}{inner}}}]'
    around.pop("", None)
    raw = dumped({**around, "": 0})[:-1] + f'{comma}"\\u0000deep"{colon}{inner}}}'
    assert rejection_of(raw.encode()).code == "duplicate_key"


def test_two_spellings_of_the_same_key_are_duplicates() -> None:
    assert rejection_of(b'{"model": 1, "\\u006dodel": 2}').code == "duplicate_key"


NOT_AN_OBJECT = [
    b"", b" ", b"[]", b'"text"', b"1", b"null", b"{", b'{"a": 1} x', b'{"a": 1}{"a": 1}', b'{"a": 1,}',
    b"{'a': 1}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": "\n"}', b"{1: 2}",
    b'{"a": 01}', b'{"a": 1.}', b'{"a": 1} // note',
]  # fmt: skip


@pytest.mark.parametrize("raw", NOT_AN_OBJECT)
def test_anything_but_one_json_object_is_rejected(raw: bytes) -> None:
    assert rejection_of(raw).code == "invalid_json"


@pytest.mark.parametrize("digits", [str(2**64), str(-(2**63) - 1), "9" * 30, "9" * 5000])
def test_integers_past_64_bits_are_rejected(digits: str) -> None:
    assert rejection_of(f'{{"seed": [{digits}]}}'.encode()).code == "invalid_json"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400 + ".0", "1e400000000000"])
def test_numbers_that_would_become_infinite_are_rejected(number: str) -> None:
    assert "too large" in rejection_of(f'{{"temperature": {number}}}'.encode()).message


def test_numbers_that_underflow_become_zero() -> None:
    assert request_body.parse(b'{"a": 1e-999, "b": -0.0}') == {"a": 0.0, "b": 0.0}
    assert math.copysign(1, request_body.parse(b'{"b": -0.0}')["b"]) == -1


@pytest.mark.parametrize("depth", [255, 2_000, 200_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_rejected(depth: int, left: str, right: str) -> None:
    raw = '{"x":' + left * depth + ("0" if left != "[" else "") + right * depth + "}"
    assert rejection_of(raw.encode()).code == "too_deep"


def test_moderate_nesting_is_accepted() -> None:
    assert request_body.parse(('{"x":' + "[" * 200 + "]" * 200 + "}").encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_other_encodings_are_rejected(encoding: str) -> None:
    assert rejection_of('{"a": "é"}'.encode(encoding)).code in ("invalid_utf8", "invalid_json")


@pytest.mark.parametrize("raw", [b'{"a": "\xff"}', b'{"a": "\xed\xa0\x80"}', b'{"a": "\xc0\xaf"}', b'{"a": "\xe9"}'])
def test_bytes_that_are_not_utf8_are_rejected(raw: bytes) -> None:
    assert rejection_of(raw).code == "invalid_utf8"


@pytest.mark.parametrize("text", ["\\ud800", "\\udfff", "x\\udc00y", "\\ude00\\ud83d", "\\ud83dx"])
def test_lone_surrogate_escapes_are_rejected_in_values_and_keys(text: str) -> None:
    assert rejection_of(f'{{"a": ["{text}"]}}'.encode()).code == "invalid_json"
    assert rejection_of(f'{{"a": {{"{text}": 1}}}}'.encode()).code == "invalid_json"


def test_a_pair_of_surrogate_escapes_is_one_character() -> None:
    assert request_body.parse(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


def test_the_depth_limit_is_exact() -> None:
    assert request_body.parse(nested(10), max_depth=10)
    assert request_body.parse(b'{"a":[[1,2],"[[[["]}', max_depth=3)
    for raw in (nested(11), b'{"a":' + b"[" * 10 + b"]" * 10 + b"}"):
        with pytest.raises(BadRequest, match="LETHE_MAX_JSON_DEPTH") as caught:
            request_body.parse(raw, max_depth=10)
        assert caught.value.code == "too_deep"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":[' + b"1," * 99 + b"1]}",
        b'{"a":[' + b"[]," * 49 + b"[]]}",
        b"{" + b",".join(b'"%d":{}' % i for i in range(100)) + b"}",
    ],
)
def test_the_number_of_values_is_limited(raw: bytes) -> None:
    assert request_body.parse(raw, max_values=220)
    with pytest.raises(BadRequest, match="LETHE_MAX_JSON_VALUES") as caught:
        request_body.parse(raw, max_values=90)
    assert caught.value.code == "too_many_values"


def test_commas_in_strings_are_not_counted_as_values() -> None:
    text = json.dumps({"a": 'one, two, "three", [four], {five}, \\' * 200, "b": "\\"}).encode()
    assert request_body.parse(text, max_values=16)


# Headers

JSON = (b"content-type", b"application/json")


@pytest.mark.parametrize("headers", [
    [JSON], [(b"content-type", b"Application/JSON; charset=UTF-8")],
    [(b"content-type", b'application/json;charset="utf8"')],
    [JSON, (b"content-encoding", b"Identity")], [JSON, (b"content-length", b"2")],
    [JSON, (b"transfer-encoding", b"Chunked")],
], ids=repr)  # fmt: skip
def test_headers_of_uncompressed_json_are_accepted(headers: list[tuple[bytes, bytes]]) -> None:
    request_body.check_headers(headers)


@pytest.mark.parametrize(("headers", "code"), [
    ([], "content_type"), ([JSON, JSON], "content_type"), ([(b"content-type", b"")], "content_type"),
    ([(b"content-type", b"text/plain")], "content_type"),
    ([(b"content-type", b"application/json, text/plain")], "content_type"),
    ([(b"content-type", b"application/json; charset=utf-16")], "content_type"),
    ([(b"content-type", b"application/json; charset*=utf-8''utf-16")], "content_type"),
    ([(b"content-type", b"application/x-www-form-urlencoded")], "content_type"),
    ([(b"content-type", b"multipart/form-data; boundary=x")], "content_type"),
    ([(b"content-type", b"application/json\xe9")], "content_type"),
    *(([JSON, (b"content-encoding", name)], "content_encoding") for name in
      (b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip", b"x", b"")),
    ([JSON, (b"content-encoding", b"identity"), (b"content-encoding", b"gzip")], "content_encoding"),
    ([JSON, (b"transfer-encoding", b"gzip, chunked")], "transfer_encoding"),
    ([JSON, (b"transfer-encoding", b"identity")], "transfer_encoding"),
    ([JSON, (b"transfer-encoding", b"xchunked")], "transfer_encoding"),
    ([JSON, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], "transfer_encoding"),
    ([JSON, (b"transfer-encoding", b"chunked"), (b"content-length", b"2")], "transfer_encoding"),
], ids=repr)  # fmt: skip
def test_other_content_headers_are_rejected(headers: list[tuple[bytes, bytes]], code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request_body.check_headers(headers)
    assert caught.value.code == code
