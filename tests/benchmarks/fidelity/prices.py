"""Prices of the steps of a plan with the planner's own evaluator, each distinct one once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.cluster import Cluster
from planner.costs.pricer import Pricer
from planner.errors import PlannerError
from planner.evaluate.capacity import over_capacity
from planner.evaluate.linear import linear_path
from planner.evaluate.setting import Setting
from planner.model import ModelSpec
from planner.problem.sizes import sizes_of
from planner.units import dtype_bytes
from planner.workload import Workload
from tests.benchmarks.fidelity.clusters import Machines
from tests.benchmarks.fidelity.models import model_of
from tests.benchmarks.fidelity.plans import Grid, choice_of
from tests.benchmarks.fidelity.rows import Row, Unusable, text, whole

CLASSES = {"Get_Time": "gemm", "Attention": "attention", "Memory": "memory"}
MANY = 64  # sequences of each attention-data part whose memory, beside that of one, says how many fit


@dataclass(frozen=True, slots=True)
class Priced:
    """A step: seconds, its seconds and kernels by operator class, the sequences that it is for, the GPUs, and how many
    attention-data parts share the sequences.
    """

    seconds: float
    classes: dict[str, float]
    counts: dict[str, int]
    sequences: int
    gpus: int
    data: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a model on a machine: what its steps have in common."""

    model: ModelSpec
    cluster: Cluster
    grid: Grid
    kv_dtype: str | None

    @property
    def floor_s(self) -> float:
        """Seconds in which the GPUs can read the weights that one token meets, at the rate of the data sheet."""
        kind = self.cluster.kind_of(0)
        stored = min(dtype_bytes(self.model.dtype), *(dtype_bytes(d) for d in self.model.module_dtypes.values()), 2.0)
        read = (self.model.active_parameters - 2 * self.model.vocab * self.model.hidden) * stored
        return max(read, 0.0) / (self.grid.tensor * self.grid.stages * kind.memory_bandwidth)


def operator_class(term: str) -> str:
    """gemm, moe, attention, memory or communication, by the term of an operator."""
    name = term.partition("(")[0]
    return "moe" if name == "Get_Time" and "groups=" in term else CLASSES.get(name, "communication")


def load_of(phase: str, batch: int, length: int, kv_dtype: str | None) -> Workload:
    """A step of `batch` prompts of `length` tokens, or of `batch` requests with `length` tokens in the cache."""
    if phase == "prefill":
        return Workload("prefill", batch, prompt=length, kv_dtype=kv_dtype)
    return Workload("decode", batch, context=length, kv_dtype=kv_dtype)


class Prices:
    """Prices steps on machines; `pricer` makes the price source of a cluster and a KV cache."""

    def __init__(self, machines: Machines, pricer: Callable[[Cluster, str | None], Pricer]) -> None:
        self.machines, self._make = machines, pricer
        self._pricers: dict[tuple[int, str | None], Pricer] = {}
        self._steps: dict[tuple[object, ...], Priced | Unusable] = {}
        self._over: dict[tuple[object, ...], float | Unusable] = {}

    def instance(self, row: Row, grid: Grid, kv_dtype: str | None) -> Instance | Unusable:
        """The model and machine of a row."""
        model = model_of(text(row, "model"), text(row, "precision"), row)
        if isinstance(model, Unusable):
            return model
        cluster = self.machines.cluster(text(row, "gpu"), grid.gpus, whole(row, "gpus_per_node"))
        return cluster if isinstance(cluster, Unusable) else Instance(model, cluster, grid, kv_dtype)

    def step(self, one: Instance, phase: str, batch: int, length: int) -> Priced | Unusable:
        """A step of an instance; its batch is rounded up to what the attention-data parts share equally."""
        key = (*self._key(one), phase, batch, length)
        if key not in self._steps:
            self._steps[key] = self._priced(one, phase, batch, length)
        return self._steps[key]

    def held(self, one: Instance, length: int) -> int | Unusable:
        """Requests of `length` tokens whose caches fit on an instance; 0 where not even one does."""
        few, many = one.grid.data, one.grid.data * MANY
        low, high = self._excess(one, few, length), self._excess(one, many, length)
        if isinstance(low, Unusable) or isinstance(high, Unusable):
            return low if isinstance(low, Unusable) else few
        if low > 0:
            return 0
        each = (high - low) / (many - few)
        return max(few, int(few - low / each)) if each > 0 else many

    def _key(self, one: Instance) -> tuple[object, ...]:
        stored = (one.model.dtype, *sorted(one.model.module_dtypes.items()))
        return one.model.name, stored, one.model.parameters, id(one.cluster), one.grid, one.kv_dtype

    def _setting(self, one: Instance, phase: str, batch: int, length: int) -> Setting:
        whole_batch = -(-batch // one.grid.data) * one.grid.data
        key = id(one.cluster), one.kv_dtype
        if key not in self._pricers:
            self._pricers[key] = self._make(one.cluster, one.kv_dtype)
        load = load_of(phase, whole_batch, length, one.kv_dtype)
        return Setting(one.model, load, one.cluster, self._pricers[key])

    def _priced(self, one: Instance, phase: str, batch: int, length: int) -> Priced | Unusable:
        env = self._setting(one, phase, batch, length)
        choice = choice_of(one.model, one.grid, env.workload.batch)
        if isinstance(choice, Unusable):
            return choice
        try:
            path = linear_path(env, sizes_of(one.model, env.workload, one.cluster), choice)
        except PlannerError as error:
            return Unusable(f"refused by the planner: {error}"[:100])
        classes: dict[str, float] = {}
        counts: dict[str, int] = {}
        for item in path.items:
            kind = operator_class(item.term)
            classes[kind] = classes.get(kind, 0.0) + item.seconds
            counts[kind] = counts.get(kind, 0) + item.count
        return Priced(path.latency_s, classes, counts, env.workload.batch, one.grid.gpus, one.grid.data)

    def _excess(self, one: Instance, batch: int, length: int) -> float | Unusable:
        """Bytes by which a decode step of the fullest GPU exceeds its memory."""
        key = (*self._key(one), batch, length)
        if key not in self._over:
            env = self._setting(one, "decode", batch, length)
            choice = choice_of(one.model, one.grid, batch)
            if isinstance(choice, Unusable):
                return choice
            choice = replace(choice, micro_batches=1)
            self._over[key] = over_capacity(env, sizes_of(one.model, env.workload, one.cluster), choice)
        return self._over[key]
