"""A cache that stays within its bound."""

from __future__ import annotations

import random

from lethe.corruption.bounded import ByteCache


def test_the_bound_holds_and_what_was_used_last_stays() -> None:
    cache: ByteCache[bytes] = ByteCache(10_000, len)
    rng = random.Random(0)
    for i in range(2_000):
        cache.put(i, bytes(rng.randrange(2_000)))
        assert cache.bytes <= 10_000
        cache.put("kept", b"x") if i == 0 else None
        assert cache.get("kept") == b"x"
    assert 4 <= len(cache) <= 25


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    cache: ByteCache[bytes] = ByteCache(1_000, len)
    cache.put("small", b"x")
    cache.put("large", bytes(5_000))
    assert cache.get("large") is None and cache.get("small") == b"x"


def test_a_key_keeps_its_first_value() -> None:
    cache: ByteCache[bytes] = ByteCache(5_000, len)
    cache.put("k", b"one")
    before = cache.bytes
    cache.put("k", b"another")
    assert cache.get("k") == b"one" and cache.bytes == before
