"""Every combination of policies and scores has exactly one verdict."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lethe.server.policy.schema import Policy
from lethe.server.policy.verdict import STRICTNESS, Finding, Verdict, decide
from tests.server.fakes import score

ACTIONS = ("corrupt", "penalize", "both", "refuse", "route")
MODES = ("enforce", "shadow", "off")
ASKED = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from(MODES), st.floats(0, 1), st.floats(0, 1)), max_size=6
)


def judged(*asked: tuple[str, str, float, float]) -> Verdict:
    """The verdict over policies of these actions, modes, thresholds and scores; they are named by number."""
    policies, scores = {}, {}
    for number, (action, mode, threshold, value) in enumerate(asked):
        route = {"route": {"model": "other"}} if action == "route" else {}
        given = {"name": str(number), "artifact": "a", "action": action, "mode": mode, **route}
        policies[str(number)] = (Policy.model_validate(given), threshold)
        scores[str(number)] = score(value)
    return decide(policies, scores)


def flagged(*actions: str) -> Verdict:
    return judged(*((action, "enforce", 0.5, 0.9) for action in actions))


def names(findings: tuple[Finding, ...]) -> list[int]:
    return [int(finding.policy.name) for finding in findings]


@given(ASKED)
def test_every_combination_has_one_verdict_of_some_policy(
    asked: list[tuple[str, str, float, float]],
) -> None:
    verdict = judged(*asked)
    acting = {i: action for i, (action, mode, at, value) in enumerate(asked) if mode == "enforce" and value >= at}
    assert verdict.action in STRICTNESS
    assert names(verdict.findings) == list(range(len(asked)))
    assert set(names(verdict.acting)) <= acting.keys()
    assert (verdict.action == "pass") == (not acting) == (not verdict.acting)
    adding = {"corrupt", "penalize"} <= set(acting.values())
    assert verdict.action in {*acting.values(), *(["both"] if adding else []), *([] if acting else ["pass"])}
    assert all(STRICTNESS.index(verdict.action) <= STRICTNESS.index(action) for action in acting.values())  # type: ignore[arg-type]


@given(ASKED)
def test_shadow_and_off_policies_change_nothing(asked: list[tuple[str, str, float, float]]) -> None:
    alone = [one for one in asked if one[1] == "enforce"]
    assert judged(*asked).action == judged(*alone).action


@given(ASKED, st.randoms(use_true_random=False))
def test_the_order_of_policies_does_not_matter(asked: list[tuple[str, str, float, float]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(asked)
    random.shuffle(shuffled)
    assert judged(*asked).action == judged(*shuffled).action


@pytest.mark.parametrize(("actions", "verdict"), [
    (["corrupt"], "corrupt"),
    (["penalize"], "penalize"),
    (["corrupt", "corrupt"], "corrupt"),
    (["corrupt", "penalize"], "both"),
    (["penalize", "corrupt"], "both"),
    (["corrupt", "both"], "both"),
    (["penalize", "both"], "both"),
    (["both", "route"], "route"),
    (["corrupt", "penalize", "route"], "route"),
    (["route", "refuse"], "refuse"),
    (["corrupt", "penalize", "both", "route", "refuse"], "refuse"),
])  # fmt: skip
def test_the_strictest_action_wins_and_corrupt_plus_penalize_is_both(actions: list[str], verdict: str) -> None:
    assert flagged(*actions).action == verdict


def test_a_verdict_names_the_policies_that_cause_it() -> None:
    assert names(flagged("corrupt", "refuse", "route", "refuse").acting) == [1, 3]
    assert names(flagged("penalize", "route").acting) == [1]
    assert names(flagged("corrupt", "penalize", "both").acting) == [0, 1, 2]


def test_a_shadow_policy_has_a_finding_but_does_not_act() -> None:
    verdict = judged(("refuse", "shadow", 0.5, 0.9))
    assert verdict.action == "pass" and verdict.acting == ()
    assert verdict.findings[0].flagged


def test_a_score_at_the_threshold_is_flagged() -> None:
    assert judged(("refuse", "enforce", 0.5, 0.5)).action == "refuse"
    assert judged(("refuse", "enforce", 0.5, math.nextafter(0.5, 0))).action == "pass"


def test_a_score_that_is_not_a_number_is_flagged() -> None:
    assert judged(("refuse", "enforce", 0.5, math.nan)).action == "refuse"


def test_without_policies_everything_passes() -> None:
    assert decide({}, {}) == Verdict("pass", (), ())


def test_a_policy_without_a_score_is_an_error() -> None:
    with pytest.raises(KeyError):
        decide({"p": (Policy(name="p", artifact="a", action="refuse"), 0.5)}, {})
