"""What replicas can do, as a value that the guard decides on."""

from __future__ import annotations

from lethe.server.upstream.capabilities import Capabilities, Needs, ReplicaCapabilities


def test_one_replica_must_have_parity_and_all_indexes() -> None:
    with_parity = ReplicaCapabilities(frozenset(["m"]), parity=True)
    with_indexes = ReplicaCapabilities(frozenset(["m"]), indexes=frozenset("ab"))
    both = Capabilities((with_parity, with_indexes))
    assert both.covers("m", Needs(parity=True)) and both.covers("m", Needs(indexes=frozenset("ab")))
    assert not both.covers("m", Needs(parity=True, indexes=frozenset("a")))
    assert not both.covers("m", Needs(indexes=frozenset("abc")))


def test_only_available_replicas_of_the_model_count() -> None:
    down = ReplicaCapabilities(frozenset(["m"]), available=False, parity=True)
    other = ReplicaCapabilities(frozenset(["n"]), parity=True)
    assert not Capabilities((down,)).covers("m", Needs())
    assert not Capabilities((down, other)).covers("m", Needs(parity=True))
    assert Capabilities((down, other)).covers("n", Needs(parity=True))


def test_all_replicas_count_for_a_model_that_none_serves() -> None:
    one = Capabilities((ReplicaCapabilities(frozenset(["m"]), parity=True),))
    for model in ("unknown", None, ["m"]):
        assert one.covers(model, Needs(parity=True))


def test_default_capabilities_cover_plain_requests_only() -> None:
    assert Capabilities().covers("m", Needs())
    assert not Capabilities().covers("m", Needs(parity=True))
    everything = Capabilities.of_any_model(parity=True, indexes=["a"])
    assert everything.covers(None, Needs(parity=True, indexes=frozenset("a")))
