from __future__ import annotations

from lethe.classifier.encoder.lru import Recent


def test_the_one_not_asked_for_the_longest_goes_first() -> None:
    recent: Recent[int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert [recent.get(text) for text in "abc"] == [1, None, 3] and len(recent) == 2
    recent.put("c", 4)
    assert recent.get("c") == 4 and recent.get("a") == 1
    recent.clear()
    assert recent.get("c") is None and len(recent) == 0


def test_no_text_is_kept() -> None:
    recent: Recent[int] = Recent(9)
    recent.put("a secret \ud800", 1)
    assert recent.get("a secret \ud800") == 1
    assert b"secret" not in b"".join(recent._values)
