"""What a request needs of the replica that answers it, and what the replicas can do.

Both are frozen values: the guard decides on a snapshot, and the pool chooses a replica by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Needs:
    """What a request needs of a replica, beyond serving its model.

    parity: the request carries prompt embeddings. indexes: names of the verbatim indexes that the request refers to.
    """

    parity: bool = False
    indexes: frozenset[str] = frozenset()


NO_NEEDS = Needs()


@dataclass(frozen=True)
class ReplicaCapabilities:
    """What one replica can do.

    models: ids of the models that it serves; None: any model. available: whether it is in service, or was not
    checked yet. parity: whether the parity probe passed. indexes: names of the verbatim indexes that it has loaded.
    """

    models: frozenset[str] | None = None
    available: bool = True
    parity: bool = False
    indexes: frozenset[str] = frozenset()

    def serves(self, model: Any) -> bool:
        """Whether the replica serves `model`, the value of a request's `model` field."""
        return self.models is None or (isinstance(model, str) and model in self.models)

    def covers(self, needs: Needs) -> bool:
        """Whether the replica can do everything that `needs` names."""
        return (self.parity or not needs.parity) and needs.indexes <= self.indexes


@dataclass(frozen=True)
class Capabilities:
    """What the replicas of a pool can do at one moment; the default is one replica without parity or indexes."""

    replicas: tuple[ReplicaCapabilities, ...] = (ReplicaCapabilities(),)

    @classmethod
    def of_any_model(cls, *, parity: bool = False, indexes: Iterable[str] = ()) -> Capabilities:
        """One replica that serves every model: for measurements and tests, which have no pool."""
        return cls((ReplicaCapabilities(parity=parity, indexes=frozenset(indexes)),))

    def usable(self, model: Any, needs: Needs) -> tuple[bool, ...]:
        """For each replica whether it can answer a request: it is available, serves `model` and covers `needs`.

        If no replica serves `model`, all of them count: any of them can answer that it doesn't know the model.
        """
        any_serves = any(replica.serves(model) for replica in self.replicas)
        return tuple(
            replica.available and (replica.serves(model) or not any_serves) and replica.covers(needs)
            for replica in self.replicas
        )

    def covers(self, model: Any, needs: Needs) -> bool:
        """Whether a single replica can answer a request: it must cover all of `needs`, see `usable`."""
        return any(self.usable(model, needs))
