"""Resources: the hardware with one of them better than it is, as a setting that the same evaluator prices.

Nothing here prices anything. A better part is a changed description (peaks, bandwidths, latencies, memory, and the fixed
times of the calibration); the price of a plan on it comes from the same formulas as the price on the real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from planner.cluster import Cluster, Domain, GpuKind, Link
from planner.costs.calibration import calibration
from planner.costs.collectives import Collectives
from planner.costs.comm_table import MeasuredCollectives
from planner.costs.get_time import GetTime, Roofline
from planner.costs.pricer import Pricer
from planner.costs.scaled import Scaled, ScaledCollectives
from planner.costs.table import Table
from planner.evaluate.setting import Setting, setting

KERNEL_TIMES = frozenset({"launch_s", "block_s", "key_s", "row_s"})
"""Fixed times of kernels: of a launch, of a block of threads, of each of its keys, of a query row."""
MESSAGE_TIMES = frozenset({"start_s", "step_s", "ramp_s"})
"""Fixed times of collectives: to start, for each further rank, and what short messages lose."""
FREE = 1e12
"""A factor so large that what it speeds up costs nothing."""


class Resource(StrEnum):
    """What a plan may wait for."""

    COMPUTE = "compute"
    MEMORY = "memory_bandwidth"
    OVERHEAD = "overhead"
    INSIDE = "scale_up_bandwidth"
    BETWEEN = "network_bandwidth"
    LATENCY = "network_latency"
    CAPACITY = "memory_capacity"


TIMED: tuple[Resource, ...] = tuple(resource for resource in Resource if resource is not Resource.CAPACITY)
"""The resources that make operators faster; capacity only lets other plans fit."""

ASSUMPTIONS = (
    "the shares of peak and bandwidth that were fitted to today's part are kept: a part with twice the peak may reach a "
    "smaller share of it",
    "fixed times are those of the calibration: kernel launches, blocks of threads and query rows; starts, steps and short "
    "messages of collectives",
)


def better(env: Setting, factors: Mapping[Resource, float]) -> Setting:
    """The same model and workload on hardware whose resources are better by these factors (2: twice as good).

    Measured tables change by the factor by which the formula's time of the same operator changes; a price source of another
    kind is kept as it is (see `measured`).
    """
    cluster = _cluster(env.cluster, factors)
    data = _calibration(factors)
    pricer = Pricer(
        cluster, {name: _better(source, Roofline(cluster.kinds[name], data)) for name, source in env.pricer.sources.items()}
    )
    pricer.collectives = _better_collectives(env.pricer.collectives, cluster, data)
    return setting(env.model, env.workload, cluster, pricer)


def _better(source: GetTime, formula: Roofline) -> GetTime:
    """A price source on better hardware, whose formula is given."""
    if isinstance(source, Roofline):
        return formula
    if isinstance(source, Scaled):
        return Scaled(source.table, formula)
    return Scaled(source, formula) if isinstance(source, Table) else source


def _better_collectives(found: Collectives, cluster: Cluster, data: dict[str, Any]) -> Collectives:
    if isinstance(found, ScaledCollectives):
        return ScaledCollectives(cluster, data, found.measured)
    return ScaledCollectives(cluster, data, found) if isinstance(found, MeasuredCollectives) else Collectives(cluster, data)


def alone(env: Setting, resource: Resource) -> Setting:
    """Hardware on which nothing but one resource costs time: a price there is the part that this resource takes by itself."""
    return better(env, {other: FREE for other in TIMED if other is not resource})


def measured(env: Setting) -> tuple[str, ...]:
    """GPU kinds with prices that are measurements, which a changed description changes only as it changes the formula."""
    return tuple(name for name, source in env.pricer.sources.items() if not isinstance(source, Roofline))


def _cluster(cluster: Cluster, factors: Mapping[Resource, float]) -> Cluster:
    def of(resource: Resource) -> float:
        return factors.get(resource, 1.0)

    def link(base: Link, resource: Resource) -> Link:
        return replace(base, bandwidth=base.bandwidth * of(resource), latency_s=base.latency_s / of(Resource.LATENCY))

    def kind(base: GpuKind) -> GpuKind:
        return replace(
            base,
            memory_bytes=round(base.memory_bytes * of(Resource.CAPACITY)),
            memory_bandwidth=base.memory_bandwidth * of(Resource.MEMORY),
            peak_flops={dtype: peak * of(Resource.COMPUTE) for dtype, peak in base.peak_flops.items()},
        )

    return replace(
        cluster,
        kinds={name: kind(base) for name, base in cluster.kinds.items()},
        domains=tuple(Domain(domain.ranks, link(domain.link, Resource.INSIDE)) for domain in cluster.domains),
        network=link(cluster.network, Resource.BETWEEN),
        gemm_tables={},  # measured on the real one
        comm_table=None,
    )


def _calibration(factors: Mapping[Resource, float]) -> dict[str, Any]:
    """The calibration with its fixed times divided by the factors."""
    kernel, message = factors.get(Resource.OVERHEAD, 1.0), factors.get(Resource.LATENCY, 1.0)
    data = calibration()
    return {
        **data,
        **{part: _divided(data[part], KERNEL_TIMES, kernel) for part in ("gpus", "adjust")},
        **{part: _divided(data[part], MESSAGE_TIMES, message) for part in ("collectives", "network")},
    }


def _divided(value: Any, names: frozenset[str], factor: float) -> Any:
    """A nested mapping with the numbers under some names divided."""
    if not isinstance(value, dict):
        return value
    return {key: item / factor if key in names else _divided(item, names, factor) for key, item in value.items()}
