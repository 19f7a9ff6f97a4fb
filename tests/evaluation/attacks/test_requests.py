from __future__ import annotations

import json
import re
from random import Random

import pytest

from lethe.evaluation.attacks.requests import CARRIERS, Filler, Request
from lethe.server.requests import extract as fields

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
def test_a_carrier_is_repeatable_and_the_gateway_accepts_it(name: str) -> None:
    for seed in range(5):
        request = CARRIERS[name](TEXT, Random(seed))
        assert request == CARRIERS[name](TEXT, Random(seed))
        json.dumps(request.body)
        assert fields.extract(request.endpoint, request.body)


@pytest.mark.parametrize("name", [name for name in CARRIERS if not name.startswith(("split", "word", "as-"))])
def test_what_is_carried_whole_is_judged_whole(name: str) -> None:
    for seed in range(5):
        request = CARRIERS[name](TEXT, Random(seed))
        assert any(TEXT in piece.text for piece in fields.extract(request.endpoint, request.body)), request


@pytest.mark.parametrize("name", [name for name in CARRIERS if name.startswith(("split", "word"))])
def test_what_is_split_stands_in_no_message_and_is_all_there(name: str) -> None:
    for seed in range(5):
        request = CARRIERS[name](TEXT, Random(seed))
        pieces = [piece.text for piece in fields.extract(request.endpoint, request.body)]
        said = [piece for piece in pieces if piece in TEXT]
        assert len(said) >= 2 and not any(TEXT in piece for piece in pieces)
        assert letters("".join(said)) == letters(TEXT)


@pytest.mark.parametrize("name", CARRIERS)
@pytest.mark.parametrize("text", ["Hi", "a", "?", "x " * 300])
def test_a_carrier_takes_any_text(name: str, text: str) -> None:
    assert isinstance(CARRIERS[name](text, Random(0)), Request)


def content(request: Request) -> str:
    return "\n".join(message["content"] for message in request.body["messages"])


@pytest.mark.parametrize("name", ["start", "middle", "end", "inside"])
def test_filler_has_its_size_and_the_prompt_its_place(name: str) -> None:
    text = content(LONG[name](TEXT, Random(1)))
    wanted = 60 if name == "inside" else 300
    assert wanted <= len(text.split()) - len(TEXT.split()) <= wanted + 10
    share = text.index(TEXT) / (len(text) - len(TEXT))
    assert share == pytest.approx({"start": 0, "end": 1}.get(name, 0.5), abs=0.1)


def test_inside_a_sentence_nothing_sets_the_prompt_apart() -> None:
    assert "\n" not in content(LONG["inside"](TEXT, Random(1)))


def test_long_turns_stand_between_the_pieces() -> None:
    request = LONG["turns"](TEXT, Random(2))
    users = [message["content"] for message in request.body["messages"] if message["role"] == "user"]
    assert " ".join(users[:-1]) == TEXT


def test_filler_is_repeatable() -> None:
    assert [carry(TEXT, Random(5)) for carry in LONG.values()] == [carry(TEXT, Random(5)) for carry in LONG.values()]


@pytest.mark.parametrize("paragraphs", [[], ["", "  "]])
def test_filler_without_text_is_refused(paragraphs: list[str]) -> None:
    with pytest.raises(ValueError, match="no text"):
        Filler(paragraphs, len)
