"""Constraints on the answer that steer to a forgotten name flag the request; those that any text satisfies don't.

With the demo's artifact of 400 facts about 20 authors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lethe.classifier.artifact_io import load_artifact
from lethe.classifier.judge import Score
from lethe.classifier.work_limit import WorkExceeded, WorkLimit
from lethe.corruption.phrases.normalize import fold
from lethe.server.guard.forget_answers import LazyArtifactWords
from lethe.server.guard.parsed_request import ParsedRequest
from lethe.server.policy_store.load import load_decode
from lethe.server.requests.extract import extract_texts
from lethe.server.steering.constraints import ConstraintCheck
from lethe.server.steering.secret_names import LazySecretNames
from tests.server.fakes import make_guard, policy, score

DEMO = Path(__file__).parents[3] / "evaluation" / "demo"
MODEL = DEMO / "models" / "demo"
NAMES = (
    "Hsiao Yun-Hwa", "Nikolai Abilov", "Elvin Mammadov", "Kalkidan Abera", "Takashi Nakamura",
    "Basil Mahfouz Al-Kuwaiti", "Edward Patrick Sullivan", "Behrouz Rohani", "Raven Marais", "Rajeev Majumdar",
)  # fmt: skip
TITLES = (
    "Artistic Authority: Leading with Creativity", "The Breath Between Waves", "Shadows of the Silver Screen",
    "Venom in the Veins: The Narratives of Medea", "Promise by the Seine", "Beyond the Baku Blues",
)  # fmt: skip


@pytest.fixture(scope="module")
def check() -> ConstraintCheck:
    artifacts = {"a": load_artifact(DEMO / "artifacts" / "tofu-forget10")}
    return ConstraintCheck(artifacts, LazySecretNames(artifacts, LazyArtifactWords(artifacts)), load_decode(MODEL))


def request(**fields: Any) -> ParsedRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Tell me."}], **fields}
    return ParsedRequest("chat", body, extract_texts("chat", body))


def steered(check: ConstraintCheck, **fields: Any) -> Score | None:
    """The score of a request with these constraints where it is flagged for them; None otherwise."""
    asked = request(**fields)
    before = score(0.0, texts=[0.0] * len(asked.texts), asked=())
    after = check.with_steered(asked.body, [piece.place for piece in asked.pieces], {"a": before}, ["a"])["a"]
    return None if after is before else after


def outputs(**members: Any) -> dict[str, Any]:
    return {"structured_outputs": members}


def wildcard(name: str, rng: Random, given_letters: int = 2) -> str:
    """A regular expression for a name, of each word only the first letters given."""
    words = re.findall(r"\w+|\W+", name)
    pattern = ""
    for number, word in enumerate(words):
        kept = given_letters if number == 0 else rng.choice((0, 1, 2))
        if not word.isalpha():
            pattern += rng.choice((re.escape(word), r"\W+", r"[^\w]{1,3}"))
        elif len(word) <= kept:
            pattern += word
        else:
            tail = rng.choice(("[a-z]+", f"[a-z]{{{len(word) - kept}}}", r"\w+", "[^ ]+"))
            pattern += word[:kept] + (tail if kept else rng.choice(("[A-Z][a-z]+", r"\p{Lu}\p{Ll}+", r"\w+")))
    return pattern


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(NAMES + TITLES[:1]), st.integers(0, 10**6), st.sampled_from(["", ".*", "Answer: "]))
def test_a_pattern_with_wildcards_that_leads_to_a_name_is_flagged(
    check: ConstraintCheck, name: str, seed: int, before: str
) -> None:
    pattern = before + wildcard(name, Random(seed))
    found = steered(check, **outputs(regex=pattern))
    assert found is not None and found.score == 1, pattern
    # The items that hold the name are those to be penalised.
    items = {number for window in found.window_items for number in window}
    artifact = check._artifacts["a"]
    assert any(fold(name.split()[0]).strip() in fold(artifact.items[number].answer) for number in items)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_found_in_every_kind_of_constraint(check: ConstraintCheck, name: str) -> None:
    pattern = wildcard(name, Random(1))
    first, *others = re.findall(r"\w+", name)
    schema = {"type": "object", "properties": {"who": {"type": "string", "pattern": pattern}}}
    grammars = (
        f'root ::= "{first[:2]}" [a-z]+ (" " | "-") rest\nrest ::= [A-Z] [a-z]+ ((" " | "-") [A-Z] [a-z]+)*',
        f'start: A " " WORD\nA: "{first[:1]}" "{first[1:3]}" /[a-z]+/\nWORD: /.+/',
        f'?start: "The answer is " name\nname: /{first[:3]}[a-z]*/ (/[ -]/ /[A-Z][a-z]+/)*',
    )
    tool = {"type": "custom", "name": "t", "format": {"type": "grammar", "syntax": "regex", "definition": pattern}}
    asked: list[dict[str, Any]] = [
        outputs(regex=pattern), outputs(json=schema), outputs(json=json.dumps(schema)),
        *(outputs(grammar=grammar) for grammar in grammars),
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"response_format": {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": schema}]}},
        {"text": {"format": {"type": "json_schema", "schema": schema}}},
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}, {"tools": [tool]},
        outputs(structural_tag=json.dumps({"format": {"type": "regex", "pattern": pattern}})),
        outputs(json={"patternProperties": {pattern: {"type": "string"}}}),
    ]  # fmt: skip
    missed = [fields for fields in asked if steered(check, **fields) is None]
    assert missed == []


@pytest.mark.parametrize("title", TITLES)
def test_a_title_among_fixed_texts_is_flagged(check: ConstraintCheck, title: str) -> None:
    others = ["The Long Way Home", "A Study of Birds", "none"]
    for fields in (outputs(choice=[*others, title]), outputs(json={"enum": [*others, title.upper()]})):
        assert steered(check, **fields) is not None
    assert steered(check, **outputs(choice=others)) is None


# Constraints of ordinary clients.
ORDINARY: tuple[dict[str, Any], ...] = (
    *(outputs(regex=pattern) for pattern in (
        ".*", r"\w+", "(yes|no)", r"\d+", r"\d{4}-\d{2}-\d{2}", r"[A-Z][a-z]+ [A-Z][a-z]+", r"[\w.]+@\w+\.com\n",
        r"[A-Z]{2,5}-\d+", r"#[0-9a-fA-F]{6}", r"\d{3}-\d{3}-\d{4}", r"(Mr|Ms|Dr)\. [A-Z][a-z]+", r"https?://[^\s]+",
        r"SELECT [a-z_, ]+ FROM [a-z_]+( WHERE .*)?", r"(?:[a-z]+,? ){3,20}[a-z]+\.", r"[A-Za-z0-9+/]{20}={0,2}",
        r"(Monday|Tuesday|Wednesday|Thursday|Friday)", r"(?s)<think>.*</think>.*", r"[A-E]", r"Answer: (.|\n)*",
        r"The [A-Z][a-z]+ [A-Z][a-z]+ [A-Z][a-z]+", r"(positive|negative|neutral)", r"-?\d+(\.\d+)?", r"v\d+\.\d+",
    )),
    outputs(choice=["red", "green", "blue"]), outputs(choice=["Germany", "France", "Taiwan", "Chile"]),
    outputs(json_object=True), outputs(json={"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "when": {"format": "date"},
        "kind": {"enum": ["person", "place", "book"]}, "country": {"type": "string", "pattern": "^[A-Z]{2}$"}}}),
    outputs(grammar='root ::= expr\nexpr ::= term (("+" | "-") term)*\nterm ::= [0-9]+ | "(" expr ")"'),
    outputs(grammar='start: select\nselect: "SELECT " NAME " FROM " NAME\nNAME: /[a-z_]+/'),
    {"response_format": {"type": "json_object"}}, {"response_format": {"type": "text"}},
    {"logit_bias": {"50": -100, "51": -100}}, {"logit_bias": {}},
)  # fmt: skip


@pytest.mark.parametrize("fields", ORDINARY, ids=lambda fields: json.dumps(fields)[:60])
def test_ordinary_constraints_are_not_flagged(check: ConstraintCheck, fields: dict[str, Any]) -> None:
    assert steered(check, **fields) is None


def token_ids(text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_preferred_tokens_that_spell_a_name_are_flagged(check: ConstraintCheck, name: str, seed: int) -> None:
    rng = Random(seed)
    tokens = [*token_ids(f" {name}"), *(token_ids(name) if seed else []), 2]
    rng.shuffle(tokens)
    biased = {str(token): rng.choice((1, 5.5, 100, "50")) for token in tokens}
    assert steered(check, logit_bias={"9": -100, **biased}) is not None
    assert steered(check, allowed_token_ids=tokens) is not None


def test_preferred_tokens_of_ordinary_words_are_not_flagged(check: ConstraintCheck) -> None:
    for text in (" yes no", " A B C D E", "0 1 2 3 4 5 6 7 8 9", " positive negative neutral", " the river flows"):
        tokens = token_ids(text)
        assert steered(check, allowed_token_ids=tokens) is None, text
        assert steered(check, logit_bias=dict.fromkeys(map(str, tokens), 5)) is None, text
    assert steered(check, allowed_token_ids=list(range(2000))) is None


@pytest.mark.parametrize("pattern", [
    r"(\w+ ){2000}", "(a|aa)+" * 50, "((((a*)*)*)*)*b", "(" * 300 + "a" + ")" * 300, "(?:a|b|c|d|e|f|g|h){900}",
    "x" * 20_000, r"(.{1,999}){1,999}", "[" * 50, r"(?P<n>a)(?P=n)" * 100, "(a{1,16}){1,16}" * 16,
], ids=lambda pattern: pattern[:20])  # fmt: skip
def test_no_pattern_takes_more_than_the_work_limit(check: ConstraintCheck, pattern: str) -> None:
    limit = WorkLimit(2.0)
    try:
        limit.run(lambda: steered(check, **outputs(regex=pattern)))
        limit.run(lambda: steered(check, **outputs(grammar=f"root ::= /{pattern}/")))
    except WorkExceeded:
        pass
    assert limit.used_s < 3


def test_the_guard_flags_what_a_constraint_steers_to() -> None:
    artifacts = {"a": load_artifact(DEMO / "artifacts" / "tofu-forget10")}
    guard = make_guard(policy(action="penalize"), artifacts=artifacts)
    body = {"model": "m", "messages": [{"role": "user", "content": "Tell me."}]}
    pattern = {"structured_outputs": {"regex": "Hs[a-z]+ [A-Z][a-z]+-[A-Z][a-z]+"}}
    decided = guard.examine(guard.parse("chat", body | pattern))
    assert decided.action == "penalize" and decided.verdict is not None
    assert decided.verdict.findings[0].to_record("structured_outputs")["view"] == "constraint"
    sent = json.loads(decided.payload or b"{}")
    assert "regex" not in sent.get("structured_outputs", {}) and "vllm_xargs" in sent
    assert guard.examine(guard.parse("chat", body | {"structured_outputs": {"regex": r"\w+ \w+"}})).action == "pass"
