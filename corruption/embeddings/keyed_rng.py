"""Keyed randomness: the same prompt always meets the same noise, and only the server can foretell it.

HMAC-SHA256 over (policy, purpose, data), so nothing depends on the process or on Python's hash().
Repeated questions get the same answer, vLLM's prefix cache works, and asking again averages nothing away.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.random import SFC64

MIN_SECRET_BYTES = 16


def check_secret(secret: bytes) -> bytes:
    """The secret itself; ValueError when it is too short to keep anybody from guessing it."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the corruption secret has {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed")
    return secret


def keyed_digest(secret: bytes, policy: str, purpose: str, data: bytes) -> bytes:
    """32 keyed bytes. Lengths stand before the texts, so no two inputs share a message."""
    made = _begun(secret, policy, purpose).copy()
    made.update(len(data).to_bytes(8, "big") + data)
    return made.digest()


@lru_cache(maxsize=1024)
def _begun(secret: bytes, policy: str, purpose: str) -> hmac.HMAC:
    """What all of a policy's messages begin with: half of the work of a short one."""
    message = b"".join(len(part).to_bytes(8, "big") + part for part in (policy.encode(), purpose.encode()))
    return hmac.new(secret, message, hashlib.sha256)


def keyed_generator(secret: bytes, policy: str, ids: Sequence[int]) -> SFC64:
    """A source of random bits, seeded by these token ids.

    numpy promises the bits of a source, not what its generators make of them: only the bits are to be used.
    """
    data = np.asarray(ids, dtype="<u8").tobytes()
    return SFC64(int.from_bytes(keyed_digest(secret, policy, "noise", data), "big"))
