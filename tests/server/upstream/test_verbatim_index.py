"""Protected texts from the gateway's side: which documents, their index in the artifact, and who has it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lethe.classifier.artifact import ForgetItem
from lethe.corruption.decoding import suffix_index as indexes
from lethe.corruption.decoding.spec import XARGS_KEY, decode_penalty
from lethe.server.policy.schema import PolicyError
from lethe.server.policy_store.load import find_indexes
from lethe.server.upstream.client import Upstream
from lethe.server.upstream.verbatim_index import documents, index_name, known, save, write_index
from tests.server.fakes import FakeUpstream, policy, upstream
from tests.server.guard.test_guard import artifact

FACT = ForgetItem("Who?", "Ozren Dalmatin.", "")
PAGES = (ForgetItem("", "", "It was a bright"), ForgetItem("", "", " cold day in April."))


def with_items(*items: ForgetItem) -> Any:
    return dataclasses.replace(artifact(), items=items)


def test_documents_are_kept_and_facts_are_not() -> None:
    assert documents(with_items(FACT, *PAGES, ForgetItem("", "", " — "))) == [page.text for page in PAGES]
    assert index_name(with_items(FACT)) is None


def test_the_index_in_the_artifacts_folder_has_the_name_that_requests_will_use(tmp_path: Path) -> None:
    made = with_items(FACT, *PAGES)
    path = write_index(made, tmp_path)
    assert path is not None and indexes.load_index(path).name == index_name(made)
    assert write_index(with_items(FACT), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_policies_name_the_texts_they_keep() -> None:
    artifacts = {"a": with_items(*PAGES), "b": with_items(FACT)}
    name = index_name(artifacts["a"])
    for kept in (
        policy(action="penalize"),
        policy(action="corrupt"),
        policy(action="refuse", penalize={"always": True}),
    ):
        assert find_indexes([kept], artifacts) == {"a": name}
    for other in (
        policy(action="refuse"),
        policy(action="penalize", penalize={"verbatim": False}),
        policy(action="corrupt", on_unsupported="refuse"),
        policy(action="penalize", artifact="b"),
    ):
        assert find_indexes([other], artifacts) == {}
    with pytest.raises(PolicyError, match="penalize.always = true: artifact 'b' has no documents"):
        find_indexes([policy(artifact="b", penalize={"always": True})], artifacts)


def server_with(*names: str, checks: bool = True) -> Any:
    """A vLLM that has these indexes; `checks` says whether the plugin is at work."""

    async def answer(fake: FakeUpstream, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m"}]})
        asked = decode_penalty(json.loads(fake.bodies[-1])["vllm_xargs"][XARGS_KEY]).verbatim
        return web.json_response({}, status=200 if not checks or set(asked) <= set(names) else 400)

    return answer


async def ask(handler: Any, *names: str) -> frozenset[str]:
    async with upstream(handler) as fake:
        connection = Upstream(fake.url, connect_timeout_s=1, read_timeout_s=1)
        try:
            return await known(connection, "m", names)
        finally:
            await connection.close()


async def test_vllm_has_the_indexes_that_it_takes() -> None:
    one, other = "1" * 32, "2" * 32
    assert await ask(server_with(one), one, other) == {one}
    assert await ask(server_with(one)) == frozenset()


async def test_a_vllm_that_takes_any_name_has_none() -> None:
    assert await ask(server_with(checks=False), "1" * 32) == frozenset()


def stands(folder: Path) -> tuple[int, str]:
    """How many items the artifact there has, and the name of its index."""
    items = (folder / "items.jsonl").read_text().splitlines()
    return len(items), indexes.load_index(folder / indexes.INDEX_FILE).name


@pytest.mark.parametrize(
    "step", ["lethe.server.upstream.verbatim_index.write_index", "lethe.server.upstream.verbatim_index.put_in_place"]
)
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_while_saving_leaves_what_stood_there_whole(tmp_path: Path, step: str, before: bool) -> None:
    """The process ends between the artifact and its index: never does one stand there without the other."""
    folder = tmp_path / "a"
    old, new = with_items(FACT, PAGES[0]), with_items(FACT, *PAGES)
    if before:
        save(old, folder)
    crashed = os.fork()
    if not crashed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, lambda *_: os._exit(9))
            save(new, folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(crashed, 0)[1]) == 9
    assert folder.exists() == before
    if before:
        assert stands(folder) == (len(old.items), index_name(old))
    # What the crash left beside it is in nobody's way.
    save(new, folder)
    assert stands(folder) == (len(new.items), index_name(new))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["a"]
