"""What the report says of indexes and parity; tests/integration runs the command in front of the real vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lethe.server.cli import doctor as module
from lethe.server.cli.doctor import CheckResult
from lethe.server.errors import UpstreamTimeout
from lethe.server.settings import Settings
from tests.server.fakes import policy
from tests.server.guard.test_guard import INDEX

FLAG = "--enable-prompt-embeds"


@pytest.mark.parametrize(("mode", "expected"), [("enforce", [False]), ("shadow", [False]), ("off", [])])
async def test_every_policy_that_is_not_off_needs_its_index(
    mode: str, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_indexes(*_: object) -> frozenset[str]:
        return frozenset()

    monkeypatch.setattr(module, "load_artifact", lambda settings, policy: None)
    monkeypatch.setattr(module, "find_indexes", lambda policies, artifacts: {p.artifact: INDEX for p in policies})
    monkeypatch.setattr(module, "loaded_indexes", no_indexes)
    checks = module._check_indexes(cast(Any, None), Settings(), "m", (policy(action="penalize", mode=mode),))
    assert [result.ok async for result in checks] == expected


@pytest.mark.parametrize(("reason", "named"), [
    (f"the probe as embeddings returned 400: no (is vLLM running with {FLAG}?)", FLAG),
    ("the probe as embeddings returned 503: busy", "log of vLLM"),
    ("answers differ from token 3 on", "LETHE_MODEL_DIR"),
])  # fmt: skip
def test_the_flag_is_blamed_only_where_vllm_says_so(reason: str, named: str) -> None:
    fix = module._parity_fix(reason)
    assert named in fix and (FLAG in fix) is (FLAG in reason)


async def test_a_slow_parity_probe_blames_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: object) -> None:
        raise UpstreamTimeout("upstream did not answer /v1/chat/completions within 60 s")

    async def call(method: str, path: str, *_: object, **__: object) -> tuple[int, Any]:
        return 200, {"version": "0.32.0"}

    async def cards(_: object) -> list[dict[str, str]]:
        return [{"id": "m"}]

    async def plugin(*_: object) -> CheckResult:
        return CheckResult(True, "plugin")

    monkeypatch.setattr(module.parity_probe, "probe_parity", slow)
    monkeypatch.setattr(module, "fetch_model_cards", cards)
    monkeypatch.setattr(module, "_check_plugin", plugin)
    upstream = cast(Any, SimpleNamespace(url="http://u", call=call))
    results = [one async for one in module._check_upstream(upstream, Settings(), (), cast(Any, object()))]
    assert results[-1].ok is False and "within 60 s" in results[-1].message and FLAG not in results[-1].fix
