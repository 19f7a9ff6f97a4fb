from __future__ import annotations

import re
from random import Random

import pytest

from lethe.evaluation.attacks.record_perturbations import RECORDS

TEXT = "Where was the lighthouse keeper Orvan Teldric born?"


@pytest.mark.parametrize("name", RECORDS)
def test_the_words_stay_in_their_order(name: str) -> None:
    for seed in range(5):
        text = RECORDS[name](TEXT, Random(seed))
        assert re.search(r"\b.*?\b".join(map(re.escape, TEXT.split())), text, re.DOTALL)
        assert not any(f"{a} {b}" in text for a, b in zip(TEXT.split(), TEXT.split()[1:], strict=False))
