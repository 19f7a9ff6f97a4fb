"""Policy files: a valid one is read completely, an invalid one is an error with file, key and value."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lethe.server.policy.files import read_policy
from lethe.server.policy.schema import OutputFilterOptions, Penalize, Policy, PolicyError, Threshold

MINIMAL = "name: p\nartifact: a\naction: refuse\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "p.yaml"


def refused(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PolicyError) as caught:
        read_policy(path)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


def test_a_minimal_policy_has_safe_defaults(file: Path) -> None:
    file.write_text(MINIMAL)
    policy = read_policy(file)
    assert (policy.mode, policy.on_failure, policy.on_unsupported) == ("enforce", "refuse", "penalize")
    assert policy.threshold == Threshold(auto=True)
    assert policy.penalize == Penalize(hard=True, soft=4.0, similarity=0.5, items=5)
    assert policy.models is None
    assert policy.source == str(file)
    assert policy.hash == hashlib.sha256(MINIMAL.encode()).hexdigest()[:16]


def test_a_full_policy_is_read_completely(file: Path) -> None:
    file.write_text(
        """
name: full
artifact: some-artifact
mode: shadow
action: route
models: [one, two]
threshold: {false_alarm_rate: 0.002}
on_failure: pass
on_unsupported: refuse
corrupt: {function: noise, tokens: content, sigma: 2, sigma_unit: absolute, dims: 3, select: top}
penalize: {hard: false, soft: 1, similarity: 0.75, items: 8}
refuse: {message: No.}
route: {model: other}
"""
    )
    policy = read_policy(file)
    assert policy.threshold.false_alarm_rate == 0.002
    assert policy.models == ("one", "two")
    assert policy.corrupt.sigma == 2.0 and policy.corrupt.dims == 3
    assert policy.penalize == Penalize(hard=False, soft=1.0, similarity=0.75, items=8)
    assert policy.refuse.message == "No."
    assert policy.route is not None and policy.route.model == "other"


@pytest.mark.parametrize("word", ["off", "OFF", '"off"', "false"])
def test_off_may_be_written_without_quotes(file: Path, word: str) -> None:
    """YAML 1.1 reads the bare word as false."""
    file.write_text(MINIMAL + f"mode: {word}\n")
    assert read_policy(file).mode == "off"


@pytest.mark.parametrize(("line", "error_text"), [
    ("threshold: {value: 1.7}", "policy 'p': threshold.value = 1.7: Input should be less than"),
    ("threshold: {miss_rate: 0}", "threshold.miss_rate = 0: Input should be greater than 0"),
    ("threshold: {value: .nan}", "threshold.value = nan: "),
    ("threshold: {}", "threshold: Value error, give exactly one of auto, miss_rate, false_alarm_rate, value"),
    ("threshold: {value: 0.5, miss_rate: 0.1}", "give exactly one of"),
    ("threshold: {auto: true, value: 0.5}", "give exactly one of"),
    ("threshold: {auto: false}", "threshold.auto = False: "),
    ("threshold: 0.5", "threshold = 0.5: "),
    ("mode: on", "mode = True: "),
    ("mode: shadows", "mode = 'shadows': Input should be 'enforce', 'shadow' or 'off'"),
    ("on_failure: ignore", "on_failure = 'ignore': Input should be 'refuse' or 'pass'"),
    ("on_unsupported: pass", "on_unsupported = 'pass': "),
    ("treshold: {value: 1}", "policy 'p': treshold: Extra inputs are not permitted (FILE)"),
    ("corrupt: {function: nois}", "corrupt.function = 'nois': "),
    ("corrupt: {function: noise}", "needs a key 'sigma'"),
    ("corrupt: {sigma: 1}", "has no meaning for function 'decoy'"),
    ("penalize: {items: 9}", "penalize.items = 9: "),
    ("penalize: {hard: false, soft: 0, verbatim: false}", "penalizes nothing"),
    ("penalize: {verbatim: 0}", "penalize.verbatim"),
    ("penalize: {verbatim: 257}", "penalize.verbatim"),
    ("penalize: {verbatim: true}", "penalize.verbatim"),
    ("penalize: {verbatim: 12.5}", "penalize.verbatim"),
    ("penalize: {always: true, verbatim: false}", "always: true needs verbatim"),
    ("models: []", "models = []: "),
    ("models: demo", "models = 'demo': "),
    ("refuse: {message: ''}", "refuse.message = '': "),
    ("route: {model: ''}", "route.model = '': "),
    ("hash: abc", "FILE: hash: is not a policy key"),
    ("source: abc", "FILE: source: is not a policy key"),
    ("1: 2", "FILE: 1: is not a policy key"),
])  # fmt: skip
def test_a_wrong_key_or_value_is_named(file: Path, line: str, error_text: str) -> None:
    assert error_text in refused(file, MINIMAL + line + "\n")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a b", "-a", "é?", "x\n"])
def test_an_invalid_name_is_refused(file: Path, name: str) -> None:
    for key in ("name", "artifact"):
        given = {"name": "p", "artifact": "a", key: name}
        text = "".join(f"{k}: {v!r}\n" for k, v in given.items()).replace("'x\\n'", '"x\\n"')
        assert f"{key} = {name!r}: Value error, use letters" in refused(file, text + "action: refuse\n")


def test_a_missing_key_is_named(file: Path) -> None:
    assert refused(file, "artifact: a\naction: refuse\n") == "policy 'p': name: Field required (FILE)"


def test_route_needs_a_model(file: Path) -> None:
    assert "action 'route' needs route: {model: NAME}" in refused(file, MINIMAL.replace("refuse", "route"))


def test_a_policy_is_frozen() -> None:
    policy = Policy(name="p", artifact="a", action="refuse")
    with pytest.raises(ValidationError):
        policy.mode = "off"  # type: ignore[misc]


def test_only_enforced_corruption_corrupts() -> None:
    def corrupts(mode: str, action: str) -> bool:
        return Policy.model_validate({"name": "p", "artifact": "a", "mode": mode, "action": action}).corrupts

    assert corrupts("enforce", "corrupt") and corrupts("enforce", "both")
    assert not corrupts("enforce", "penalize")
    assert not corrupts("shadow", "corrupt") and not corrupts("off", "both")


@given(st.none() | st.integers() | st.lists(st.text()) | st.just(""))
def test_a_request_without_a_model_name_is_covered(model: Any) -> None:
    assert Policy(name="p", artifact="a", action="refuse", models=("one",)).covers(model)


def test_a_policy_covers_its_models_only() -> None:
    some = Policy(name="p", artifact="a", action="refuse", models=("one",))
    assert some.covers("one") and not some.covers("two") and not some.covers("One")
    assert Policy(name="p", artifact="a", action="refuse").covers("any")


def test_the_output_filter_is_off_by_default(file: Path) -> None:
    file.write_text(MINIMAL)
    assert read_policy(file).output_filter is None
    file.write_text("name: p\nartifact: a\naction: watch\n")
    assert read_policy(file).output_filter == OutputFilterOptions(
        when="flagged", on_hit="stop", replacement="[removed]"
    )
    file.write_text(MINIMAL + "watch: {when: always, on_hit: replace, replacement: …}\n")
    assert read_policy(file).output_filter == OutputFilterOptions(when="always", on_hit="replace", replacement="…")


@pytest.mark.parametrize("value", ["'a\"b'", "'a\\b'", '"a\\nb"', "x" * 201])
def test_a_replacement_has_no_quotes_or_backslashes(file: Path, value: str) -> None:
    assert "watch.replacement" in refused(file, MINIMAL + f"watch: {{replacement: {value}}}\n")


@pytest.mark.parametrize(
    ("given", "needs"),
    [("action: watch", False), ("action: refuse", False), ("action: penalize", True), ("action: both", True),
     ("action: corrupt", True), ("action: refuse\npenalize: {always: true}", True)],
)  # fmt: skip
def test_policies_that_need_the_plugin_are_recognized(file: Path, given: str, needs: bool) -> None:
    file.write_text(f"name: p\nartifact: a\n{given}\n")
    assert read_policy(file).needs_vllm is needs
