"""Search for requests that are expensive to judge: mutate inputs, and go on with those that cost most.

    python -m tests.fuzz.expensive [--seconds 60] [--seed 0]

The cost is measured as processor time per character, and as the longest step between two looks at the limit on a
request's work (target `work` of tests/fuzz/targets.py). `tests/fuzz/run.py work` searches with coverage as its guide.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import NamedTuple

from tests.fuzz.targets import SEEDS, work_seconds

# Inputs that are kept and mutated further. Chosen: enough to keep different kinds of cost.
KEPT = 12
# What mutations insert: pieces that decoders, windows and prefilter look at.
PIECES = (
    b"Hsiao Yun-Hwa", b" ", b"\n", b"\x1f", b"(", b".", b"-", b"%41", b"&#65;", b"V2hh", b"=", b"1", b"\\u0041", b"q",
    "\u0430".encode(), "\u200b".encode(), b"What is the name of the author born in", b"'", b'"', b"<b>", b". ",
    b"sdrow",
)  # fmt: skip


class Cost(NamedTuple):
    """An input, its processor seconds, and those of its longest step."""

    seconds: float
    longest_s: float
    data: bytes


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four changes."""
    for _ in range(rng.randrange(1, 5)):
        at, size = rng.randrange(len(data) + 1), rng.choice((0, 0, 1, 2, 5))
        data = data[:at] + rng.choice((*PIECES, bytes([rng.randrange(256)]), data[at : at + 9])) + data[at + size :]
    return data[:600]


def search(*, seconds: float, seed: int) -> list[Cost]:
    """The most expensive inputs found in about that many seconds, the longest step first."""
    rng, ends = random.Random(seed), time.monotonic() + seconds
    kept: list[Cost] = []
    queue = list(SEEDS["work"])
    while time.monotonic() < ends:
        data = queue.pop() if queue else mutate(rng.choice(kept).data, rng)
        kept.append(Cost(*work_seconds(data), data))
        by_step = sorted(kept, key=lambda cost: -cost.longest_s)[: KEPT // 2]
        by_time = sorted(kept, key=lambda cost: -cost.seconds)[: KEPT // 2]
        kept = list(dict.fromkeys([*by_step, *by_time]))
    return sorted(kept, key=lambda cost: -cost.longest_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for cost in search(seconds=args.seconds, seed=args.seed):
        print(f"{cost.seconds:.2f} s, longest step {cost.longest_s:.2f} s: {cost.data!r}")


if __name__ == "__main__":
    main()
