"""Setting: a model, workload and cluster with everything derived from them that pricing needs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from planner.cluster import Cluster
from planner.costs.pricer import Pricer
from planner.costs.training import load_stack, training_pricer
from planner.evaluate.shared import Rooms, rooms_for
from planner.graph.context import RoleContext
from planner.graph.experts import layer_loads, layer_rows
from planner.model import Layer, ModelSpec
from planner.workload import Workload

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Layers that cost the same: equal structure and equal expert loads, so the same entry (`row`) of a placement by layer."""

    layer: Layer
    load: tuple[float, ...] = ()
    row: int = 0

    @property
    def moe(self) -> bool:
        """Whether the FFN is a mixture of experts."""
        return self.layer.ffn.kind == "moe"


@dataclass(frozen=True, slots=True)
class MixtureCase:
    """A mixture where it runs: a layer kind, form and tensor ways, tokens and residual split of a micro-batch, the GPU kind of
    its stage and how its GPUs lie in domains (`Places.look`).
    """

    layer: LayerKind
    form: str
    tensor_ways: int
    tokens: int
    shards: int
    kind: str
    look: Hashable


@dataclass(frozen=True)
class Setting:
    """What is fixed while plans are compared; `rooms` holds what like problems of a sweep have found.

    With `any_placement` a mixture costs what no placement of its experts goes below, whatever the plan says (a bound); `least`
    has seconds that are known of some more exactly.
    """

    model: ModelSpec
    workload: Workload
    cluster: Cluster
    pricer: Pricer
    rooms: Rooms | None = field(default=None, compare=False, repr=False)
    any_placement: bool = False
    least: tuple[tuple[MixtureCase, float], ...] = ()

    @cached_property
    def context(self) -> RoleContext:
        """What role builders need."""
        return RoleContext(self.model, self.workload.forward, self.workload.training)

    @cached_property
    def layers(self) -> tuple[LayerKind, ...]:
        """Every layer with its expert load (the rows of the workload's histogram go to MoE layers in turn)."""
        loads, rows = layer_loads(self.model, self.workload), layer_rows(self.model, self.workload)
        return tuple(LayerKind(*kind) for kind in zip(self.model.layers, loads, rows, strict=True))

    @cached_property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The different layers, in order of first appearance."""
        return tuple(dict.fromkeys(self.layers))

    @cached_property
    def kind_of_layer(self) -> tuple[int, ...]:
        """For each layer its index in `kinds`."""
        index = {kind: i for i, kind in enumerate(self.kinds)}
        return tuple(index[kind] for kind in self.layers)

    def room(self, key: Hashable) -> dict[Any, Any]:
        """A place to keep what depends on the model, the cluster, the workload but for its batch, and the key."""
        return {} if self.rooms is None else self.rooms.room((self.cluster.gpus, key))

    def once(self, name: str, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives for a key, made once for all problems that share a room; the batch may not enter into it."""
        kept = self.room(name)
        if key not in kept:
            kept[key] = make()
        found: Made = kept[key]
        return found

    @property
    def query_length(self) -> int:
        """Tokens of a sequence in one pass."""
        return self.workload.query_length

    @property
    def has_embedding(self) -> bool:
        """Whether the model starts from token ids."""
        return self.model.vocab > 0

    @property
    def has_head(self) -> bool:
        """Whether logits are computed."""
        return self.model.vocab > 0 and self.workload.logits != "none"


def setting(model: ModelSpec, workload: Workload, cluster: Cluster, pricer: Pricer | None = None) -> Setting:
    """A setting with the embedded price source unless another is given."""
    rooms = rooms_for(model, workload, cluster) if pricer is None else None
    if pricer is None and workload.training is not None:
        pricer = training_pricer(cluster, load_stack(workload.training.stack))
    return Setting(model, workload, cluster, pricer or Pricer(cluster), rooms)
