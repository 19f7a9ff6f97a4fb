"""Past versions of the policies: what was in force, since when, by whom, and how to get it back.

A version is a JSON file that names its parts by their SHA-256. The parts are kept once, however many versions
share them: policy files as copies, artifacts as folders of hard links, so that one that doesn't change takes
no space. Everything is in files and every change is made under one lock, so several gateways, and the command
line, can share a folder.

    versions/12.json            {"number": 12, "time": …, "by": …, "policies": {file: hash}, "artifacts": {name: hash}}
    policies/HASH               a policy file's bytes
    artifacts/HASH/             an artifact's files; HASH is that of its manifest, which holds those of the rest
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lethe.classifier import artifact as artifacts_io
from lethe.server.policy.schema import files
from lethe.server.policy_store.load import Loaded, stamp
from lethe.server.settings import Settings
from lethe.server.upstream.verbatim_index import beside, put_in_place


class HistoryError(ValueError):
    """A version can't be kept or brought back; the message says which and why."""


@dataclass(frozen=True)
class Version:
    """One accepted state of all policies. restores: the number of the version that it brought back."""

    number: int
    time: float
    by: str
    policies: Mapping[str, str]
    artifacts: Mapping[str, str]
    restores: int | None = None

    @property
    def hash(self) -> str:
        """16 hex digits that tell its content, whenever and by whoever it was brought about."""
        content = json.dumps([self.policies, self.artifacts], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Nobody else changes policies or artifacts meanwhile: `lethe fit`, another gateway, the command line."""
    with contextlib.ExitStack() as stack:
        if settings.artifacts.is_dir():
            stack.enter_context(artifacts_io.locked(settings.artifacts / "any"))
        yield


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(partial).chmod(0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


class History:
    """The versions in a folder. Its callers hold the lock (`locked`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.history_folder

    def versions(self) -> list[Version]:
        """All that are kept, the oldest first; a file that isn't one is passed over."""
        found = []
        for path in self.folder.glob("versions/*.json"):
            with contextlib.suppress(ValueError, TypeError):
                found.append(Version(**json.loads(path.read_bytes())))
        return sorted(found, key=lambda version: version.number)

    def get(self, number: int) -> Version:
        """Raises HistoryError for one that isn't kept."""
        kept = {version.number: version for version in self.versions()}
        if number not in kept:
            raise HistoryError(f"there is no version {number} in {self.folder} (kept: {_ranges(sorted(kept))})")
        return kept[number]

    def keep(self, loaded: Loaded, by: str, restores: int | None = None) -> Version:
        """Keep what was loaded as a version, unless the newest is the same: then that one is returned.

        Raises HistoryError when the files are others by now, OSError when they can't be kept.
        """
        policies, artifacts = self._content(loaded)
        known = self.versions()
        number = known[-1].number + 1 if known else 1
        made = Version(number, time.time(), by, policies, artifacts, restores)
        if known and known[-1].hash == made.hash:
            return known[-1]
        write(self.folder / "versions" / f"{number}.json", json.dumps(asdict(made), indent=1).encode())
        self._drop(known[: len(known) + 1 - self._settings.history_keep])
        return made

    def restore(self, version: Version) -> None:
        """Put a version's files in place of those that are there. Raises HistoryError or OSError."""
        for name, digest in version.artifacts.items():
            self._restore_artifact(name, digest)
        contents = {name: self._kept_policy(name, digest) for name, digest in version.policies.items()}
        for name, content in contents.items():
            path = self._settings.policies / name
            if not path.is_file() or path.read_bytes() != content:
                write(path, content)
        for path in files(self._settings.policies):
            if path.name not in contents:
                path.unlink()

    def _content(self, loaded: Loaded) -> tuple[dict[str, str], dict[str, str]]:
        """File → hash and artifact → hash of what was loaded, all of it kept."""
        policies: dict[str, str] = {}
        for policy in loaded.policies:
            path = Path(policy.source)
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if not digest.startswith(policy.hash):
                raise HistoryError(f"{path} has changed meanwhile")
            policies[path.name] = digest
            if not (kept := self.folder / "policies" / digest).is_file():
                write(kept, content)
        # Those of policies that are off too, so that a version is whole; they needn't be there.
        names = {policy.artifact for policy in loaded.policies}
        artifacts = {name: digest for name in sorted(names) if (digest := stamp(self._settings.artifacts / name))}
        for name, digest in artifacts.items():
            if loaded.stamps.get(name, digest) != digest:
                raise HistoryError(f"artifact {name!r} has changed meanwhile")
            _link(self._settings.artifacts / name, self.folder / "artifacts" / digest)
        return policies, artifacts

    def _restore_artifact(self, name: str, digest: str) -> None:
        place, kept = self._settings.artifacts / name, self.folder / "artifacts" / digest
        if stamp(place) == digest:
            return
        if stamp(kept) != digest:
            raise HistoryError(f"artifact {name!r} of that version is not kept whole in {kept}")
        with beside(place) as made:
            _link(kept, made)
            try:
                artifacts_io.load(made)
            except ValueError as error:
                raise HistoryError(f"artifact {name!r} of that version was changed: {error}") from error
            put_in_place(made, place)

    def _kept_policy(self, name: str, digest: str) -> bytes:
        path = self.folder / "policies" / digest
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != digest or Path(name).name != name:
            raise HistoryError(f"policy file {name!r} of that version is not kept whole in {path}")
        return content

    def _drop(self, versions: list[Version]) -> None:
        """Forget these versions, and what no other one needs."""
        for version in versions:
            (self.folder / "versions" / f"{version.number}.json").unlink(missing_ok=True)
        if versions:
            left = self.versions()
            policies = {digest for version in left for digest in version.policies.values()}
            artifacts = {digest for version in left for digest in version.artifacts.values()}
            for path in self.folder.glob("policies/*"):
                if path.name not in policies:
                    path.unlink()
            for path in self.folder.glob("artifacts/*"):
                if path.name not in artifacts:
                    shutil.rmtree(path)


def _link(source: Path, target: Path) -> None:
    """The files of a folder under another name too: links where the file system can, copies elsewhere."""
    if target.is_dir():
        return
    with beside(target) as made:
        made.mkdir()
        for path in source.iterdir():
            try:
                os.link(path, made / path.name)
            except OSError:
                shutil.copy2(path, made / path.name)
        os.rename(made, target)


def _ranges(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
