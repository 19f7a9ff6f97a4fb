"""Reading policy files: one YAML file per policy, checked against `schema.py`; and changing the mode in a file."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lethe.server.policy.schema import Policy, PolicyError

# What pydantic adds to the place of an error for each member of a union; left out of messages.
_UNION_MEMBERS = ("float", "int", "constrained-float", "constrained-int")


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys; SafeLoader keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path}: can't be read: {error.strerror}") from None


def _file_hash(raw: bytes) -> str:
    """The hash of a policy file that audit records name."""
    return hashlib.sha256(raw).hexdigest()[:16]


def _parse_file(path: Path) -> tuple[bytes, dict[Any, Any]]:
    """Return a policy file's bytes and the mapping in it."""
    raw = _read_file(path)
    try:
        data = yaml.load(raw.decode("utf-8"), _StrictLoader)
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: not UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise PolicyError(f"{path}{where}: not YAML: {getattr(error, 'problem', error)}") from None
    except (ValueError, RecursionError) as error:
        # A number, date or nesting that looks like YAML and isn't.
        raise PolicyError(f"{path}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise PolicyError(f"{path}: a policy is a mapping with name, artifact and action")
    return raw, data


def read_policy(path: Path, known: Policy | None = None) -> Policy:
    """Return the policy in one file; `known`, if that was read from the same bytes of this file.

    Raises PolicyError naming file, key and value.
    """
    if known is not None and known.source == str(path) and known.hash == _file_hash(_read_file(path)):
        return known
    raw, data = _parse_file(path)
    for key in data:
        # hash and source are fields of Policy, but not keys of the file.
        if not isinstance(key, str) or key in ("hash", "source"):
            raise PolicyError(f"{path}: {key}: is not a policy key")
    try:
        return Policy.model_validate({**data, "hash": _file_hash(raw), "source": str(path)})
    except ValidationError as error:
        first = error.errors()[0]
        # A number that may also be "tuned" is a union to pydantic, which names the member as well.
        key = ".".join(str(part) for part in first["loc"] if part not in _UNION_MEMBERS) or "policy"
        no_value = first["type"] in ("missing", "extra_forbidden") or isinstance(first["input"], dict | BaseModel)
        value = "" if no_value else f" = {first['input']!r}"
        name = data.get("name", path.stem)
        raise PolicyError(f"policy {name!r}: {key}{value}: {first['msg']} ({path})") from None


def policy_files(folder: Path) -> list[Path]:
    """The policy files of a folder, sorted by name."""
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])


def read_policies(folder: Path, known: Iterable[Policy] = ()) -> tuple[Policy, ...]:
    """Return every policy of a folder, by file name. The folder may be empty. Raises PolicyError.

    known: policies that were read before. Those whose files have not changed are returned as they are.
    """
    if not folder.is_dir():
        raise PolicyError(f"the policies folder {folder} does not exist (LETHE_POLICIES)")
    known_by_file = {policy.source: policy for policy in known}
    policies = tuple(read_policy(path, known_by_file.get(str(path))) for path in policy_files(folder))
    by_name: dict[str, Policy] = {}
    for policy in policies:
        if policy.name in by_name:
            raise PolicyError(
                f"policy name {policy.name!r} is used twice ({by_name[policy.name].source} and {policy.source})"
            )
        by_name[policy.name] = policy
    return policies


def with_mode(policy: Policy, mode: str) -> bytes:
    """Return the policy's file with another mode and every other byte unchanged.

    Raises PolicyError if the mode can't be changed that way.
    """
    path = Path(policy.source)
    text = path.read_bytes().decode()
    changed, count = re.subn(r"(?m)^mode:[ \t]*[^\s#]+", f"mode: {mode}", text, count=1)
    if not count:
        changed, count = re.subn(r"(?m)^(name:[^\n]*)$", rf"\1\nmode: {mode}", text, count=1)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(changed.encode())
        try:
            # Apart from the mode, both files must mean the same.
            same_mode = {"mode": policy.mode, "hash": policy.hash, "source": policy.source}
            succeeded = bool(count) and read_policy(copy).model_copy(update=same_mode) == read_policy(path)
        except PolicyError:
            succeeded = False
    if not succeeded:
        raise PolicyError(f"{path}: its mode can't be changed automatically: put 'mode: {mode}' on a line of its own")
    return changed.encode()
