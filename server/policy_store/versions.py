"""Past versions of the policies: what was used, since when, who changed it, and how to restore it.

A version is a JSON file that names its parts by their SHA-256. Each part is stored once, however many versions share
it: policy files as copies, artifacts as folders of hard links, so an unchanged artifact takes no space. Everything is a
file, and every change is made under one lock, so several gateways and the command line can share a folder.

    versions/12.json        {"number": 12, "time": …, "by": …, "policies": {file: hash}, "artifacts": {name: hash}}
    policies/HASH           the bytes of a policy file
    artifacts/HASH/         the files of an artifact; HASH is that of its manifest, which has the other hashes
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lethe.classifier import artifact_io
from lethe.server.atomic_file import write_atomically
from lethe.server.policy.files import policy_files
from lethe.server.policy_store.load import LoadedPolicies, manifest_hash
from lethe.server.settings import Settings
from lethe.server.upstream.verbatim_index import move_into_place, staging_folder


class HistoryError(ValueError):
    """A version can't be saved or restored. The message says which and why."""


@dataclass(frozen=True)
class Version:
    """One accepted state of all policies. restores: the number of the version that it restored, if any."""

    number: int
    time: float
    by: str
    policies: Mapping[str, str]
    artifacts: Mapping[str, str]
    restores: int | None = None

    @property
    def hash(self) -> str:
        """16 hex digits of the content, independent of time and author."""
        content = json.dumps([self.policies, self.artifacts], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@contextlib.contextmanager
def policies_lock(settings: Settings) -> Iterator[None]:
    """Keep others from changing policies and artifacts: `lethe fit`, another gateway, the command line."""
    with contextlib.ExitStack() as stack:
        if settings.artifacts.is_dir():
            stack.enter_context(artifact_io.artifact_lock(settings.artifacts / "any"))
        yield


class VersionHistory:
    """The versions in a folder. Callers must hold `policies_lock`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.history_folder

    def versions(self) -> list[Version]:
        """All saved versions, oldest first. Invalid files are ignored."""
        versions = []
        for path in self.folder.glob("versions/*.json"):
            with contextlib.suppress(ValueError, TypeError):
                versions.append(Version(**json.loads(path.read_bytes())))
        return sorted(versions, key=lambda version: version.number)

    def get(self, number: int) -> Version:
        """Return a version. Raises HistoryError if it is not saved."""
        by_number = {version.number: version for version in self.versions()}
        if number not in by_number:
            raise HistoryError(f"there is no version {number} in {self.folder} (saved: {_range(sorted(by_number))})")
        return by_number[number]

    def save(self, loaded: LoadedPolicies, by: str, restores: int | None = None) -> Version:
        """Save what was loaded as a version. Return the newest version instead if it has the same content.

        Raises HistoryError if the files have changed since they were loaded, OSError if they can't be saved.
        """
        policies, artifacts = self._save_parts(loaded)
        versions = self.versions()
        number = versions[-1].number + 1 if versions else 1
        version = Version(number, time.time(), by, policies, artifacts, restores)
        if versions and versions[-1].hash == version.hash:
            return versions[-1]
        content = json.dumps(asdict(version), indent=1).encode()
        write_atomically(self.folder / "versions" / f"{number}.json", content)
        self._delete(versions[: len(versions) + 1 - self._settings.history_keep])
        return version

    def restore(self, version: Version) -> None:
        """Replace the current files by a version's files. Raises HistoryError or OSError."""
        for name, digest in version.artifacts.items():
            self._restore_artifact(name, digest)
        contents = {name: self._saved_policy(name, digest) for name, digest in version.policies.items()}
        for name, content in contents.items():
            path = self._settings.policies / name
            if not path.is_file() or path.read_bytes() != content:
                write_atomically(path, content)
        for path in policy_files(self._settings.policies):
            if path.name not in contents:
                path.unlink()

    def _save_parts(self, loaded: LoadedPolicies) -> tuple[dict[str, str], dict[str, str]]:
        """Save the policy files and artifacts that were loaded. Return file → hash and artifact → hash."""
        policies: dict[str, str] = {}
        for policy in loaded.policies:
            path = Path(policy.source)
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if not digest.startswith(policy.hash):
                raise HistoryError(f"{path} has changed since it was loaded")
            policies[path.name] = digest
            if not (copy := self.folder / "policies" / digest).is_file():
                write_atomically(copy, content)
        # Artifacts of policies that are off are saved too, if they exist, so that the version is complete.
        names = {policy.artifact for policy in loaded.policies}
        hashes = {name: manifest_hash(self._settings.artifacts / name) for name in sorted(names)}
        artifacts = {name: digest for name, digest in hashes.items() if digest}
        for name, digest in artifacts.items():
            if loaded.artifact_hashes.get(name, digest) != digest:
                raise HistoryError(f"artifact {name!r} has changed since it was loaded")
            _link_folder(self._settings.artifacts / name, self.folder / "artifacts" / digest)
        return policies, artifacts

    def _restore_artifact(self, name: str, digest: str) -> None:
        folder, saved = self._settings.artifacts / name, self.folder / "artifacts" / digest
        if manifest_hash(folder) == digest:
            return
        if manifest_hash(saved) != digest:
            raise HistoryError(f"artifact {name!r} of that version is missing or damaged in {saved}")
        with staging_folder(folder) as staged:
            _link_folder(saved, staged)
            try:
                artifact_io.load_artifact(staged)
            except ValueError as error:
                raise HistoryError(f"artifact {name!r} of that version was changed: {error}") from error
            move_into_place(staged, folder)

    def _saved_policy(self, name: str, digest: str) -> bytes:
        path = self.folder / "policies" / digest
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != digest or Path(name).name != name:
            raise HistoryError(f"policy file {name!r} of that version is missing or damaged in {path}")
        return content

    def _delete(self, versions: list[Version]) -> None:
        """Delete these versions, and the parts that no other version has."""
        for version in versions:
            (self.folder / "versions" / f"{version.number}.json").unlink(missing_ok=True)
        if versions:
            remaining = self.versions()
            policies = {digest for version in remaining for digest in version.policies.values()}
            artifacts = {digest for version in remaining for digest in version.artifacts.values()}
            for path in self.folder.glob("policies/*"):
                if path.name not in policies:
                    path.unlink()
            for path in self.folder.glob("artifacts/*"):
                if path.name not in artifacts:
                    shutil.rmtree(path)


def _link_folder(source: Path, target: Path) -> None:
    """Create a folder with the same files: hard links if the file system supports them, else copies."""
    if target.is_dir():
        return
    with staging_folder(target) as staged:
        staged.mkdir()
        for path in source.iterdir():
            try:
                os.link(path, staged / path.name)
            except OSError:
                shutil.copy2(path, staged / path.name)
        os.rename(staged, target)


def _range(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
