"""A subject of a forget request: a person, work, place, project … with its names, as the artifact's manifest holds it.

Which names a subject has, and how much each says, is decided by the fit (`classifier/training/subjects.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Scope = Literal["subject", "facts"]

# Evidence from which a text asks about a subject. Names, words and meaning add up to it (`evidence.py`); a name with
# this weight decides alone.
ENOUGH = 1.0


@dataclass(frozen=True)
class Name:
    """A name of a subject.

    text: as it is written. weight: evidence that it gives by itself, in units of ENOUGH. own: whether it is the
    subject's own name or alias, not one that only occurs in its facts. items: the forget items that it is from; () for
    a name that the requester gave.
    """

    text: str
    weight: float
    own: bool
    items: tuple[int, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A subject: its names, the content words of its facts, the items that are about it.

    scope: "subject": whatever asks about the subject is flagged; "facts": its names flag nothing by themselves.
    """

    names: tuple[Name, ...]
    words: tuple[str, ...]
    items: tuple[int, ...]
    scope: Scope = "subject"
    kind: str = ""

    @property
    def title(self) -> str:
        """The subject's first own name, or "" for one without a name."""
        return next((name.text for name in self.names if name.own), "")

    def to_json(self) -> dict[str, Any]:
        """The subject as the manifest holds it, with lists in place of tuples, as when it is read again."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Subject:
        """The subject from the manifest. Raises KeyError or TypeError for a malformed one."""
        names = [Name(**{**name, "items": tuple(name["items"])}) for name in value["names"]]
        return cls(tuple(names), tuple(value["words"]), tuple(value["items"]), value["scope"], value["kind"])


def without_items(subjects: Iterable[Subject], removed: Collection[int]) -> tuple[Subject, ...]:
    """The subjects without what only the removed items said; a subject of which no item is left is gone."""
    kept = []
    for subject in subjects:
        items = tuple(item for item in subject.items if item not in removed)
        if not items:
            continue
        names = [name for name in subject.names if not name.items or set(name.items) - set(removed)]
        remaining = [replace(name, items=tuple(i for i in name.items if i not in removed)) for name in names]
        # The words of a removed item aren't known apart from the others'. They only ever add to a name's evidence.
        kept.append(replace(subject, items=items, names=tuple(remaining)))
    return tuple(kept)
