from __future__ import annotations

import json
import re
from random import Random

import pytest

from lethe.evaluation.attacks.requests import CARRIERS, AttackRequest, Filler
from lethe.server.requests.extract import extract_texts

TEXT = "Where was the lighthouse keeper Orvan Teldric born?"
FILLER = Filler(
    ["A quiet paragraph about tea.", "", "Trains are late on Mondays, as a rule."], lambda t: len(t.split())
)
LONG = {
    "start": FILLER.around(0.0, 300),
    "middle": FILLER.around(0.5, 300),
    "end": FILLER.around(1.0, 300),
    "inside": FILLER.inside_sentence(60),
    "turns": FILLER.over_many_turns(80),
}


def letters(text: str) -> str:
    return re.sub(r"\W", "", text)


@pytest.mark.parametrize("name", CARRIERS)
def test_a_carrier_is_repeatable_and_makes_a_valid_request(name: str) -> None:
    for seed in range(5):
        request = CARRIERS[name](TEXT, Random(seed))
        assert request == CARRIERS[name](TEXT, Random(seed))
        json.dumps(request.body)
        assert extract_texts(request.endpoint, request.body)


@pytest.mark.parametrize("name", [name for name in CARRIERS if not name.startswith(("split", "word", "as-"))])
def test_an_unsplit_text_is_judged_as_a_whole(name: str) -> None:
    for seed in range(5):
        request = CARRIERS[name](TEXT, Random(seed))
        assert any(TEXT in piece.text for piece in extract_texts(request.endpoint, request.body)), request


@pytest.mark.parametrize("name", [name for name in CARRIERS if name.startswith(("split", "word"))])
def test_a_split_text_is_in_no_single_message_but_complete(name: str) -> None:
    for seed in range(5):
        request = CARRIERS[name](TEXT, Random(seed))
        pieces = [piece.text for piece in extract_texts(request.endpoint, request.body)]
        parts = [piece for piece in pieces if piece in TEXT]
        assert len(parts) >= 2 and not any(TEXT in piece for piece in pieces)
        assert letters("".join(parts)) == letters(TEXT)


@pytest.mark.parametrize("name", CARRIERS)
@pytest.mark.parametrize("text", ["Hi", "a", "?", "x " * 300])
def test_a_carrier_accepts_any_text(name: str, text: str) -> None:
    assert isinstance(CARRIERS[name](text, Random(0)), AttackRequest)


def content(request: AttackRequest) -> str:
    return "\n".join(message["content"] for message in request.body["messages"])


@pytest.mark.parametrize("name", ["start", "middle", "end", "inside"])
def test_filler_has_its_size_and_the_prompt_its_position(name: str) -> None:
    text = content(LONG[name](TEXT, Random(1)))
    tokens = 60 if name == "inside" else 300
    assert tokens <= len(text.split()) - len(TEXT.split()) <= tokens + 10
    share = text.index(TEXT) / (len(text) - len(TEXT))
    assert share == pytest.approx({"start": 0, "end": 1}.get(name, 0.5), abs=0.1)


def test_inside_a_sentence_no_line_break_marks_the_prompt() -> None:
    assert "\n" not in content(LONG["inside"](TEXT, Random(1)))


def test_long_turns_stand_between_the_parts() -> None:
    request = LONG["turns"](TEXT, Random(2))
    users = [message["content"] for message in request.body["messages"] if message["role"] == "user"]
    assert " ".join(users[:-1]) == TEXT


def test_filler_is_repeatable() -> None:
    assert [carry(TEXT, Random(5)) for carry in LONG.values()] == [carry(TEXT, Random(5)) for carry in LONG.values()]


@pytest.mark.parametrize("paragraphs", [[], ["", "  "]])
def test_filler_without_text_is_refused(paragraphs: list[str]) -> None:
    with pytest.raises(ValueError, match="no text"):
        Filler(paragraphs, len)
