"""Keyed randomness: it depends on secret, policy and tokens only."""

from __future__ import annotations

import hashlib
import hmac
import os
import subprocess
import sys

import pytest

from lethe.corruption.embeddings import keyed_rng

SECRET = b"sixteen bytes or more"
PROGRAM = """
from lethe.corruption.embeddings import keyed_rng
print(keyed_rng.keyed_generator(b"sixteen bytes or more", "p", [1, 2, 3]).random_raw(4).tolist())
"""


def drawn(secret: bytes = SECRET, policy: str = "p", ids: tuple[int, ...] = (1, 2, 3)) -> list[int]:
    values: list[int] = keyed_rng.keyed_generator(secret, policy, ids).random_raw(4).tolist()
    return values


def test_the_same_key_draws_the_same() -> None:
    assert drawn() == drawn()


def test_secret_policy_and_ids_all_matter() -> None:
    others = [drawn(secret=SECRET + b"!"), drawn(policy="q"), drawn(ids=(1, 2)), drawn(ids=(1, 3, 2))]
    assert len({tuple(values) for values in [drawn(), *others]}) == 5


@pytest.mark.parametrize("seed", ["0", "1"])
def test_another_process_draws_the_same(seed: str) -> None:
    environment = os.environ | {"PYTHONHASHSEED": seed}
    out = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(drawn())


def test_parts_that_join_to_the_same_bytes_differ() -> None:
    assert keyed_rng.keyed_digest(SECRET, "ab", "c", b"") != keyed_rng.keyed_digest(SECRET, "a", "bc", b"")


def test_the_digest_is_hmac_sha256_over_parts_and_lengths() -> None:
    message = b"".join(len(part).to_bytes(8, "big") + part for part in (b"policy", b"noise", b"data"))
    expected = hmac.new(SECRET, message, hashlib.sha256).digest()
    assert keyed_rng.keyed_digest(SECRET, "policy", "noise", b"data") == expected


def test_a_short_secret_is_refused() -> None:
    assert keyed_rng.check_secret(SECRET) == SECRET
    with pytest.raises(ValueError, match="at least 16"):
        keyed_rng.check_secret(b"short")
