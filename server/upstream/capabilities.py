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
    plugin: the replica must be known to run the plugin. Set only where a policy that refuses (`history: penalize`)
    penalises instead; other penalties rely on the operator to have installed it.
    """

    parity: bool = False
    indexes: frozenset[str] = frozenset()
    plugin: bool = False


NO_NEEDS = Needs()


@dataclass(frozen=True)
class ReplicaCapabilities:
    """What one replica can do.

    models: ids of the models that it serves; None: any model. available: whether it is up, or was not checked yet.
    parity: whether the parity probe passed. indexes: names of the verbatim indexes that it has loaded. plugin: whether
    a probe found that it runs the plugin.
    """

    models: frozenset[str] | None = None
    available: bool = True
    parity: bool = False
    indexes: frozenset[str] = frozenset()
    plugin: bool = False

    def serves(self, model: Any) -> bool:
        """Whether the replica serves `model`, the value of a request's `model` field."""
        return self.models is None or (isinstance(model, str) and model in self.models)

    def covers(self, needs: Needs) -> bool:
        """Whether the replica can do everything that `needs` names."""
        has_plugin = self.plugin or not needs.plugin
        return (self.parity or not needs.parity) and has_plugin and needs.indexes <= self.indexes


@dataclass(frozen=True)
class Capabilities:
    """What the replicas of a pool can do at one moment; the default is one replica without parity or indexes."""

    replicas: tuple[ReplicaCapabilities, ...] = (ReplicaCapabilities(),)

    @classmethod
    def of_any_model(cls, *, parity: bool = False, indexes: Iterable[str] = (), plugin: bool = False) -> Capabilities:
        """One replica that serves every model: for measurements and tests, which have no pool."""
        return cls((ReplicaCapabilities(parity=parity, indexes=frozenset(indexes), plugin=plugin),))

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
