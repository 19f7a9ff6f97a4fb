"""What to do: one YAML file a policy, read and checked at start, frozen afterwards.

A policy names an artifact (what was learned), a threshold, and an action. `hash` is that of the file's
bytes and stands in every audit record, so that a verdict can be traced to the text that made it.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from lethe.corruption.decoding.copy_limit import DEFAULT_LIMIT, MAX_LIMIT
from lethe.corruption.spec import CorruptSpec, Tuned

Action = Literal["corrupt", "penalize", "both", "refuse", "route", "watch", "pass"]

# YAML 1.1 reads the bare word off as false.
Mode = Annotated[Literal["enforce", "shadow", "off"], BeforeValidator(lambda v: "off" if v is False else v)]


_UNION_MEMBERS = ("float", "int", "constrained-float", "constrained-int")


class PolicyError(ValueError):
    """A policy can't be used; the message names file, key and value."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Threshold(Frozen):
    """Where a forget score begins to count: a stated error rate (conformal) or a plain value."""

    miss_rate: float | None = Field(default=None, gt=0, lt=1)
    false_alarm_rate: float | None = Field(default=None, gt=0, lt=1)
    value: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> Threshold:
        if sum(v is not None for v in (self.miss_rate, self.false_alarm_rate, self.value)) != 1:
            raise ValueError("give exactly one of miss_rate, false_alarm_rate, value")
        return self


def _limit(value: Any) -> Any:
    # Not left to the types: 0 equals false, and true equals 1.
    if value is False or (type(value) is int and 1 <= value <= MAX_LIMIT):
        return value
    raise ValueError(f"must be false, or a whole number of tokens from 1 to {MAX_LIMIT}")


class Penalize(Frozen):
    """GUARD (arXiv:2505.13312): what may not be said.

    hard: forbidden phrases can't be completed. soft: logits taken from words of similar meaning, at
    similarity 1 (0 = none). similarity: cosine from which a word counts as similar. items: how many of
    the nearest forget items give their phrases. verbatim: the most tokens of a document that may be
    copied in a row (false = any). always: that holds for every request of the covered models, flagged or not.
    """

    hard: bool = True
    soft: Annotated[float, Field(ge=0, le=100)] | Tuned = 4.0
    similarity: Annotated[float, Field(gt=0, le=1)] | Tuned = 0.5
    items: int = Field(default=5, ge=1, le=8)
    verbatim: Annotated[Literal[False] | int, BeforeValidator(_limit)] = DEFAULT_LIMIT
    always: bool = False

    @model_validator(mode="after")
    def _something(self) -> Penalize:
        if not self.hard and not self.soft and not self.verbatim:
            raise ValueError("hard: false with soft: 0 and verbatim: false penalizes nothing")
        if self.always and not self.verbatim:
            raise ValueError("always: true needs verbatim: the number of tokens that may be copied")
        return self


class Refuse(Frozen):
    message: str = Field(default="This request can't be answered here.", min_length=1)


class Route(Frozen):
    """Another model, served by the same upstream, that answers in place of the one asked for."""

    model: str = Field(min_length=1)


def _writable(value: str) -> str:
    # It may come to stand inside a string of JSON text (a tool call's arguments).
    if not value.isprintable() or '"' in value or "\\" in value:
        raise ValueError("may hold neither quotes, backslashes nor control characters")
    return value


class Watching(Frozen):
    """What is watched for in the answer itself.

    when: the phrases of the items that a flagged request asks for, or always all of the artifact's. on_hit: the
    answer ends before the phrase, or `replacement` stands in its place.
    """

    when: Literal["flagged", "always"] = "flagged"
    on_hit: Literal["stop", "replace"] = "stop"
    replacement: Annotated[str, Field(max_length=200), AfterValidator(_writable)] = "[removed]"


def checked_name(value: str) -> str:
    """The name, if policies and artifacts can bear it. Raises ValueError."""
    if not all(c.isalnum() or c in "-_." for c in value) or not value[:1].isalnum():
        raise ValueError("use letters, digits, '-', '_' and '.', a letter or digit first")
    return value


class Policy(Frozen):
    name: Annotated[str, AfterValidator(checked_name)]
    artifact: Annotated[str, AfterValidator(checked_name)]
    mode: Mode = "enforce"
    action: Literal["corrupt", "penalize", "both", "refuse", "route", "watch"]
    threshold: Threshold = Threshold(miss_rate=0.01)
    on_failure: Literal["refuse", "pass"] = "refuse"
    on_unsupported: Literal["penalize", "refuse"] = "penalize"
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    corrupt: CorruptSpec = CorruptSpec()
    penalize: Penalize = Penalize()
    watch: Watching | None = None
    refuse: Refuse = Refuse()
    route: Route | None = None
    hash: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _route_given(self) -> Policy:
        if self.action == "route" and self.route is None:
            raise ValueError("action 'route' needs route: {model: NAME}")
        return self

    @property
    def watching(self) -> Watching | None:
        return self.watch or (Watching() if self.action == "watch" else None)

    @property
    def needs_plugin(self) -> bool:
        """Whether only a vLLM with this project's plugin, or with prompt embeddings, can do what it says."""
        return self.action in ("corrupt", "penalize", "both") or self.penalize.always

    @property
    def corrupts(self) -> bool:
        return self.mode == "enforce" and self.action in ("corrupt", "both")

    @property
    def penalizes(self) -> bool:
        """Whether a flagged request may come to be penalised: by its action, or where that can't be."""
        return self.action in ("penalize", "both") or (self.action == "corrupt" and self.on_unsupported == "penalize")

    def covers(self, model: Any) -> bool:
        """Whether this policy applies to a request for `model`; without a name it does (fail closed)."""
        return self.models is None or not isinstance(model, str) or not model or model in self.models


class _Loader(yaml.SafeLoader):
    """YAML where a key that stands twice in a mapping is an error; the plain loader keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> tuple[bytes, dict[Any, Any]]:
    """A policy file's bytes and the mapping in it."""
    try:
        raw = path.read_bytes()
        data = yaml.load(raw.decode("utf-8"), _Loader)
    except OSError as error:
        raise PolicyError(f"{path}: can't be read: {error.strerror}") from None
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


def read(path: Path) -> Policy:
    """The policy in one file. Raises PolicyError naming file, key and value."""
    raw, data = _load(path)
    for key in data:
        # hash and source are fields of Policy, but not the file's to set.
        if not isinstance(key, str) or key in ("hash", "source"):
            raise PolicyError(f"{path}: {key}: is not a policy key")
    try:
        return Policy.model_validate({**data, "hash": hashlib.sha256(raw).hexdigest()[:16], "source": str(path)})
    except ValidationError as error:
        first = error.errors()[0]
        # A number that may also be "tuned" is a union to pydantic, which names the member as well.
        key = ".".join(str(part) for part in first["loc"] if part not in _UNION_MEMBERS) or "policy"
        unsaid = first["type"] in ("missing", "extra_forbidden") or isinstance(first["input"], dict | BaseModel)
        value = "" if unsaid else f" = {first['input']!r}"
        name = data.get("name", path.stem)
        raise PolicyError(f"policy {name!r}: {key}{value}: {first['msg']} ({path})") from None


def files(folder: Path) -> list[Path]:
    """The policy files of a folder."""
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])


def read_all(folder: Path) -> tuple[Policy, ...]:
    """Every policy of a folder, by file name; there may be none. Raises PolicyError."""
    if not folder.is_dir():
        raise PolicyError(f"the policies folder {folder} does not exist (LETHE_POLICIES)")
    policies = tuple(read(path) for path in files(folder))
    seen: dict[str, Policy] = {}
    for policy in policies:
        if policy.name in seen:
            raise PolicyError(
                f"policy name {policy.name!r} is used twice ({seen[policy.name].source} and {policy.source})"
            )
        seen[policy.name] = policy
    return policies


def with_mode(policy: Policy, mode: str) -> bytes:
    """The policy's file with another mode, every other byte as it is. Raises PolicyError where that can't be done."""
    path = Path(policy.source)
    text = path.read_bytes().decode()
    found, count = re.subn(r"(?m)^mode:[ \t]*[^\s#]+", f"mode: {mode}", text, count=1)
    if not count:
        found, count = re.subn(r"(?m)^(name:[^\n]*)$", rf"\1\nmode: {mode}", text, count=1)
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / path.name
        tried.write_bytes(found.encode())
        try:
            wanted = read(tried).model_copy(update={"mode": policy.mode, "hash": policy.hash, "source": policy.source})
            done = bool(count) and wanted == read(path)
        except PolicyError:
            done = False
    if not done:
        raise PolicyError(f"{path}: its mode can't be changed for you: write 'mode: {mode}' on a line of its own")
    return found.encode()
