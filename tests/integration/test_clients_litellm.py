"""The LiteLLM SDK does its ordinary work through the gateway: flagged, and not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from lethe.evaluation.demo import demo
from tests.clients.asked import CORRUPTED, PENALIZED, UNFLAGGED, noted, work
from tests.clients.tap import Tap
from tests.integration.conftest import Closed


def litellm(*told: str) -> Any:
    """What comes of each piece of work, all in one process: the package takes seconds to import."""
    command = [sys.executable, "-m", "tests.clients.by_litellm"]
    given = "\n".join(told)
    ran = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, cwd=demo.ROOT)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def test_its_ordinary_work_errors_and_refusals(tapped: Tap, closed: Closed, plain: Callable[[str], str]) -> None:
    cases = (CORRUPTED, PENALIZED, UNFLAGGED)
    done, [wrong], [refused] = litellm(
        work("done", tapped.url, *cases),
        work("wrong", tapped.url, UNFLAGGED),
        work("refused", closed.tap.url, PENALIZED, key=closed.key),
    )
    for case, got in zip(cases, done, strict=True):
        assert len(got["texts"]) == 5 and all(case.kept(text, plain(case.question)) for text in got["texts"])
        assert len(set(got["texts"][:4])) == 1  # on responses another action holds than on chat
        assert all(map(noted, got["notes"]))
    kinds = [(error["kind"], error["status"]) for error in wrong]
    assert kinds == [("BadRequestError", 400)] * 2 + [("NotFoundError", 404)] * 2
    assert "non-negative" in wrong[0]["message"]
    # Errors are never asked again.
    failed = [exchange for exchange in tapped.exchanges if exchange.status >= 400]
    assert len(failed) == len(wrong) and len(closed.tap.exchanges) == len(refused)
    kinds = [(error["kind"], error["status"]) for error in refused]
    assert kinds == [("BadRequestError", 400)] * 2 + [("AuthenticationError", 401)]
