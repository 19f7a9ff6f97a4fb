"""Verbatim indexes of protected documents: writing them with an artifact, and asking vLLM which it has loaded.

An index is too large to travel with a request. It lies in the artifact's folder; the vLLM plugin reads a copy of that
folder (LETHE_VERBATIM, `corruption/decoding/suffix_index.py`), and a request refers to it by name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lethe.classifier import artifact_io
from lethe.classifier.artifact import Artifact
from lethe.corruption.decoding import suffix_index
from lethe.corruption.decoding.copy_limit import DEFAULT_COPY_LIMIT
from lethe.corruption.decoding.spec import XARGS_KEY, Penalty, encode_penalty

if TYPE_CHECKING:
    from lethe.server.upstream.client import Upstream

# No index has this name: a server that accepts it doesn't run the plugin.
UNKNOWN_INDEX = "0" * suffix_index.NAME_LENGTH
# A phrase that the answer to a probe has no reason to say.
PROBE_PHRASE = "plugin probe"
# Seconds that one probe request may take: the server may be busy with long prompts.
PROBE_TIMEOUT_S = 60.0


def protected_documents(artifact: Artifact) -> list[str]:
    """The texts of an artifact whose copying is limited: its documents, not its facts."""
    return [item.text for item in artifact.items if item.text and suffix_index.comparable_letters(item.text)]


def index_name(artifact: Artifact) -> str | None:
    """The name of the index of an artifact's documents; None if it has no documents."""
    texts = protected_documents(artifact)
    return suffix_index.content_name(texts) if texts else None


def save_with_index(artifact: Artifact, folder: Path) -> Path | None:
    """Write the artifact and the index of its documents, if it has any, into `folder`: both or nothing.

    Returns the index's path. Raises ValueError when the folder exists and is not an artifact.
    """
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder}: exists and is not an artifact")
    with staging_folder(folder) as staged:
        artifact_io.save_artifact(artifact, staged)
        index = write_index(artifact, staged)
        move_into_place(staged, folder)
    return folder / index.name if index else None


@contextlib.contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A path next to `folder` for the folder that will replace it; it is deleted at the end of the block."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def move_into_place(staged: Path, folder: Path) -> None:
    """Make `staged` the new `folder` in one atomic step; an existing folder ends up at `staged`."""
    if folder.exists():
        artifact_io.swap_folders(staged, folder)
    else:
        os.rename(staged, folder)


def write_index(artifact: Artifact, folder: Path) -> Path | None:
    """Write the index of an artifact's documents into its folder; without documents, delete an old index."""
    path, texts = folder / suffix_index.INDEX_FILE, protected_documents(artifact)
    if not texts:
        path.unlink(missing_ok=True)
        return None
    suffix_index.save_index(texts, path)
    # The index holds the documents' letters, so it is as closed as the artifact's other files.
    path.chmod(artifact_io.FILE_MODE)
    return path


async def loaded_indexes(upstream: Upstream, model: str, names: Iterable[str]) -> frozenset[str]:
    """Those of the named indexes that vLLM has loaded; none if it accepts an unknown name, since no plugin runs then.

    Raises GatewayError when vLLM can't be reached.
    """
    sorted_names = sorted(names)
    if not sorted_names or await _accepts(upstream, model, UNKNOWN_INDEX):
        return frozenset()
    return frozenset([name for name in sorted_names if await _accepts(upstream, model, name)])


async def runs_plugin(upstream: Upstream, model: str) -> bool:
    """Whether vLLM runs the plugin: it serves a penalty that holds, and rejects one that can't.

    Raises GatewayError when vLLM can't be reached.
    """
    valid = encode_penalty(Penalty(phrases=(PROBE_PHRASE,)))
    return await _serves(upstream, model, valid) and not await _accepts(upstream, model, UNKNOWN_INDEX)


async def _accepts(upstream: Upstream, model: str, name: str) -> bool:
    """Whether vLLM serves a request that refers to the index `name`."""
    return await _serves(upstream, model, encode_penalty(Penalty(verbatim={name: DEFAULT_COPY_LIMIT})))


async def _serves(upstream: Upstream, model: str, penalty: str) -> bool:
    """Whether vLLM serves a request with this penalty in it."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "vllm_xargs": {XARGS_KEY: penalty},
    }
    status, _ = await upstream.call("POST", "/v1/chat/completions", body, timeout_s=PROBE_TIMEOUT_S)
    return status == 200
