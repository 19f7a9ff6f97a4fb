"""The targets of the fuzzer with a few examples, and with everything that it has found."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.conftest import FACTOR
from tests.fuzz.expensive import search
from tests.fuzz.targets import MOST_STEP_S, SEEDS, TARGETS, work_seconds

# What a law once did not hold for, or what took too long. Each is mended; none may come back.
FINDINGS = [
    # Every piece of a line that has not ended was searched from each of its bytes on.
    ("events", b"\1\0data: " + b"x" * 4000),
]


@pytest.mark.parametrize("name", TARGETS)
def test_laws_hold_for_the_seeds(name: str) -> None:
    # Those that take their time are for longer runs.
    some = SEEDS[name] if name not in ("growth", "work") or FACTOR > 1 else SEEDS[name][:6]
    for seed in some:
        TARGETS[name](seed)


@pytest.mark.parametrize(("name", "data"), FINDINGS)
def test_laws_hold_for_what_was_found(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("growth", "work")])
@settings(max_examples=40 * FACTOR, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_laws_hold_for_spoilt_seeds(name: str, data: st.DataObject) -> None:
    raw = data.draw(st.sampled_from(SEEDS[name]))
    for _ in range(data.draw(st.integers(0, 3))):
        at, size = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 6))
        raw = raw[:at] + data.draw(st.binary(max_size=6) | st.sampled_from(SEEDS[name])) + raw[at + size :]
    TARGETS[name](raw)


def test_a_short_search_finds_no_step_that_takes_long() -> None:
    dearest = search(seconds=10.0 * FACTOR, seed=1)
    assert dearest
    # Once more for what took long, since anything may hold up a process once.
    again = [work_seconds(cost.data) for cost in dearest if cost.longest_s > MOST_STEP_S or cost.seconds > 2.0]
    assert all(longest < MOST_STEP_S for _, longest in again)
    # Work that exceeds its limit stops one step later.
    assert all(seconds < 2.0 + 2 * MOST_STEP_S for seconds, _ in again)
