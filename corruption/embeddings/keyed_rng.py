"""Keyed randomness: the same prompt always gets the same noise, and only the server can predict it.

HMAC-SHA256 over (policy, purpose, data), so nothing depends on the process or on Python's hash(). Repeated questions
get the same answer, vLLM's prefix cache works, and asking again doesn't average the noise away.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.random import SFC64

# 128 bits, which nobody can guess by trying.
MIN_SECRET_BYTES = 16


def check_secret(secret: bytes) -> bytes:
    """Return the secret. Raises ValueError when it is too short to be safe from guessing."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the corruption secret has {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed")
    return secret


def keyed_digest(secret: bytes, policy: str, purpose: str, data: bytes) -> bytes:
    """Return 32 keyed bytes. Each part of the message is preceded by its length, so no two inputs share a message."""
    mac = _mac_of_policy(secret, policy, purpose).copy()
    mac.update(len(data).to_bytes(8, "big") + data)
    return mac.digest()


@lru_cache(maxsize=1024)  # about the number of policies in use; an entry saves half the work of a short message
def _mac_of_policy(secret: bytes, policy: str, purpose: str) -> hmac.HMAC:
    """The HMAC after the beginning that all of a policy's messages share."""
    message = b"".join(len(part).to_bytes(8, "big") + part for part in (policy.encode(), purpose.encode()))
    return hmac.new(secret, message, hashlib.sha256)


def keyed_generator(secret: bytes, policy: str, ids: Sequence[int]) -> SFC64:
    """Return a source of random bits seeded by these token ids.

    numpy guarantees a bit generator's output across versions, but not the distributions made of it. So use only bits.
    """
    data = np.asarray(ids, dtype="<u8").tobytes()
    return SFC64(int.from_bytes(keyed_digest(secret, policy, "noise", data), "big"))
