"""Lower bounds of a problem's latency, each true for every plan: of its work, of the bytes it must read, of its space.

Work and bytes are those of the unsplit model, read off the graph of a plan on one GPU. The rates are the best that the
price source has for such an operator at any size, found by asking it with everything else free.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from planner.costs.get_time import GetTime
from planner.costs.pricer import Pricer
from planner.evaluate.devices import StageRoles
from planner.evaluate.setting import Setting
from planner.graph.ops import Kind, Op
from planner.insight.resources import Resource, alone
from planner.solve.answer import Optimum
from planner.solve.optimum import SpaceSearch
from planner.units import dtype_bytes
from search_spaces.attention import AttentionPartition
from search_spaces.experts import ExpertPlacement
from search_spaces.sizes import Sizes
from search_spaces.stages import Choice, StageChoice

HUGE = 2.0**30
"""A size at which a price is its limit: what does not grow with it is lost in rounding."""
LOOSE = 1 + 1e-6
"""How far a bound is loosened for what HUGE leaves over."""

Family = tuple[str, str, float, float, bool, bool, str | None]
"""What the rate of an operator depends on: kind, dtype, dims of its keys and values, whether K and V are shared, one query."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound in seconds, and what it says; `proven` is False where a time limit left the search open."""

    name: str
    seconds: float
    meaning: str
    proven: bool = True


def lower_bounds(env: Setting, search: SpaceSearch, optimum: Optimum, *, of_space: bool = True) -> tuple[Bound, ...]:
    """All bounds: of the hardware (work, bytes), `of_space` its chain and its chain and load, and the proven optimum.

    A bound that no plan of the space has (nothing fits, or the time was too short) is left out.
    """
    work, read = required(env, search.sizes)
    gpus = f"{env.cluster.size} GPUs"
    compute = shared_seconds(env, work, Resource.COMPUTE)
    memory = shared_seconds(env, read, Resource.MEMORY)
    chain, load = space_bounds(search) if of_space else (np.inf, np.inf)
    found = (
        Bound("work", compute, f"{sum(work.values()):.4g} FLOP of the unsplit model, shared by {gpus} at their best rates"),
        Bound("bandwidth", memory, f"{sum(read.values()) / 1e9:.4g} GB of weights and cache read once, shared by {gpus}"),
        Bound("chain", chain, "one micro-batch of the best size through every layer, each with its fastest option"),
        Bound("chain and load", load, "the chain, and every layer's thriftiest option shared by all GPUs behind it"),
        Bound("optimum", optimum.bound, "the proven bound of every plan of the space", optimum.complete),
    )
    return tuple(bound for bound in found if np.isfinite(bound.seconds))


def required(env: Setting, sizes: Sizes) -> tuple[dict[Family, float], dict[Family, float]]:
    """(FLOPs, bytes of weights and of the cache) of the unsplit model for the whole batch, by what their rate depends on."""
    experts = ExpertPlacement() if sizes.moe else None
    whole = Choice(1, 1, (StageChoice(sizes.layers, (0,), AttentionPartition(), 1, experts),))
    work: dict[Family, float] = defaultdict(float)
    read: dict[Family, float] = defaultdict(float)
    for role, count in StageRoles(env, sizes, whole, 0).near():
        for op in role.ops:
            flops = float(np.max(op.flops))
            if flops:
                work[_family(op)] += count * flops
                read[_family(op)] += count * _read_bytes(env, op, bool(op.weights) or role.name == "head")
    return dict(work), dict(read)


def _family(op: Op) -> Family:
    if op.attention is None:
        return (op.kind.value, op.dtype, 1.0, 1.0, False, False, None)
    a = op.attention
    widths = float(np.max(a.qk_dim)), float(np.max(a.v_dim))
    return (op.kind.value, op.dtype, *widths, a.shared_kv, bool(np.max(a.q_len) == 1), a.kv_dtype)


def _read_bytes(env: Setting, op: Op, weights: bool) -> float:
    """Bytes of the weights that a product reads, of the cache that a decode step reads."""
    if op.attention is not None:
        a = op.attention
        if env.workload.phase != "decode":
            return 0.0
        width = np.asarray(a.qk_dim) if a.shared_kv else np.asarray(a.qk_dim) + a.v_dim
        return float(np.max(np.asarray(a.batch) * a.kv_heads * a.kv_len * width)) * dtype_bytes(a.kv_dtype or op.dtype)
    return float(np.max(np.asarray(op.batch) * op.k * op.n)) * dtype_bytes(op.dtype) if weights else 0.0


def shared_seconds(env: Setting, amounts: dict[Family, float], resource: Resource) -> float:
    """Seconds for all GPUs of the cluster to get through the amounts (FLOPs or bytes) together.

    Where GPU kinds differ, each family is weighted by the cluster's rate for it; dividing by what every GPU can do at
    best under these weights keeps the bound true (a feasible dual of the linear program that shares the work out).
    """
    pricer = alone(env, resource).pricer
    rates = {
        family: {kind: _best_rate(env, pricer, kind, family, resource) for kind in env.cluster.kinds} for family in amounts
    }
    kinds = env.cluster.device_kinds
    whole = {family: sum(rates[family][kind] for kind in kinds) for family in amounts}
    total = sum(amount / whole[family] for family, amount in amounts.items())
    most = {kind: max((rates[f][kind] / whole[f] for f in amounts), default=1.0) for kind in env.cluster.kinds}
    return total / sum(most[kind] for kind in kinds) / LOOSE


def _best_rate(env: Setting, pricer: Pricer, kind: str, family: Family, resource: Resource) -> float:
    """FLOP/s or bytes/s of one GPU at the best; the attention core may also run as plain products (dimension segments)."""
    rate = _flop_rate if resource is Resource.COMPUTE else _byte_rate
    found = rate(pricer.sources[kind], family)
    if family[0] != Kind.ATTENTION:
        return found
    return max(found, rate(pricer.sources[kind], (Kind.MATMUL.value, env.model.dtype, 1.0, 1.0, False, False, None)))


def _flop_rate(source: GetTime, family: Family) -> float:
    kind, dtype, qk, v, shared, one_query, cache = family
    if kind == Kind.ATTENTION:
        q, batch = (1.0, HUGE) if one_query else (HUGE, 1.0)
        seconds = source.attention(batch, HUGE, 1.0, q, HUGE, qk, v, False, dtype, cache, shared)
        return 2.0 * batch * HUGE * q * HUGE * (qk + v) / float(seconds)
    product = source.grouped if kind == Kind.GROUPED else source.get_time
    return 2.0 * HUGE**3 / float(product(HUGE, HUGE, HUGE, 1, dtype))


def _byte_rate(source: GetTime, family: Family) -> float:
    kind, dtype, qk, v, shared, _, cache = family
    if kind == Kind.ATTENTION:
        width = qk if shared else qk + v
        seconds = source.attention(HUGE, 1.0, 1.0, 1.0, HUGE, qk, v, False, dtype, cache, shared)
        return HUGE * HUGE * width * dtype_bytes(cache or dtype) / float(seconds)
    product = source.grouped if kind == Kind.GROUPED else source.get_time
    return HUGE * HUGE * dtype_bytes(dtype) / float(product(1.0, HUGE, HUGE, 1, dtype))


def space_bounds(search: SpaceSearch) -> tuple[float, float]:
    """(least chain of a micro-batch, least closed-form bound) over the branches of a space, experts apart included."""
    chain = load = np.inf
    for replicas, micro in search.space.branches:
        branch = search.branch(replicas, micro)
        least = search.priced.least_layer(branch.sequences)
        if least is not None:
            chain, load = min(chain, least[0]), min(load, search.bound(branch))
        if search.apart.splits:
            apart = search.apart.least(replicas, micro)
            chain, load = min(chain, apart[0]), min(load, apart[1])
    return float(chain), float(load)
