"""The cache with a limit in bytes."""

from __future__ import annotations

import random

from lethe.corruption.byte_cache import ByteCache


def test_the_limit_holds_and_recently_used_entries_stay() -> None:
    cache: ByteCache[bytes] = ByteCache(10_000, len)
    rng = random.Random(0)
    cache.put("used", b"x")
    for i in range(2_000):
        cache.put(i, bytes(rng.randrange(2_000)))
        assert cache.bytes <= 10_000
        assert cache.get("used") == b"x"
    assert 4 <= len(cache) <= 25


def test_a_value_larger_than_the_cache_is_not_stored() -> None:
    cache: ByteCache[bytes] = ByteCache(1_000, len)
    cache.put("small", b"x")
    cache.put("large", bytes(5_000))
    assert cache.get("large") is None and cache.get("small") == b"x"
