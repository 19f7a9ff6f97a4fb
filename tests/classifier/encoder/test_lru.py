from __future__ import annotations

from lethe.classifier.encoder.lru import TextLRU


def test_the_least_recently_used_entry_is_evicted_first() -> None:
    cache: TextLRU[int] = TextLRU(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(text) for text in "abc"] == [1, None, 3] and len(cache) == 2
    cache.put("c", 4)
    assert cache.get("c") == 4 and cache.get("a") == 1
    cache.clear()
    assert cache.get("c") is None and len(cache) == 0


def test_no_text_is_kept() -> None:
    cache: TextLRU[int] = TextLRU(9)
    cache.put("a secret \ud800", 1)
    assert cache.get("a secret \ud800") == 1
    assert b"secret" not in b"".join(cache._values)
